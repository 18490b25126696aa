"""Bounds on request bodies: on each one, on all that this process holds, and on their content (`deployments.ingress.bounds`)."""

import asyncio

from starlette._utils import get_route_path  # the path that starlette's own router matches
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import BodyTimeoutError, OverloadedError, RequestTooLargeError, SatoriError
from deployments.ingress import bounds
from deployments.settings import HttpSettings

BODY_S = 60.0
"""Seconds in which a body must have arrived."""
LARGEST_OF_UI_BYTES = 16 * 2**20
"""The largest request of the page, with a whole conversation in it."""
STREAMED = "/v1/files"
"""The route that reads its bodies itself, as they come, and has bounds of its own."""


class BodyLimit:
    """ASGI middleware that reads a request's body before the application does, and refuses it as soon as it is too large.

    Bytes count from when they arrive, so a client that only announces them holds none. They count until the response ends, because
    the server keeps the body until then. A body has `BODY_S` to arrive; HAProxy has waited for what fits into its buffer. What
    the UI's page sends may be larger, counts like all else, and is not read here.
    """

    def __init__(self, app: ASGIApp, settings: HttpSettings) -> None:
        self._app = app
        self._choices = settings.max_choices
        self._max_body_bytes = settings.max_body_bytes
        self._max_held_bytes = settings.max_bodies_bytes
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or get_route_path(scope) == STREAMED:
            await self._app(scope, receive, send)
            return
        of_page = get_route_path(scope).startswith("/ui/")
        body = _Body(self, max(LARGEST_OF_UI_BYTES, self._max_body_bytes) if of_page else self._max_body_bytes)
        try:
            headers = Headers(scope=scope)
            await body.read(receive, headers.get("content-length", ""))
            if scope["method"] == "POST" and not of_page:
                body.check(headers, self._choices, get_route_path(scope))
            await self._app(scope, body.replayed(receive), send)
        except _Refused as refused:
            retry = {"Retry-After": "1"} if refused.error.retryable else {}
            await JSONResponse(refused.error.body(), refused.error.status, retry)(scope, receive, send)
        finally:
            self._held -= body.size

    def hold(self, size: int, total: int, most: int) -> None:
        """Count `size` more bytes of a body that then has `total`, and may have `most`. Raises _Refused when they are too many."""
        self._held += size
        if total > most:
            name = "http.max_body_bytes" if most == self._max_body_bytes else "the most that the page sends"
            raise _Refused(RequestTooLargeError(f"the request's body is larger than {most} bytes ({name})"))
        if self._held > self._max_held_bytes:
            raise _Refused(OverloadedError("the server cannot hold more bytes of requests now; try again in a moment"))


class _Refused(Exception):  # noqa: N818
    """A body is refused. Only this module raises it, so that no error of the application is mistaken for one."""

    def __init__(self, error: SatoriError) -> None:
        self.error = error


class _Body:
    """One request's body, as the messages in which it arrived."""

    def __init__(self, limit: BodyLimit, most: int) -> None:
        self._limit = limit
        self._most = most
        self._messages: list[Message] = []
        self.size = 0

    async def read(self, receive: Receive, announced: str) -> None:
        if announced.isdecimal():
            self._limit.hold(0, int(announced[:20]), self._most)
        if self._take(await receive()):
            return
        try:
            async with asyncio.timeout(BODY_S):
                while not self._take(await receive()):
                    pass
        except TimeoutError:
            message = f"the request's body has not arrived within {BODY_S:g} s ({self.size} bytes have)"
            raise _Refused(BodyTimeoutError(message)) from None

    def _take(self, message: Message) -> bool:
        """Keep a message; return whether the body is complete."""
        self._messages.append(message)
        size = len(message.get("body", b""))
        self.size += size
        self._limit.hold(size, self.size, self._most)
        return not message.get("more_body", False)

    def check(self, headers: Headers, choices: int, path: str) -> None:
        try:
            bounds.check(b"".join(message.get("body", b"") for message in self._messages), headers, choices, path)
        except SatoriError as error:
            raise _Refused(error) from None

    def replayed(self, receive: Receive) -> Receive:
        messages = iter(self._messages)
        self._messages = []

        async def replay() -> Message:
            return next(messages, None) or await receive()

        return replay
