"""Write `deployments/engine_arguments.json`: every argument of the installed vLLM's API server, with type and choices.

The application builder checks `engine.*` and `api.*` settings against this file, so that it can refuse a wrong one at
once without importing vLLM (which takes seconds). Run after a vLLM upgrade: `python dev/engine_arguments.py`. A test
compares the file with the installed vLLM.
"""

import argparse
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

PATH = Path(__file__).parent.parent / "deployments" / "engine_arguments.json"
# Set by the platform itself (model, where the server listens, how processes are placed), or read only by vLLM's own
# server processes, which are not used here.
OURS = re.compile(
    r"^(host|port|uds|model|served_model_name|headless|api_server_count|config|help|root_path|model_tag|model_weights"
    r"|ssl_.*|enable_ssl_refresh|uvicorn_.*|disable_uvicorn_access_log|disable_access_log_for_endpoints|h11_.*|grpc.*"
    r"|data_parallel_.*|dp_supervisor_.*|enable_elastic_ep|log_config_file|nnodes|node_rank|master_addr|master_port)$"
)


def describe(action: argparse.Action) -> dict[str, Any]:
    """Return `type` (bool, int, float, str, size as in "32k", size_or_auto, json_list, repeated, or any), and `choices` if any.

    A json_list is a list in one word of JSON; one that is `repeated` has its flag before each item.
    """
    name = getattr(action.type, "__name__", "")
    if isinstance(action.default, list) and action.nargs is None:
        return {"type": "json_list" if action.type is json.loads else "repeated"}
    if isinstance(action, argparse.BooleanOptionalAction) or name == "bool" or action.nargs == 0:
        return {"type": "bool"}
    if name == "_optional_type":  # vLLM's `optional_type(T)`: T or "None"
        name = getattr(action.type.__closure__[0].cell_contents, "__name__", "")  # type: ignore[union-attr]
    kinds = {"human_readable_int": "size", "human_readable_int_or_auto": "size_or_auto"}
    kind = kinds.get(name, name) if action.nargs is None else "any"
    kind = kind if kind in ("int", "float", "str", "size", "size_or_auto") else "any"
    choices = [str(choice) for choice in action.choices] if action.choices else []
    return {"type": kind} | ({"choices": choices} if choices else {})


def catalogue() -> dict[str, dict[str, dict[str, Any]]]:
    """Return {"engine": {name: description}, "api": {name: description}} of the installed vLLM."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    fields = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    found: dict[str, dict[str, dict[str, Any]]] = {"engine": {}, "api": {}}
    for action in make_arg_parser(FlexibleArgumentParser())._actions:
        if not OURS.match(action.dest):
            found["engine" if action.dest in fields else "api"][action.dest] = describe(action)
    return {group: dict(sorted(arguments.items())) for group, arguments in found.items()}


if __name__ == "__main__":
    PATH.write_text(json.dumps(catalogue(), indent=1) + "\n")
    print(f"wrote {PATH}")
