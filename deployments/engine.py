"""vLLM's configuration from our settings, for the two sides of the seam: the engine and the frontend before it.

vLLM is imported inside the functions, and only after `prepare` has set the environment it reads at import.
"""

import json
import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from deployments.garbage import collect_less
from deployments.settings import MODEL_FILES, WEIGHT_FILES, Settings

if TYPE_CHECKING:
    from vllm.config import VllmConfig

TASKS = ("generate",)


def prepare(environment: dict[str, str]) -> None:
    """Set the environment that vLLM reads when it is imported. Call it before anything imports vLLM.

    Usage reports are off: a server on somebody's rack calls nobody.
    """
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.update(environment)


@contextmanager
def sparing_logging() -> Iterator[None]:
    """Keep vLLM's import from configuring logging anew in a process of Serve's.

    That would close all handlers of the process. With Serve's own closed, a controller that restarts takes the replica for broken
    and stops it (Ray 2.60.0).
    """
    name = "VLLM_CONFIGURE_LOGGING"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def download(settings: Settings, say: Callable[[str], None], weights: bool = True) -> Settings:
    """Return the settings with a directory of this host for a model of the Hugging Face hub, with its files whole.

    They come from other hosts of the Ray cluster where they can; see `deployments.weights`. `say` hears of progress. An ingress
    does without the weights.
    """
    from deployments.sharing import fetch
    from deployments.weights import Hub, Store, paced

    revision, cache_dir = settings.engine.get("revision"), settings.engine.get("download_dir")
    patterns = [pattern for pattern in MODEL_FILES if weights or pattern not in WEIGHT_FILES]
    hub = Hub(settings.model, revision, settings.weights.mirror)
    path = fetch(Store(settings.model, revision, cache_dir), hub, patterns, paced(say))
    return settings.model_copy(update={"model": str(path)})


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
    for name, value in (settings.engine | settings.api).items():
        words += _words("--" + name.replace("_", "-"), value)
    return words


def _words(flag: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if isinstance(value, dict):
        return [flag, json.dumps(value)]
    if isinstance(value, list):
        return [flag, *(item if isinstance(item, str) else json.dumps(item) for item in value)]
    return [flag, str(value)]


def engine_config(arguments: Namespace) -> "VllmConfig":
    """Return the configuration of an engine on this host's device."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    arguments.logits_processors = [*(arguments.logits_processors or []), "deployments.steering:CoatLimits"]
    return AsyncEngineArgs.from_cli_args(arguments).create_engine_config(UsageContext.OPENAI_API_SERVER)


def frontend_config(arguments: Namespace) -> "VllmConfig":
    """Return the configuration of a frontend (tokenizer, templates, parsers) on a host that may have no GPU.

    Only what a frontend reads is built, as in vLLM's own GPU-less render server (launchers/render/entry.py, 0.32.0): the CUDA
    build cannot make a whole engine configuration without a device.
    """
    from vllm.config import SchedulerConfig, VllmConfig
    from vllm.config.logging import LoggingConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

    wanted = AsyncEngineArgs.from_cli_args(arguments)
    wanted.quantization = None  # no kernels here, so nothing to check against a device
    model = wanted.create_model_config()
    model.quantization = None  # which a model's own configuration may have set again
    scheduler = SchedulerConfig(
        runner_type=model.runner_type,
        max_model_len=model.max_model_len,
        is_encoder_decoder=model.is_encoder_decoder,
        stream_interval=wanted.stream_interval,
        max_num_queued_reqs=wanted.max_num_queued_reqs,
        max_num_queued_tokens=wanted.max_num_queued_tokens,
    )
    return VllmConfig(
        model_config=model,
        scheduler_config=scheduler,
        logging_config=LoggingConfig(configure_logging=False),  # see sparing_logging
        observability_config=wanted.create_observability_config(),
        structured_outputs_config=wanted.create_structured_outputs_config(),
    )


def writes_coat(arguments: Namespace, frontend: "VllmConfig") -> bool:
    """Tell whether the model writes a Chain of Action-Thought, and if so make `coat` the frontend's reasoning parser.

    A model does whose tokenizer has the actions, unless another reasoning parser is asked for.
    """
    from vllm.tokenizers import cached_tokenizer_from_config

    from deployments.coat import ACTIONS

    parsers = arguments.structured_outputs_config
    if parsers.reasoning_parser or not ACTIONS.keys() <= cached_tokenizer_from_config(frontend.model_config).get_vocab().keys():
        return False
    import deployments.reasoning  # noqa: F401  # registers the parser

    parsers.reasoning_parser = "coat"
    return True


def tune_process() -> None:
    """Spend less CPU in a process that serves with vLLM: read its environment once, too. Call it when start-up is done."""
    import vllm.envs

    vllm.envs.enable_envs_cache()
    collect_less()
