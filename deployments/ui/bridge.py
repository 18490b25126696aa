"""The web UI's way through the ingress: requests below /ui go to a UI replica by a Serve handle, and its responses stream back.

Only what the page itself asks for is passed on: Gradio has more, such as uploads, which it writes to disk. A browser's POST must
come from the page, with JSON: other sites' pages can send any other, and in a visitor's name.

A browser stays on one UI replica, which knows what was stopped, and where Gradio keeps its sessions in memory. A cookie names the
session, by which the router (see `deployments.routing.router.StickyRouter`) chooses the replica.
"""

import asyncio
import re
import secrets
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException, RequestCancelledError
from ray.serve.handle import DeploymentHandle
from starlette._utils import get_route_path  # the path below the mount
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from deployments.errors import ForeignOriginError

COOKIE = "satori_session"
PAGES = re.compile(
    r"/(page/.+|assets/.+|static/.+|svelte/.+|config/?|theme\.css|favicon\.ico|manifest\.json|pwa_icon(/.+)?"
    r"|state|gradio_api/(app_id|theme\.css|startup-events|info/?))?"
)
EVENTS = re.compile(r"/(ask|stop|gradio_api/component_server/?)")
"""What the page asks for, below /ui: to read, and to act."""
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self';"
    " frame-ancestors 'self'"
)
"""What the page may load, and who may frame it (Content-Security-Policy). Gradio runs scripts that the page contains."""
HEADERS = ((b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff"))
PASSED = ("type", "http_version", "method", "scheme", "raw_path", "query_string", "headers", "client", "server")


class UIBridge:
    """An ASGI app that passes requests on to the UI replica's app. HTTP only: Gradio needs no web sockets."""

    def __init__(self, ui: DeploymentHandle) -> None:
        self._ui = ui.options(stream=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        if refusal := refused(scope):
            await refusal(scope, receive, send)
            return
        try:
            body = await Request(scope, receive).body()  # bounded, in size and time (`deployments.ingress.middleware.body`)
        except ClientDisconnect:
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
                    message["headers"] = [*message["headers"], *HEADERS]
                    if known is None:
                        message["headers"] = [*message["headers"], (b"set-cookie", _cookie(session, scope["root_path"]).encode())]
                await send(message)
        except RequestCancelledError:  # the browser has gone
            return
        except (RayError, RayServeException):
            if started:  # bytes are out; the browser's stream ends, and the page asks again
                raise
            await PlainTextResponse("the web UI is starting; reload in a moment", 503, {"retry-after": "2"})(scope, receive, send)
        finally:
            leaving.cancel()


def refused(scope: Scope) -> Response | None:
    """Return the answer to a request that the page does not make; None for one that it may have made."""
    path, method = get_route_path(scope), scope["method"]
    if method in ("GET", "HEAD"):
        return None if PAGES.fullmatch(path) else PlainTextResponse("Not Found", 404)
    if method != "POST" or not EVENTS.fullmatch(path):
        return PlainTextResponse("Not Found", 404)
    headers = Headers(scope=scope)
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return PlainTextResponse("allowed: content-type: application/json", 415)
    if not _of_the_page(headers):
        error = ForeignOriginError("only the page at /ui may use it; programs use the API (/v1)")
        return JSONResponse(error.body(), error.status)
    return None


def _of_the_page(headers: Headers) -> bool:
    """Return whether a POST is the page's own, as its browser says; what does not say where it comes from is no browser.

    Browsers send `Sec-Fetch-Site` over HTTPS and on this host, also where a proxy changes `Host`; else `Origin`.
    """
    if site := headers.get("sec-fetch-site"):
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc in (headers.get("host"), headers.get("x-forwarded-host"))


def _plain(scope: Scope) -> dict[str, Any]:
    """Return the parts of the scope that can be sent to a replica, with the whole path and what a proxy put before it."""
    outside = {"path": scope["path"], "root_path": scope.get("app_root_path", "")}
    return {key: scope[key] for key in PASSED if key in scope} | outside | {"asgi": {"version": "3.0"}}


async def _cancel_when_gone(receive: Receive, stream: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    stream.cancel()


def _cookie(session: str, path: str) -> str:
    morsel = SimpleCookie({COOKIE: session})[COOKIE]
    morsel["path"], morsel["httponly"], morsel["samesite"] = path, True, "Lax"
    return morsel.OutputString()
