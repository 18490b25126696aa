"""Access to the API: who sends a request, whether they may, and within which of their limits.

Where keys are required (see `deployments.access.keys`), a request needs one, as `Authorization: Bearer KEY` or `x-api-key: KEY`.
Some requests need none: OPTIONS, a few paths that tell nothing about anybody (`OPEN`), and the UI, whose own requests to the API
carry the key that its user gave. The limits apply to all other POST requests. Each ingress process counts by itself, so that with
two a key may get up to twice as much, unless a store of counts is given (see `deployments.access.shared`).
"""

import math
from collections.abc import Iterator

from starlette._utils import get_route_path  # the path that starlette's own router matches
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.access.keys import Key, KeyStore
from deployments.access.shared import CountStore, SharedUsage
from deployments.access.usage import Usage, client
from deployments.errors import InvalidKeyError, LimitExceededError, SatoriError, error_body
from deployments.ingress.middleware.pricing import Priced

OPEN = frozenset("/ /health /ready /ping /version /metrics/targets /docs /openapi.json".split())
BELOW = ("/ui/", "/docs/assets/")
UI = "/ui"


def is_open(scope: Scope) -> bool:
    """Return whether a request needs no key. Its path is the one that the router matches: decoded, case kept, nothing resolved."""
    path = get_route_path(scope)
    return path in OPEN or path == UI or path.startswith(BELOW) or scope.get("method") == "OPTIONS"


class Guard:
    """The keys, and what each has used, counted here or in a store of `counts` of `ingresses`. Without keys, everything is open."""

    def __init__(self, store: KeyStore | None, counts: CountStore | None = None, ingresses: int = 1) -> None:
        self.store = store
        self._local = Usage()
        self._shared = None if counts is None else SharedUsage(counts, self._local, ingresses)

    async def begin(self, key: Key) -> None:
        """Count a request; `end` must follow. Raises LimitExceededError when it exceeds a limit; it is then not counted."""
        if self._shared is None:
            self._local.begin(key)
        else:
            await self._shared.begin(key)

    def end(self, key: Key) -> None:
        """Count a request as ended."""
        (self._shared or self._local).end(key)

    def key(self, scope: Scope) -> Key:
        """Return the key that a request came with. Raises InvalidKeyError."""
        presented = list(_presented(Headers(scope=scope)))
        for secret in presented:
            if self.store is not None and (key := self.store.find(secret)) is not None:
                return key
        wrong = "the API key is not known" if presented else "an API key is needed"
        raise InvalidKeyError(f"{wrong}; send a valid one as 'Authorization: Bearer KEY' or 'x-api-key: KEY'")

    def cost(self, name: str, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Return what tokens cost the key of this name; None without a price."""
        key = self.store.get(name) if name and self.store is not None else None
        return None if key is None else key.cost(prompt_tokens, completion_tokens)

    def charge(self, name: str, tokens: int) -> None:
        """Count a client's tokens, those of prompts and generated ones. This is cheap for clients without a token limit."""
        if name and self.store is not None:
            key = self.store.get(name)
            if key is not None and key.counts_tokens:
                (self._shared or self._local).charge(key, tokens)


class Access:
    """ASGI middleware that admits requests with a valid key and within its limits; it answers others before it reads anything."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if self._guard.store is None or scope["type"] not in ("http", "websocket") or is_open(scope):
            await self._app(scope, receive, send)
            return
        limited = scope.get("method") == "POST"
        try:
            key = self._guard.key(scope)
            if limited:
                await self._guard.begin(key)
        except SatoriError as error:
            if scope["type"] == "http":
                await _refusal(error)(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        token = client.set(key.name)
        if key.cost(0, 0) is not None:
            send = Priced(key, send).send
        try:
            await self._app(scope, receive, send)
        finally:
            if limited:
                self._guard.end(key)
            client.reset(token)


def _presented(headers: Headers) -> Iterator[str]:
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and secret.strip():
        yield secret.strip()
    if secret := headers.get("x-api-key", "").strip():
        yield secret


def _refusal(error: SatoriError) -> JSONResponse:
    kind, headers = "AuthenticationError", {"www-authenticate": "Bearer"}
    if isinstance(error, LimitExceededError):
        kind, headers = "RateLimitError", {"retry-after": str(max(1, math.ceil(error.retry_after_s)))}
    return JSONResponse(error_body(str(error), kind, error.code), error.status, headers)
