"""The web UI's way through the ingress: requests below /ui go to a UI replica by a Serve handle, and its responses stream back.

A browser stays on one UI replica, because Gradio keeps its sessions in memory. A cookie names the session, by which the router (see
`deployments.routing.router.StickyRouter`) chooses the replica.
"""

import asyncio
import secrets
from http.cookies import SimpleCookie
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException, RequestCancelledError
from ray.serve.handle import DeploymentHandle
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

COOKIE = "satori_session"
LARGEST_BODY_BYTES = 16 * 2**20
PASSED = ("type", "http_version", "method", "scheme", "raw_path", "query_string", "headers", "client", "server")


class BodyTooLargeError(Exception):
    """A request to the UI is larger than any that the UI itself sends."""


class UIBridge:
    """An ASGI app that passes requests on to the UI replica's app. HTTP only: Gradio needs no web sockets."""

    def __init__(self, ui: DeploymentHandle) -> None:
        self._ui = ui.options(stream=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        try:
            body = await _body(receive)
        except BodyTooLargeError:
            await PlainTextResponse(f"larger than {LARGEST_BODY_BYTES} bytes", 413)(scope, receive, send)
            return
        known = HTTPConnection(scope).cookies.get(COOKIE)
        session = known or secrets.token_urlsafe(12)
        started = False
        stream = self._ui.request.remote(session, _plain(scope), body)
        leaving = asyncio.create_task(_cancel_when_gone(receive, stream))
        try:
            async for message in stream:
                if message["type"] == "http.response.start":
                    started = True
                    if known is None:
                        message["headers"] = [*message["headers"], (b"set-cookie", _cookie(session, scope["root_path"]).encode())]
                await send(message)
        except RequestCancelledError:  # the browser has gone
            return
        except (RayError, RayServeException):
            if started:  # bytes are out; the browser's stream ends and Gradio reconnects
                raise
            await PlainTextResponse("the web UI is starting; reload in a moment", 503, {"retry-after": "2"})(scope, receive, send)
        finally:
            leaving.cancel()


def _plain(scope: Scope) -> dict[str, Any]:
    """Return the parts of the scope that can be sent to a replica, with the whole path and what a proxy put before it."""
    outside = {"path": scope["path"], "root_path": scope.get("app_root_path", "")}
    return {key: scope[key] for key in PASSED if key in scope} | outside | {"asgi": {"version": "3.0"}}


async def _body(receive: Receive) -> bytes:
    parts, size = [], 0
    while True:
        message: Message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > LARGEST_BODY_BYTES:
            raise BodyTooLargeError
        if not message.get("more_body"):
            return b"".join(parts)


async def _cancel_when_gone(receive: Receive, stream: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    stream.cancel()


def _cookie(session: str, path: str) -> str:
    morsel = SimpleCookie({COOKIE: session})[COOKIE]
    morsel["path"], morsel["httponly"], morsel["samesite"] = path, True, "Lax"
    return morsel.OutputString()
