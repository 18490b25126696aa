"""A core that only the engine has, where a host has two and no GPU.

An engine on a CPU keeps a core busy all the time; all else together needs less than another one. Left to Linux, what a token wakes
runs on both, and the engine waits: 5 % of the tokens (dev/LOG.md). With more cores there is a free one to be woken on.
"""

import contextlib
import os
from collections.abc import Iterable

import psutil

from deployments.settings import Settings

VARIABLE = "SATORI_CORES"
"""In the environment of an application in which the engine has one of these: "0,1"."""
ENGINE = ("VLLM::", "engine_process")


def parted(settings: Settings) -> dict[str, str]:
    """Return the variable, if the engine of an application that has this host for itself is to have a core."""
    cores = sorted(os.sched_getaffinity(0))
    one = settings.llm.num_replicas == 1 and not settings.autoscaling.enabled and not settings.llm.num_gpus
    return {VARIABLE: ",".join(map(str, cores))} if one and len(cores) == 2 else {}


def keep_to_the_last(processes: Iterable[psutil.Process], cores: str) -> None:
    """Put all but the engine's processes, and what they will start, on the last one of the cores."""
    last = {int(cores.split(",")[-1])}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if not any(word in " ".join(process.cmdline()) for word in ENGINE):
                for thread in process.threads():
                    with contextlib.suppress(ProcessLookupError):
                        os.sched_setaffinity(thread.id, last)


def take_all() -> None:
    """Let this process, an engine's, run on all of the cores again, whatever who started it is kept to."""
    if cores := os.environ.get(VARIABLE):
        os.sched_setaffinity(0, map(int, cores.split(",")))
