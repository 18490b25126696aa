"""The application below a path of a proxy, as https://host/satori/: links, redirects and cookies keep that prefix, and the scheme.

The proxy names it in `X-Forwarded-Prefix`, and takes it off the path; or the setting `http.root_path` does, and then the proxy may
take it off or not.
"""

import re
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.errors import error_body
from deployments.settings import ROOT_PATH

HEADER = "x-forwarded-prefix"
LONGEST = 256


class Prefix:
    """ASGI middleware, the outermost, that finds the prefix: `root_path` of the scope has it, `path` is without it."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; one whose header is no path gets status 400."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers, prefix = Headers(scope=scope), self._root_path
        if scope["type"] == "http" and (scheme := headers.get("x-forwarded-proto", "")) in ("http", "https"):
            scope = {**scope, "scheme": scheme}  # uvicorn believes it of proxies on its own host only
        if prefix and f"{scope['path']}/".startswith(f"{prefix}/"):
            scope = _moved(scope, lambda path: path.removeprefix(prefix) or "/")
        if (given := headers.get(HEADER, "").rstrip("/")) and scope["type"] == "http":
            if len(given) > LONGEST or not re.fullmatch(ROOT_PATH, given):
                message = f"{HEADER}: {given[:LONGEST]!r}; allowed: a path such as /satori, of at most {LONGEST} characters"
                await JSONResponse(error_body(message, "BadRequestError", 400, HEADER), 400)(scope, receive, send)
                return
            prefix = given
        await self._app({**scope, "root_path": prefix}, receive, send)


class Rooted:
    """ASGI middleware, the innermost, that gives a path its prefix back: so Starlette wants it, which makes links of the path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if prefix := scope.get("root_path", ""):
            scope = _moved(scope, lambda path: prefix + path)
        await self._app(scope, receive, send)


def _moved(scope: Scope, moved: Callable[[str], str]) -> Scope:
    """Return a scope with another path. A server may leave its bytes (`raw_path`) out."""
    changed = {**scope, "path": moved(scope["path"])}
    if (raw := scope.get("raw_path")) is not None:
        changed["raw_path"] = moved(raw.decode()).encode()
    return changed
