"""Measures each API request: makes its record, and watches its response go out."""

import json
import time
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.ingress.middleware.keepalive import COMMENT
from deployments.observability.record import Record, current
from deployments.observability.writer import Writer

if TYPE_CHECKING:  # its import takes a while, and few installations trace
    from deployments.observability.tracing import Tracer

ERROR_BYTES = 65536


class Measuring:
    """ASGI middleware that keeps the record of each API request."""

    def __init__(self, app: ASGIApp, writer: Writer, tracer: "Tracer | None" = None) -> None:
        self._app = app
        self._writer = writer
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"].startswith("/ui"):
            await self._app(scope, receive, send)
            return
        record = Record(time.monotonic())
        token = current.set(record)
        try:
            await self._app(scope, receive, _watched(record, send))
        finally:
            current.reset(token)
            record.ended = time.monotonic()
            self._writer.write(record)
            if self._tracer is not None:
                self._tracer.write(record, scope["path"], Headers(scope=scope))


def _watched(record: Record, send: Send) -> Send:
    """Return a `send` that records what goes out. It is no coroutine of its own, because it runs for every token."""
    now, sent = time.monotonic, record.sent

    def watching(message: Message) -> Any:
        if message["type"] == "http.response.body":
            if record.streams:
                if message.get("body") is not COMMENT:
                    sent.append(now())
            elif record.status >= 400 and not record.error:
                record.error = _code(message.get("body", b""))
            if not message.get("more_body"):
                record.complete = True
        elif message["type"] == "http.response.start":
            record.status = message["status"]
            record.streams = Headers(raw=message["headers"]).get("content-type", "").startswith("text/event-stream")
        return send(message)

    return watching


def _code(body: bytes) -> str:
    """Return the code in an error's body, or "" if there is none."""
    if len(body) > ERROR_BYTES:
        return ""
    try:
        code = json.loads(body)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return ""
    return str(code)
