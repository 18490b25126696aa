"""Comments in idle event streams, so that no proxy or client gives up a stream whose request waits for a replica.

vLLM has such comments, too (`--sse-keep-alive-interval`), at the cost of a task for every chunk; here an idle stream costs a timer.
"""

import asyncio
import time
from collections.abc import Awaitable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.ingress import outlet

COMMENT = b": keep-alive\n\n"
INTERVAL_S = 15.0


class KeepAlive:
    """ASGI middleware that sends a comment whenever an event stream has been idle for `interval_s`."""

    def __init__(self, app: ASGIApp, interval_s: float = INTERVAL_S) -> None:
        self._app = app
        self._interval_s = interval_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        stream = _Stream(send, self._interval_s)
        try:
            await self._app(scope, receive, stream.send)
        finally:
            stream.end()


class _Stream:
    """One response."""

    def __init__(self, send: Send, interval_s: float) -> None:
        self._send = send
        self._interval_s = interval_s
        self._loop = asyncio.get_running_loop()
        self._last = 0.0  # when a message was sent, by the monotonic clock
        self._outlet = outlet.of_client()
        self._timer: asyncio.TimerHandle | None = None
        self._comment: asyncio.Task[None] | None = None

    def send(self, message: Message) -> Awaitable[None]:
        """Send a message of the application. It is no coroutine of its own, because it runs for every token."""
        self._last = time.monotonic()
        if message["type"] == "http.response.start":
            if Headers(raw=message["headers"]).get("content-type", "").startswith("text/event-stream"):
                self._timer = self._loop.call_later(self._interval_s, self._check_idle)
        elif not message.get("more_body"):
            self.end()
        return self._send(message) if self._comment is None else self._send_after(self._comment, message)

    async def _send_after(self, comment: Awaitable[None], message: Message) -> None:
        await comment
        await self._send(message)

    def end(self) -> None:
        """Send no more comments."""
        if self._timer is not None:
            self._timer.cancel()

    def _check_idle(self) -> None:
        idle = time.monotonic() - outlet.last_event(self._outlet, self._last)
        if idle >= self._interval_s:
            self._comment = self._loop.create_task(self._send_comment())
            idle = 0.0
        self._timer = self._loop.call_later(self._interval_s - idle, self._check_idle)

    async def _send_comment(self) -> None:
        await self._send({"type": "http.response.body", "body": COMMENT, "more_body": True})
        self._last = time.monotonic()
        self._comment = None
