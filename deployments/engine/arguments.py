"""The arguments of vLLM's API server that our settings stand for."""

import json
from argparse import Namespace
from typing import Any

from deployments.engine_arguments import kind
from deployments.settings import Settings

STRUCTURED_OUTPUTS = {"backend": "guidance", "disable_any_whitespace": True}
"""What vLLM's `structured_outputs_config` is, unless the settings say otherwise.

The front end and the engine must use one backend: with "auto", vLLM's front end (0.32.0) checks each request for one of several,
and the engine keeps the first that it was asked for. Guidance follows all of a schema that it accepts
(`deployments.ingress.json_schema`). Without white space, a model that knows no JSON cannot go on with it for ever.
"""


def server_arguments(settings: Settings) -> Namespace:
    """Return the arguments of vLLM's API server that `settings` stand for, as its own parser makes them."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(server_words(settings))
    validate_parsed_serve_args(arguments)
    return arguments


def server_words(settings: Settings) -> list[str]:
    """Return the command-line words of vLLM's API server that `settings` stand for."""
    words = ["--model", settings.model, "--served-model-name", settings.served_model_name]
    arguments = settings.engine | settings.api
    if arguments.get("tool_call_parser") is not None:
        arguments.setdefault("enable_auto_tool_choice", True)  # what else would it be for?
    arguments["structured_outputs_config"] = STRUCTURED_OUTPUTS | (arguments.get("structured_outputs_config") or {})
    for name, value in arguments.items():
        words += _words("--" + name.replace("_", "-"), value, kind(name))
    return words


def _words(flag: str, value: Any, kind: str) -> list[str]:
    if value is None:
        return []
    if kind == "json_list":
        return [flag, json.dumps(value)]
    if kind == "repeated":
        return [word for item in value for word in (flag, item)]
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if isinstance(value, dict):
        return [flag, json.dumps(value)]
    if isinstance(value, list):
        return [flag, *(item if isinstance(item, str) else json.dumps(item) for item in value)]
    return [flag, str(value)]
