"""Deadlines: a request with the header `x-request-timeout-s` ends after so many seconds, and its engine work ends with it."""

import asyncio
import json
import math
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import error_body
from deployments.ingress import outlet
from deployments.observability.record import failed

HEADER = "x-request-timeout-s"


class Deadline:
    """ASGI middleware. A late request gets status 504, or the error as an event if its stream has begun."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        given = Headers(scope=scope).get(HEADER) if scope["type"] == "http" else None
        if given is None:
            await self._app(scope, receive, send)
            return
        seconds = math.nan
        with suppress(ValueError):
            seconds = float(given)
        if not 0 < seconds < math.inf:
            message = f"{HEADER}={given!r}: allowed: a number of seconds greater than 0"
            await JSONResponse(error_body(message, "BadRequestError", 400, HEADER), 400)(scope, receive, send)
            return
        await _Timed(receive, send, seconds).serve(self._app, scope)


class _Timed:
    """One request. When its time is over, the application is told that the client has gone, and so ends its work."""

    def __init__(self, receive: Receive, send: Send, seconds: float) -> None:
        self._receive, self._send, self._seconds = receive, send, seconds
        self._outlet = outlet.of_client()
        self._over = asyncio.Event()
        self._started: str | None = None
        self._finished = False

    async def serve(self, app: ASGIApp, scope: Scope) -> None:
        timer = asyncio.get_running_loop().call_later(self._seconds, self._end)
        try:
            await app(scope, self._receive_in_time, self._send_in_time)
        finally:
            timer.cancel()
        if not self._over.is_set() or self._finished:
            return
        failed("deadline_exceeded")
        error = error_body(f"the request was not finished within {self._seconds:g} s", "DeadlineExceededError", 504, HEADER)
        if self._started is None:
            await JSONResponse(error, 504)(scope, self._receive, self._send)
            return
        event = f"data: {json.dumps(error)}\n\ndata: [DONE]\n\n" if self._started.startswith("text/event-stream") else ""
        await self._send({"type": "http.response.body", "body": event.encode(), "more_body": False})

    def _end(self) -> None:
        self._over.set()
        if self._outlet is not None:
            self._outlet.closed = True

    async def _receive_in_time(self) -> Message:
        receiving = asyncio.ensure_future(self._receive())
        over = asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait((receiving, over), return_when=asyncio.FIRST_COMPLETED)
            return receiving.result() if receiving.done() else {"type": "http.disconnect"}
        finally:
            receiving.cancel()
            over.cancel()

    async def _send_in_time(self, message: Message) -> None:
        if self._over.is_set():
            return  # the application sends it to a client that it believes gone
        if message["type"] == "http.response.start":
            self._started = Headers(raw=message["headers"]).get("content-type", "")
        self._finished = message["type"] == "http.response.body" and not message.get("more_body")
        await self._send(message)
