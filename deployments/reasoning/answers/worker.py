"""The process that compares answers, or checks grammars: `python -m deployments.reasoning.answers.worker MODULE SECONDS`.

It calls the `load` of the module once (that of `deployments.reasoning.equality` imports SymPy), and does no work itself: a child,
forked from it within milliseconds, calls the module's functions for one request after the other. A child that takes more than these
seconds, or more CPU or memory than it may, is killed, and a new one is there for the next request.

Requests come on standard input and are answered on standard output, each in a frame (`deployments.reasoning.answers.frames`): a
list of the function's name and its arguments, then `["done", VALUE]` or `["failed", WHY]`. The first frame that is sent is
`["ready"]`.

The process ends with its standard input, with the process that started it, and when nothing was asked for a while.
"""

import contextlib
import ctypes
import gc
import importlib
import os
import resource
import select
import signal
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from deployments.reasoning.answers import frames

CPU_S = 0.5
"""Seconds of CPU that a request may take, also if the process that waits for it does not run itself."""
MEMORY_BYTES = 512 << 20
"""Memory that children may take beyond what is there when they begin."""
IDLE_S = 300.0
"""Seconds without a request after which the process ends; the next request starts another one."""
PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve requests until standard input ends."""
    end_with(os.getppid())
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # whoever streams tokens comes first
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the process that started this one
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    functions = importlib.import_module(sys.argv[1])
    functions.load()
    gc.collect()
    gc.freeze()  # so that children share its pages
    with contextlib.suppress(BrokenPipeError):
        serve(sys.stdin.fileno(), sys.stdout.fileno(), functions, float(sys.argv[2]))


def end_with(parent: int) -> None:
    """Have this process killed when its parent ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def serve(requests: int, answers: int, functions: ModuleType, wall_s: float) -> None:
    """Have children answer the requests, each within `wall_s`."""
    child = Child(functions, [requests, answers])
    frames.send(answers, frames.READY)
    while select.select([requests], [], [], IDLE_S)[0]:
        request = frames.receive(requests)
        if request is None:
            break
        answer = child.ask(request, wall_s)
        frames.send(answers, answer)
        if answer[0] == "failed":
            child.end()
            child = Child(functions, [requests, answers])
    child.end()


class Child:
    """A forked process that answers requests. `closed` are the file descriptors that are not for it."""

    def __init__(self, functions: ModuleType, closed: list[int]) -> None:
        self._socket, other = socket.socketpair()
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            self._socket.close()
            for descriptor in closed:
                os.close(descriptor)
            _answer(other.fileno(), functions, parent)
        other.close()
        frames.receive(self._socket.fileno())  # frames.READY, or its end, which the next request finds out

    def ask(self, request: list[Any], wall_s: float) -> list[Any]:
        """Return the answer; `["failed", WHY]` after `wall_s` or when the child has died."""
        with contextlib.suppress(ConnectionError):
            frames.send(self._socket.fileno(), request)
            if not select.select([self._socket], [], [], wall_s)[0]:
                return ["failed", f"not done after {wall_s} s"]
            if (answer := frames.receive(self._socket.fileno())) is not None:
                return answer
        return ["failed", "its process died"]

    def end(self) -> None:
        """Kill the child."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._socket.close()


def _answer(descriptor: int, functions: ModuleType, parent: int) -> None:
    """Be a child: answer requests, within the limits, until the parent ends."""
    status = 1
    try:
        end_with(parent)
        used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used_bytes + MEMORY_BYTES,) * 2)
        frames.send(descriptor, frames.READY)
        while (request := frames.receive(descriptor)) is not None:
            signal.setitimer(signal.ITIMER_PROF, CPU_S)  # its signal kills
            cpu_s = int(sum(os.times()[:2]) + CPU_S) + 2  # a limit that no code of the process can lift, in whole seconds
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, resource.RLIM_INFINITY))
            try:
                answer = ["done", getattr(functions, request[0])(*request[1:])]
            except Exception as error:  # the border of a process: whatever an answer brings about stays here
                answer = ["failed", f"{type(error).__name__}: {error}"[:200]]
            signal.setitimer(signal.ITIMER_PROF, 0)
            frames.send(descriptor, answer)
        status = 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
