"""Coming to an end without breaking replies: new requests are refused, those that are here go on.

`make serve` marks its run as draining by a file, which ingresses look for when a request comes; on a cluster, Serve drains replicas
itself and other ones take the new requests.
"""

import os
import tempfile
from pathlib import Path
from typing import ClassVar

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.errors import error_body
from deployments.measuring import failed

RUN = "SATORI_RUN"
"""The environment variable that names a run of `make serve`, in all its processes."""


def marker(run: str) -> Path:
    """Return the file that is there while a run is draining."""
    return Path(tempfile.gettempdir()) / f"satori-serve-{run}.draining"


def draining() -> bool:
    """Return whether this process's run is draining."""
    run = os.environ.get(RUN)
    return run is not None and marker(run).exists()


class Draining:
    """ASGI middleware that counts the API's requests, and refuses new ones while draining. The UI stays."""

    active: ClassVar[int] = 0
    """Requests of this process that have come and whose response is not complete."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"].startswith("/ui"):
            await self._app(scope, receive, send)
            return
        if draining():
            failed("draining")
            message = "this server is about to stop and takes no new requests; try again on another one, or later"
            await JSONResponse(error_body(message, "ServiceUnavailableError", 503), 503)(scope, receive, send)
            return
        Draining.active += 1
        try:
            await self._app(scope, receive, send)
        finally:
            Draining.active -= 1
