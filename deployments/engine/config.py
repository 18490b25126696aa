"""vLLM's configuration from our settings, for both sides of the seam: the engine, and the frontend in front of it.

vLLM is imported inside the functions, and only after `prepare` has set the environment it reads at import.
"""

import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from deployments.host.garbage import collect_less

if TYPE_CHECKING:
    from vllm.config import VllmConfig


TASKS = ("generate",)
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
}
"""vLLM's environment where nothing else is set.

No usage reports: a server in somebody's rack calls nobody. No sampler of FlashInfer's: vLLM 0.32.0 would compile it with nvcc when
an engine starts on a GPU, and the start ends where there is no nvcc; Triton's takes its place. GPUs have the numbers of nvidia-smi.
"""


def prepare(environment: dict[str, str]) -> None:
    """Set the environment that vLLM reads when it is imported. Call it before anything imports vLLM.

    Variables that are set keep their values, but for those in `environment`.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.update(environment)


@contextmanager
def sparing_logging() -> Iterator[None]:
    """Keep vLLM's import from reconfiguring logging in a process of Serve's.

    That would close all logging handlers of the process. With Serve's own handlers closed, a restarted controller considers the
    replica broken and stops it (Ray 2.60.0).
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


def engine_config(arguments: Namespace) -> "VllmConfig":
    """Return the configuration of an engine on this host's device."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    from deployments.engine import guidance, thought_end

    guidance.install()
    if not arguments.structured_outputs_config.reasoning_parser and not getattr(arguments, "reasoning_parser", ""):
        arguments.structured_outputs_config.reasoning_parser = thought_end.NAME
    config = AsyncEngineArgs.from_cli_args(arguments).create_engine_config(UsageContext.OPENAI_API_SERVER)
    module = "logits_v2" if config.use_v2_model_runner else "logits"  # the two runners' interfaces have nothing in common
    ours = f"deployments.engine.{module}:CoatLimits"
    config.model_config.logits_processors = [*(config.model_config.logits_processors or ()), ours]
    speculation = config.speculative_config
    parallel = config.parallel_config
    if config.use_v2_model_runner and speculation is not None and speculation.use_ngram() and not parallel.worker_extension_cls:
        parallel.worker_extension_cls = "deployments.engine.drafts.Extension"
    return config


def seeded_by_position(config: "VllmConfig") -> bool:
    """Return whether a seeded request's tokens depend on nothing but its seed and what is before them (vLLM 0.32.0).

    Model Runner V2 makes the noise of a place from seed and position. The first runner's generator has a state, which a prompt does
    not hold. With speculation the steps count, too: a token that was drafted is accepted by another draw than one that was not.
    """
    return bool(config.use_v2_model_runner) and config.speculative_config is None


def frontend_config(arguments: Namespace) -> "VllmConfig":
    """Return the configuration of a frontend (tokenizer, templates, parsers) on a host that may have no GPU.

    Only what a frontend reads is built, as in vLLM's own GPU-less render server (launchers/render/entry.py, 0.32.0): the CUDA
    build cannot make a whole engine configuration without a device.
    """
    from vllm.config import SchedulerConfig, VllmConfig
    from vllm.config.logging import LoggingConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

    from deployments.observability.vllm_metrics import DRAFTS

    engine_arguments = AsyncEngineArgs.from_cli_args(arguments)
    engine_arguments.quantization = None  # no kernels run here, so there is nothing to check against a device
    model = engine_arguments.create_model_config()
    model.quantization = None  # the model's own configuration may have set it again
    # Not vLLM's own field: with it, a frontend refuses `min_p` and `logit_bias`, which Model Runner V2 applies to drafts, too.
    drafts = (engine_arguments.speculative_config or {}).get("num_speculative_tokens", 0)
    scheduler = SchedulerConfig(
        runner_type=model.runner_type,
        max_model_len=model.max_model_len,
        is_encoder_decoder=model.is_encoder_decoder,
        stream_interval=engine_arguments.stream_interval,
        max_num_queued_reqs=engine_arguments.max_num_queued_reqs,
        max_num_queued_tokens=engine_arguments.max_num_queued_tokens,
    )
    return VllmConfig(
        model_config=model,
        scheduler_config=scheduler,
        logging_config=LoggingConfig(configure_logging=False),  # see sparing_logging
        additional_config={DRAFTS: drafts},
        observability_config=engine_arguments.create_observability_config(),
        structured_outputs_config=engine_arguments.create_structured_outputs_config(),
    )


def tune_process() -> None:
    """Spend less CPU in a process that serves with vLLM; its environment is also read only once. Call it when start-up is done."""
    import vllm.envs

    vllm.envs.enable_envs_cache()
    collect_less()
