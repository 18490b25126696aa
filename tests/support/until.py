"""Waiting for a condition: with a bound, and with an error that says what was waited for."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

TIMEOUT_S = 30.0
EVERY_S = 0.01


def until(
    condition: Callable[[], T],
    what: str,
    timeout_s: float = TIMEOUT_S,
    *,
    holds: Callable[[T], object] = bool,
    every_s: float = EVERY_S,
    pause: Callable[[float], object] = time.sleep,
) -> T:
    """Return the first value of `condition` for which `holds` is true. It is called every `every_s`.

    Raises AssertionError after `timeout_s`, which says `what` was waited for and shows the last value. `pause` waits some seconds.
    """
    deadline = time.monotonic() + timeout_s
    while not holds(value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(_message(what, timeout_s, value))
        pause(every_s)
    return value


async def until_async(
    condition: Callable[[], T | Awaitable[T]],
    what: str,
    timeout_s: float = TIMEOUT_S,
    *,
    holds: Callable[[T], object] = bool,
    every_s: float = EVERY_S,
) -> T:
    """Return what `until` returns, while other tasks run. `condition` may be a coroutine function; one that hangs is cancelled."""
    value: T | str = "nothing yet"
    try:
        async with asyncio.timeout(timeout_s) as bound:
            while True:
                found = condition()
                value = await found if inspect.isawaitable(found) else found
                if holds(value):
                    return value
                await asyncio.sleep(every_s)
    except TimeoutError:
        if not bound.expired():
            raise
        raise AssertionError(_message(what, timeout_s, value)) from None


def _message(what: str, timeout_s: float, value: object) -> str:
    return f"waited {timeout_s:g} s for: {what}; last seen: {value!r}"
