"""Requests that come from this process: they go the way of clients' requests, without what is for connections alone."""

import asyncio
import contextvars
import time
import uuid
from dataclasses import dataclass

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Scope

from deployments.access.usage import client, deferrable
from deployments.ingress.error_handlers import Misread
from deployments.ingress.middleware.body import BodyLimit
from deployments.observability import logs, record
from deployments.observability.writer import Writer
from deployments.settings import HttpSettings

logger = logs.logger("ingress")
GONE_S = 10.0
"""How long a request may take to end when nobody waits for it any more."""


@dataclass(frozen=True)
class Answer:
    """What a request came to."""

    request_id: str
    status: int
    body: bytes


class Inner:
    """The app, for requests from this process. Their tokens are counted by `writer`, if there is one."""

    def __init__(self, app: FastAPI, http: HttpSettings, writer: Writer | None = None) -> None:
        self._app, self._http, self._writer = app, http, writer
        self._asgi: ASGIApp | None = None

    async def ask(self, path: str, body: bytes, owner: str, measured: record.Record, gone: asyncio.Event) -> Answer:
        """Return the answer to a POST request of a key's. With `gone`, it is ended as if its client had left."""
        context = contextvars.Context()
        context.run(client.set, owner)
        context.run(deferrable.set, True)
        context.run(record.current.set, measured)
        request = _Request(path, body, gone)
        task = asyncio.get_running_loop().create_task(request.serve(self._stack(), self._app), context=context)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            gone.set()
            await asyncio.wait([task], timeout=GONE_S)
            task.cancel()
            raise
        finally:
            measured.status, measured.complete, measured.ended = request.status, not gone.is_set(), time.monotonic()
            if self._writer is not None:
                self._writer.count(measured)
        return Answer(request.id, request.status, b"".join(request.parts))

    def _stack(self) -> ASGIApp:
        """Return the app with the middleware that these requests need. Routes that are added later are in it, too."""
        if self._asgi is None:
            theirs = self._app.user_middleware
            self._app.user_middleware = [Middleware(BodyLimit, settings=self._http), Middleware(Misread)]
            try:
                self._asgi = self._app.build_middleware_stack()
            finally:
                self._app.user_middleware = theirs
        return self._asgi


class _Request:
    def __init__(self, path: str, body: bytes, gone: asyncio.Event) -> None:
        self.id = f"req_{uuid.uuid4().hex}"
        self.status, self.parts = 500, list[bytes]()
        self._path, self._body, self._gone = path, body, gone
        self._read = False

    async def serve(self, asgi: ASGIApp, app: FastAPI) -> None:
        headers = {"host": "localhost", "content-type": "application/json", "x-request-id": self.id}
        headers["content-length"] = str(len(self._body))
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": self._path,
            "raw_path": self._path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": None,
            "server": None,
            "state": {},
            "app": app,
        }
        try:
            await asgi(scope, self._receive, self._send)
        except Exception as error:  # a border: the app has answered with status 500 before
            logger.error("request %s failed: %r", self.id, error)

    async def _receive(self) -> Message:
        if not self._read:
            self._read = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.parts.append(message.get("body", b""))
