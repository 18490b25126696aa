"""Response headers for what is in between: when a client may try again, and that proxies pass event streams on as they come."""

import math
from collections.abc import Awaitable, Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LONGEST_S = 60
STREAMED = (
    ("cache-control", "no-cache, no-transform"),
    # nginx buffers responses.
    ("x-accel-buffering", "no"),
    # With `encode gzip`, Caddy 2.6 holds a stream until its end if its first piece has more than 512 bytes; what has an encoding,
    # it leaves as it is.
    ("content-encoding", "identity"),
)


class ResponseHeaders:
    """ASGI middleware that adds headers which the application has not set.

    Temporary refusals (429, 503) get `retry-after`: half the time that recent requests took, in whole seconds from 1 to 60; by then
    many of the ongoing requests have ended. Event streams get `STREAMED`.
    """

    def __init__(self, app: ASGIApp, pace_s: Callable[[], float]) -> None:
        self._app = app
        self._pace_s = pace_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        def send_with_headers(message: Message) -> Awaitable[None]:  # no coroutine of its own, because it runs for every token
            if message["type"] == "http.response.start":
                self._add(message)
            return send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)

    def _add(self, start: Message) -> None:
        headers = MutableHeaders(scope=start)
        if start["status"] in (429, 503):
            headers.setdefault("retry-after", str(min(LONGEST_S, max(1, math.ceil(self._pace_s() / 2)))))
        if headers.get("content-type", "").startswith("text/event-stream"):
            for name, value in STREAMED:
                headers.setdefault(name, value)
