"""The process of an engine core: `python -m deployments.engine.process`, started by a replica (`deployments.replica.engine_core`).

Where there is a fork server (`deployments.engine.forkserver`), it is forked, and vLLM has been imported already.

Everything of vLLM that an engine needs is imported and made here, and nothing of it in the replica. The process ends with the
replica, which holds the other end of its standard input open.
"""

import contextlib
import importlib.util
import os
import pickle
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
from prometheus_client import generate_latest

from deployments.host.cores import use_all_cores
from deployments.host.garbage import no_collecting
from deployments.patching import extend

IMPORTED, CONFIGURED, BY_POSITION, FAILED = b"i", b"c", b"p", b"f"
"""What the process writes to its pipe: it has imported vLLM; it has made vLLM's configuration, or one by which the tokens of a
seeded request depend on seed and position alone; it has failed (an error follows)."""


def main(pipe: int) -> None:
    """Run an engine core until it is told to end. `pipe` is the file descriptor to which it reports its progress."""
    os.set_inheritable(pipe, False)
    # vLLM forks the workers of several GPUs. One that kept the pipe open would hide from the replica that this process has ended.
    os.register_at_fork(after_in_child=lambda: os.close(pipe))
    use_all_cores()
    try:
        _run(pipe)
    except Exception as error:
        os.write(pipe, FAILED + f"{type(error).__name__}: {error}".encode())
        raise


def _run(pipe: int) -> None:
    forked = "vllm" in sys.modules
    with no_collecting():
        import vllm.logger
        import vllm.v1.engine.core
        import vllm.v1.executor
        from vllm.utils.numa_utils import configure_subprocess
        from vllm.utils.system_utils import get_mp_context

    if forked:  # the import has left logging alone
        from vllm.config.logging import LoggingConfig

        vllm.logger.configure_logging(LoggingConfig())
    os.write(pipe, IMPORTED)
    settings, handshake_address, cache_address = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_the_replica, daemon=True).start()

    from deployments.engine.arguments import server_arguments
    from deployments.engine.config import engine_config, seeded_by_position

    config = engine_config(server_arguments(settings))
    os.write(pipe, BY_POSITION if seeded_by_position(config) else CONFIGURED)
    if not config.parallel_config.numa_bind:
        _serve(config, handshake_address, cache_address)
        return
    with configure_subprocess(config, local_rank=0, process_kind="EngineCore"):  # vLLM binds only a process that it starts
        process = get_mp_context().Process(target=_serve, args=(config, handshake_address, cache_address), name="EngineCore")
        process.start()
    process.join()
    sys.exit(process.exitcode)


def _serve(config: Any, handshake_address: str, cache_address: str | None) -> None:
    from vllm.v1.engine.core import EngineCoreProc
    from vllm.v1.executor import Executor

    from deployments.engine import cache_events, grammar_budget, guidance, kv_cache, pointed_masks, thought_end  # noqa: F401  # it registers itself

    guidance.install()  # this may be another process than the one that made the configuration
    grammar_budget.install()
    kv_cache.install()
    if cache_address is not None:
        cache_events.install(config, cache_address)
    if config.use_v2_model_runner:
        pointed_masks.install(config)
    extend(
        EngineCoreProc,
        "satori_gauges",
        _gauges(config),
        why="a utility call of an engine core (vLLM 0.32.0) is a method of its class",
        until="calls can be registered",
    )
    EngineCoreProc.run_engine_core(
        vllm_config=config,
        local_client=True,
        handshake_address=handshake_address,
        executor_class=Executor.get_class(config),
        log_stats=True,
        tensor_queue=None,
    )


def _end_with_the_replica() -> None:
    """Wait until the replica is gone, however it ended; then kill this process and all that it has started.

    Nothing is locked meanwhile, as it is in `sys.stdin.buffer.read`: a worker that vLLM forks closes its own `sys.stdin`, and would
    wait for that lock for ever.
    """
    while os.read(sys.stdin.fileno(), 1):
        pass
    kill(os.getpid())


def kill(pid: int) -> None:
    """Kill an engine's process, and all processes that it has started."""
    kill_all(started_by(pid))
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).kill()


def started_by(pid: int) -> list[psutil.Process]:
    """Return the processes that an engine's process, and those, have started; none if it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return list(psutil.Process(pid).children(recursive=True))
    return []


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """Kill the processes that have not ended. A later process with the number of one of them is left alone."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def preloaded() -> dict[str, str]:
    """Return the environment that vLLM (0.32.0, `platforms/cpu.py`) gives an engine on a CPU.

    vLLM sets it when it makes the configuration, for the processes that it starts afterwards. Our engine is already running then.
    """
    found = []
    for package, folders, pattern in (
        ("vllm", ("libs",), "libtcmalloc_minimal*.so*"),
        ("torch", ("../torch.libs", "lib"), "libgomp*.so*"),
    ):
        specification = importlib.util.find_spec(package)
        assert specification is not None
        assert specification.origin is not None
        site = Path(specification.origin).parent
        found += [str(path.resolve()) for folder in folders for path in sorted((site / folder).glob(pattern))][:1]
    words = [*found, os.environ.get("LD_PRELOAD", "")]
    return {"LD_PRELOAD": ":".join(filter(None, words))}


def _gauges(config: Any) -> Any:
    """Return a utility call that returns an engine's gauges in Prometheus' text format, given its rank and latest statistics."""
    import msgspec
    from vllm.v1.metrics.stats import SchedulerStats

    from deployments.observability.vllm_metrics import EngineGauges

    rank, latest = 0, SchedulerStats()
    registry: Any = EngineGauges(config, lambda: rank, lambda: latest)

    def gauges(self: Any, engine: int, stats: dict[str, Any] | None) -> str:
        nonlocal rank, latest
        rank, latest = engine, msgspec.convert(stats or {}, SchedulerStats)
        return generate_latest(registry).decode()

    return gauges


if __name__ == "__main__":
    main(int(sys.argv[1]))
