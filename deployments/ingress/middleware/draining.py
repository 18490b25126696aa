"""Draining, to stop without breaking replies: new requests are refused, ongoing ones continue.

`make serve` marks its run as draining by a file, for which ingresses check at every request. On a cluster, Serve itself drains
replicas, and others take the new requests.
"""

from dataclasses import dataclass

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.errors import error_body
from deployments.host.run import draining
from deployments.observability.record import failed


@dataclass
class Ongoing:
    """The number of API requests that have arrived at this process and have no complete response yet."""

    count: int = 0


class Draining:
    """ASGI middleware that counts the API's requests, and refuses new ones while draining. The UI stays available."""

    def __init__(self, app: ASGIApp, ongoing: Ongoing) -> None:
        self._app = app
        self._ongoing = ongoing

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
        self._ongoing.count += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._ongoing.count -= 1
