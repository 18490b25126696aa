"""The process of an engine core: `python -m deployments.engine_process`, which a replica starts (see `deployments.core`).

Everything of vLLM's that an engine needs is imported and made here, and nothing of it in the replica. The process ends with the
one that started it, whose end of standard input it keeps open.
"""

import contextlib
import os
import pickle
import sys
import threading
from typing import Any

import psutil
from prometheus_client import generate_latest

from deployments.cores import take_all
from deployments.garbage import no_collecting

IMPORTED, CONFIGURED, FAILED = b"i", b"c", b"f"
"""What it writes to the pipe that it is given, when it is so far. What has failed follows."""


def main(said: int) -> None:
    """Run an engine core until it is told to end. `said` is the pipe's file descriptor."""
    os.set_inheritable(said, False)
    take_all()
    try:
        _run(said)
    except Exception as error:
        os.write(said, FAILED + f"{type(error).__name__}: {error}".encode())
        raise


def _run(said: int) -> None:
    with no_collecting():
        import vllm.v1.engine.core
        import vllm.v1.executor  # noqa: F401
        from vllm.utils.numa_utils import configure_subprocess
        from vllm.utils.system_utils import get_mp_context

    os.write(said, IMPORTED)
    settings, handshake_address = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_the_replica, daemon=True).start()

    from deployments.engine import engine_config, server_arguments

    config = engine_config(server_arguments(settings))
    os.write(said, CONFIGURED)
    if not config.parallel_config.numa_bind:
        _serve(config, handshake_address)
        return
    with configure_subprocess(config, local_rank=0, process_kind="EngineCore"):  # vLLM binds what it starts, not what runs
        process = get_mp_context().Process(target=_serve, args=(config, handshake_address), name="EngineCore")
        process.start()
    process.join()
    sys.exit(process.exitcode)


def _serve(config: Any, handshake_address: str) -> None:
    from vllm.v1.engine.core import EngineCoreProc
    from vllm.v1.executor import Executor

    EngineCoreProc.satori_gauges = _gauges(config)
    EngineCoreProc.run_engine_core(
        vllm_config=config,
        local_client=True,
        handshake_address=handshake_address,
        executor_class=Executor.get_class(config),
        log_stats=True,
        tensor_queue=None,
    )


def _end_with_the_replica() -> None:
    """Wait until the replica is gone, however it ended; then end at once, with all the processes started from here."""
    sys.stdin.buffer.read()
    kill(os.getpid())


def kill(pid: int) -> None:
    """Kill a process, an engine's for one, and all that it has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        engine = psutil.Process(pid)
        for process in (*engine.children(recursive=True), engine):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _gauges(config: Any) -> Any:
    """Return a utility call of the engine: its gauges in Prometheus' text format, for its rank and its latest statistics."""
    import msgspec
    from vllm.v1.metrics.stats import SchedulerStats

    from deployments.vllm_metrics import EngineGauges

    rank, latest = 0, SchedulerStats()
    registry: Any = EngineGauges(config, lambda: rank, lambda: latest)

    def gauges(self: Any, engine: int, stats: dict[str, Any] | None) -> str:
        nonlocal rank, latest
        rank, latest = engine, msgspec.convert(stats or {}, SchedulerStats)
        return generate_latest(registry).decode()

    return gauges


if __name__ == "__main__":
    main(int(sys.argv[1]))
