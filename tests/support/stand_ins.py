"""Harmless stand-ins for the comparison of answers that take for ever: functions that do what such a comparison might do."""

import os
import signal
import time
from typing import NoReturn


def load() -> None:
    """Import nothing."""


def give(value: int) -> int:
    """Return the value."""
    return value


def pids() -> list[int]:
    """Return the process's id and its parent's."""
    return [os.getpid(), os.getppid()]


def sleep(seconds: float) -> None:
    """Wait without CPU."""
    time.sleep(seconds)


def spin(seconds: float) -> None:
    """Take seconds of CPU."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def allocate(size: int) -> int:
    """Allocate some bytes for a moment; return how many."""
    return len(bytearray(size))


def die() -> None:
    """Be killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail(message: str) -> NoReturn:
    """Raise an error."""
    raise ValueError(message)


def key(answer: str) -> str:
    """Do what an answer of one of these names says; the key of any other is its text."""
    if answer == "sleep":
        sleep(600)
    if answer == "allocate":
        allocate(1 << 40)
    if answer == "die":
        die()
    return answer
