"""A core for the engine alone, on a host with two cores and no GPU.

An engine on a CPU keeps one core busy all the time; all other processes together need less than one core. If Linux decides, the
processes that a token wakes run on both cores, and the engine waits: this costs 5 % of the tokens (dev/LOG.md). With more cores,
they find a free one.
"""

import contextlib
import os
from collections.abc import Iterable

import psutil

from deployments.settings import Settings

VARIABLE = "SATORI_CORES"
"""The environment variable that lists the host's cores ("0,1"), in an application whose engine has one of them for itself."""
ENGINE_MODULE = "deployments.engine.process"
"""The module that a replica starts an engine's process with (`python -m`). It identifies the process until that sets its title."""


def is_engine(command: str) -> bool:
    """Return whether a command line is an engine process's. vLLM sets its title (VLLM::EngineCore), but that fails now and then."""
    return "VLLM::" in command or ENGINE_MODULE in command


def variables(settings: Settings) -> dict[str, str]:
    """Return `VARIABLE` with its value if the engine is to have a core for itself, else nothing.

    The application is taken to have this host for itself.
    """
    cores = sorted(os.sched_getaffinity(0))
    one = settings.llm.num_replicas == 1 and not settings.autoscaling.enabled and not settings.llm.num_gpus
    return {VARIABLE: ",".join(map(str, cores))} if one and len(cores) == 2 else {}


def pin_to_last(processes: Iterable[psutil.Process], cores: str) -> None:
    """Pin all processes except the engine's to the last of the cores. What they start later inherits this."""
    last = {int(cores.split(",")[-1])}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if not is_engine(" ".join(process.cmdline())):
                for thread in process.threads():
                    with contextlib.suppress(ProcessLookupError):
                        os.sched_setaffinity(thread.id, last)


def use_all_cores() -> None:
    """Let this process, an engine's, run on all cores again, even if the process that started it is pinned to one."""
    if cores := os.environ.get(VARIABLE):
        os.sched_setaffinity(0, map(int, cores.split(",")))
