"""Where a response goes out: the uvicorn connection of a request, to which an event of its stream can be written at once.

An ASGI message passes every middleware and then uvicorn's `send`: ten calls and as many coroutines for each token. An event that is
written here passes none of them. What they need to know of it, they read from the outlet: the keep-alive comments when it was
written, the Responses API how many there were; and a deadline closes it.

There is no outlet where the request came another way, such as through Serve's own proxy, or where uvicorn is not as expected
(0.54.0, its protocol on httptools). Its version is pinned, because what is read here is its own.
"""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from deployments.observability import logs
from deployments.patching import patch

logger = logs.logger("ingress")
EXPECTED = ("transport", "flow", "disconnected", "response_started", "response_complete", "chunked_encoding", "scope")
"""What is read of uvicorn's `RequestResponseCycle`."""


class Outlet:
    """The connection of one request. `last` is when an event was last written, by the monotonic clock; `events` counts them.

    When `closed`, it takes no more.
    """

    __slots__ = ("_cycle", "_flow", "_loop", "_write", "closed", "events", "last")

    def __init__(self, cycle: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._cycle, self._flow, self._loop = cycle, cycle.flow, loop
        self._write = cycle.transport.write
        self.closed = False
        self.last = 0.0
        self.events = 0

    def here(self) -> bool:
        """Return whether the connection belongs to the running event loop: from another one, nothing may be written."""
        return self._loop is asyncio.get_running_loop()

    def ready(self) -> bool:
        """Return whether an event can go out now: the response is an open stream, and its client reads."""
        cycle = self._cycle
        return bool(
            cycle.response_started
            and cycle.chunked_encoding
            and not (cycle.disconnected or cycle.response_complete or self._flow.write_paused or self.closed)
        )

    def write(self, event: bytes, now: float) -> None:
        """Write an event, as one chunk of the response. Call it only when `ready`."""
        self._write(b"%x\r\n%b\r\n" % (len(event), event))
        self.last = now
        self.events += 1


class StoredOutlet:
    """Where the events of a stored reply go, which may have no client: `write` takes them, each at once."""

    def __init__(self, write: Callable[[bytes, float], None]) -> None:
        self.write = write

    def here(self) -> bool:
        """Return that it belongs to the running event loop: stored replies are made in the server's."""
        return True

    def ready(self) -> bool:
        """Return that it takes events at any time."""
        return True


current: ContextVar[Outlet | StoredOutlet | None] = ContextVar("current", default=None)
"""The outlet of the request that is being served, or of the stored reply that is being made."""


def of_client() -> Outlet | None:
    """Return the connection of the request that is being served, if it has an outlet."""
    outlet = current.get()
    return outlet if isinstance(outlet, Outlet) else None


def last_event(outlet: Outlet | None, sent: float) -> float:
    """Return when a stream's last event went out, either way; `sent` is when it was sent as a message."""
    return sent if outlet is None else max(sent, outlet.last)


def install() -> None:
    """Have requests that come by uvicorn find their outlet, in this process. Does nothing the second time."""
    try:
        from uvicorn.protocols.http import httptools_impl
    except ImportError:
        logger.warning("uvicorn has no protocol on httptools: streams take the way of all responses")
        return
    cycles = httptools_impl.RequestResponseCycle
    if getattr(cycles.run_asgi, "satori_installed", False):
        return

    async def run_asgi(self: Any, app: Any) -> None:
        if all(hasattr(self, name) for name in EXPECTED) and hasattr(self.flow, "write_paused"):
            current.set(Outlet(self, asyncio.get_running_loop()))
        await original(self, app)

    run_asgi.satori_installed = True  # type: ignore[attr-defined]
    original = patch(
        cycles,
        "run_asgi",
        run_asgi,
        why="uvicorn 0.54.0 gives an application no way to write to its connection but a coroutine a message",
        until="it has one, or streams no longer need it",
    )
