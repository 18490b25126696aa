"""Bounds on request bodies: on each one, on all that this process holds at a time, and on what they say (`deployments.bounds`)."""

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments import bounds
from deployments.errors import OverloadedError, RequestTooLargeError, SatoriError
from deployments.settings import HttpSettings


class BodyLimit:
    """ASGI middleware that reads a request's body before the application does, and refuses one that is too large on the way.

    Bytes count as they come, so a client that only announces them holds none; and until the response ends, as the server keeps
    the body so long. The UI has a limit of its own (`deployments.bridge`).
    """

    def __init__(self, app: ASGIApp, settings: HttpSettings) -> None:
        self._app = app
        self._choices = settings.max_choices
        self._most = settings.max_body_bytes
        self._most_together = settings.max_bodies_bytes
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"].startswith("/ui"):
            await self._app(scope, receive, send)
            return
        body = _Body(self)
        try:
            headers = Headers(scope=scope)
            await body.read(receive, headers.get("content-length", ""))
            if scope["method"] == "POST":
                body.check(headers, self._choices)
            await self._app(scope, body.replayed(receive), send)
        except _Refused as refused:
            retry = {"Retry-After": "1"} if refused.error.retryable else {}
            anthropic = {"type": "error"} if scope["path"].startswith("/v1/messages") else {}
            await JSONResponse(anthropic | refused.error.body(), refused.error.status, retry)(scope, receive, send)
        finally:
            self._held -= body.size

    def hold(self, size: int, of: int) -> None:
        """Count `size` more bytes of a body that then has `of`; raises _Refused where they are too many."""
        self._held += size
        if of > self._most:
            raise _Refused(RequestTooLargeError(f"the request's body is larger than {self._most} bytes (http.max_body_bytes)"))
        if self._held > self._most_together:
            raise _Refused(OverloadedError("the server holds as many bytes of requests as it may; try again in a moment"))


class _Refused(Exception):  # noqa: N818
    """A body is not taken. Of this module alone, so that no error of the application's is mistaken for one."""

    def __init__(self, error: SatoriError) -> None:
        self.error = error


class _Body:
    """One request's body, as the messages it came in."""

    def __init__(self, limit: BodyLimit) -> None:
        self._limit = limit
        self._messages: list[Message] = []
        self.size = 0

    async def read(self, receive: Receive, announced: str) -> None:
        if announced.isdecimal():
            self._limit.hold(0, int(announced[:20]))
        more = True
        while more:
            message = await receive()
            self._messages.append(message)
            size = len(message.get("body", b""))
            self.size += size
            self._limit.hold(size, self.size)
            more = message.get("more_body", False)

    def check(self, headers: Headers, choices: int) -> None:
        try:
            bounds.check(b"".join(message.get("body", b"") for message in self._messages), headers, choices)
        except SatoriError as error:
            raise _Refused(error) from None

    def replayed(self, receive: Receive) -> Receive:
        messages = iter(self._messages)
        self._messages = []

        async def replay() -> Message:
            return next(messages, None) or await receive()

        return replay
