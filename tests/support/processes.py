"""Processes that tests start, and what they print."""

import subprocess
import threading

from deployments.engine.process import kill


def output_until(process: subprocess.Popen[str], words: str, timeout_s: float) -> str:
    """Read a process's standard output up to the line with `words`; return it with that line.

    Raises AssertionError, with the output, when the process ends before or `timeout_s` is over; it is killed then, with all that
    it started.
    """
    assert process.stdout is not None
    clock = threading.Timer(timeout_s, kill, [process.pid])
    clock.start()
    output = ""
    try:
        for line in process.stdout:
            output += line
            if words in line:
                return output
    finally:
        clock.cancel()
    raise AssertionError(f"no {words!r} within {timeout_s:g} s or before the end of {process.args}:\n{output}")
