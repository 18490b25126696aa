"""The engine's process: what the processes that it forks inherit."""

import subprocess
import sys
import textwrap

from tests.support.paths import ROOT


def test_a_forked_worker_does_not_wait_for_the_thread_that_watches_the_replica() -> None:
    engine = """
        import multiprocessing, os, threading, time
        from deployments.engine.process import _end_with_the_replica

        watching = threading.Thread(target=_end_with_the_replica, daemon=True)
        watching.start()
        while open(f"/proc/self/task/{watching.native_id}/syscall").read().split()[:2] != ["0", "0x0"]:  # it reads standard input
            time.sleep(0.01)
        worker = multiprocessing.get_context("fork").Process(target=print, args=("the worker runs",))
        worker.start()
        worker.join(30)
        os._exit(worker.exitcode is None)
    """
    command = [sys.executable, "-c", textwrap.dedent(engine)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.wait(60) == 0, "the worker hangs where it closes its standard input"
        assert process.stdout is not None
        assert process.stdout.read() == "the worker runs\n"
