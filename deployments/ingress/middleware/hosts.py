"""Names by which the application may be asked for. A web page can make a name of its own mean this host (DNS rebinding).

Browsers then take the application for that page's own server, and let the page read it. They still send the page's name in `Host`,
so a name that is not the application's is refused.
"""

import ipaddress

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.errors import UnknownHostError
from deployments.settings import HttpSettings

REMEMBERED = 1024
"""Values of `Host` whose name is remembered to be allowed."""


def name_in(host: str) -> str:
    """Return the name or address in a `Host` header, in lower case, without its port."""
    host = host.strip().lower()
    name = host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host
    return name.removesuffix(".")


def is_address(name: str) -> bool:
    """Return whether it is an IP address: who asks for an address was not led by a name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Names:
    """The names that are allowed: addresses, `localhost`, `http.host` and `http.allowed_hosts`.

    Where the application listens for others, names without a dot are, too: its host's own, and those of services in containers.
    """

    def __init__(self, http: HttpSettings) -> None:
        self._short = not http.is_loopback
        self._names = {name.lower() for name in (http.host, *http.allowed_hosts)}
        self._domains = tuple(name.lower()[1:] for name in http.allowed_hosts if name.startswith("*."))

    def allow(self, name: str) -> bool:
        """Return whether this name, as `name_in` gives it, is allowed."""
        if name in self._names or "*" in self._names or name == "localhost" or is_address(name):
            return True
        return name.endswith((".localhost", *self._domains)) or (self._short and "." not in name)


class Hosts:
    """ASGI middleware, the outermost: a request for another name gets status 421. One without `Host` is not a browser's."""

    def __init__(self, app: ASGIApp, http: HttpSettings) -> None:
        self._app = app
        self._names = Names(http)
        self._known: set[bytes] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        for key, value in scope.get("headers", ()):
            if key == b"host" and value not in self._known:
                if not self._names.allow(name := name_in(value.decode("latin-1"))):
                    await _refuse(name, scope, receive, send)
                    return
                if len(self._known) < REMEMBERED:
                    self._known.add(value)
        await self._app(scope, receive, send)


async def _refuse(name: str, scope: Scope, receive: Receive, send: Send) -> None:
    error = UnknownHostError(
        f"this server does not go by the name {name[:255]!r}; to allow it, set http.allowed_hosts={name[:255]}, or have the proxy"
        " in front pass another Host (docs/security.md)"
    )
    if scope["type"] == "http":
        await JSONResponse(error.body(), error.status)(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": 1008})
