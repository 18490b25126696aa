"""vLLM's cache of compiled code, which all replicas of a host share: one of them fills it before the others start.

Replicas that start together for the first time would all compile the same, and write the same files (vLLM 0.32.0,
`compilation/backends.py`: one folder a configuration and rank, without a lock).
"""

import fcntl
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deployments.settings import Settings


def folder() -> Path:
    """Return the folder of vLLM's caches, as vLLM itself finds it."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("VLLM_CACHE_ROOT") or Path(cache) / "vllm").expanduser()


def mark_of(settings: Settings) -> Path:
    """Return the file that says that an engine with these settings has started on this host before."""
    versions = [importlib.metadata.version(name) for name in ("torch", "ray")]
    what = json.dumps([versions, settings.model, settings.engine, settings.llm.env], sort_keys=True, default=str)
    return folder() / f"satori-started-{hashlib.sha256(what.encode()).hexdigest()[:16]}"


@contextmanager
def one_at_first(settings: Settings) -> Iterator[None]:
    """Enter the block, in which an engine starts, alone on this host if none has started with these settings before.

    Otherwise, and on CPUs, where nothing is compiled by default, enter it at once. Where the first one fails, the next one tries.
    """
    mark = mark_of(settings)
    if not settings.llm.num_gpus or settings.engine.get("enforce_eager") or mark.exists():
        yield
        return
    mark.parent.mkdir(parents=True, exist_ok=True)
    with mark.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel frees that of a process which has ended
        first = not mark.exists()
        if first:
            yield
            mark.touch()
    if not first:
        yield
