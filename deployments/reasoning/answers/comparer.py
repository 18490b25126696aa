"""Keys of answers from a process of their own, which no answer can stop (`deployments.reasoning.answers.worker`).

What that process does not decide in time is compared as text. It starts with the first vote, and again when it has died.
"""

import asyncio
import contextlib
import logging
import os
import select
import subprocess
import sys
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from deployments.reasoning.answers import frames
from deployments.reasoning.answers.written import text_key

log = logging.getLogger(__name__)

WORKER = "deployments.reasoning.answers.worker"
EQUALITY = "deployments.reasoning.equality"
"""The module whose functions it calls."""
WALL_S = 0.5
"""Seconds that a request may take."""
START_S = 60.0
"""Seconds that the process may take to start."""
GRACE_S = 5.0
"""Seconds beyond its own limit after which it is taken for dead."""
PAUSE_S = 10.0
"""Seconds without another start after one that failed."""
QUEUE = 256
"""Answers that may wait at a time; more are compared as text."""
KEPT = 4096
"""Keys that are remembered."""


class Undecided(Exception):  # noqa: N818
    """A request was not answered. The message says why."""


class NotStarted(Undecided):
    """There is no process that could answer."""


class Process:
    """The worker process, started when it is first asked. Not for several threads at a time."""

    def __init__(self, module: str = EQUALITY, wall_s: float = WALL_S) -> None:
        self._command = [sys.executable, "-m", WORKER, module, str(wall_s)]
        self._answer_s = wall_s + GRACE_S
        self._process: subprocess.Popen[bytes] | None = None
        self._paused_until = 0.0

    @property
    def pid(self) -> int | None:
        """The process's id; None while there is none."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process if it does not run. Raises Undecided."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        if time.monotonic() < self._paused_until:
            raise NotStarted("the process has just failed to start")
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        if self._receive(START_S) != frames.READY:
            self.close()
            self._paused_until = time.monotonic() + PAUSE_S
            raise NotStarted("the process did not start")

    def ask(self, function: str, *arguments: Any) -> Any:
        """Return what a function of the module returns for these arguments. Raises Undecided."""
        request = [function, *arguments]
        for last in (False, True):  # one that has ended meanwhile is started again, once
            self.start()
            assert self._process is not None
            assert self._process.stdin is not None
            answer = None
            with contextlib.suppress(OSError):
                frames.send(self._process.stdin.fileno(), request)
                answer = self._receive(self._answer_s)
            if answer is not None:
                if answer[0] == "done":
                    return answer[1]
                raise Undecided(answer[1])
            self.close()
            if last:
                break
        raise Undecided("the process died")

    def close(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _receive(self, seconds: float) -> list[Any] | None:
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        return frames.receive(self._process.stdout.fileno()) if ready else None


class Comparer:
    """Gives keys to the votes of an ingress, one at a time, without holding up its event loop."""

    def __init__(self, process: Process | None = None) -> None:
        self._process = process or Process()
        self._thread = ThreadPoolExecutor(1, "comparer")
        self._waiting = 0
        self._kept: OrderedDict[str, str] = OrderedDict()

    def prepare(self) -> None:
        """Start the process in the background, so that it is there when a vote's first answer is."""
        self._thread.submit(self._start)

    async def key(self, answer: str) -> str:
        """Return what equal answers share. It is the text where the answer is not read in time."""
        if (kept := self._kept.get(answer)) is not None:
            self._kept.move_to_end(answer)
            return kept
        if self._waiting >= QUEUE:
            log.warning("%d answers wait to be compared; one more is compared as text", self._waiting)
            return text_key(answer)
        self._waiting += 1
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._thread, self._process.ask, "key", answer)
        except Undecided as error:
            log.warning("an answer of %d characters is compared as text: %s", len(answer), error)
            return text_key(answer)
        finally:
            self._waiting -= 1
        self._kept[answer] = found
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return str(found)

    def close(self) -> None:
        """End the process."""
        self._thread.submit(self._process.close)
        self._thread.shutdown()

    def _start(self) -> None:
        with contextlib.suppress(Undecided):
            self._process.start()
