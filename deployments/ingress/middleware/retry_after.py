"""The header `retry-after` in every temporary refusal."""

import math
from collections.abc import Awaitable, Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LONGEST_S = 60


class RetryAfter:
    """ASGI middleware that adds `retry-after` to temporary refusals (429, 503) that do not have it yet.

    It is half the time that recent requests took, in whole seconds from 1 to 60: by then many of the ongoing requests have ended.
    """

    def __init__(self, app: ASGIApp, pace_s: Callable[[], float]) -> None:
        self._app = app
        self._pace_s = pace_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        def send_with_header(message: Message) -> Awaitable[None]:  # no coroutine of its own, because it runs for every token
            if message["type"] == "http.response.start" and message["status"] in (429, 503):
                seconds = min(LONGEST_S, max(1, math.ceil(self._pace_s() / 2)))
                MutableHeaders(scope=message).setdefault("retry-after", str(seconds))
            return send(message)

        await self._app(scope, receive, send_with_header if scope["type"] == "http" else send)
