"""Access to the API: who sends a request, whether they may, and within which limits of theirs.

Where keys are asked for (see `deployments.keys`), a request needs one, as `Authorization: Bearer KEY` or `x-api-key: KEY`. Open
stay OPTIONS, a few paths that tell nothing about anybody (`OPEN`) and the UI, whose own requests to the API carry the key that its
user gave. The limits hold for POST requests to the rest. Each ingress process counts by itself: with two ingress replicas a key
may get up to twice as much.
"""

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette._utils import get_route_path  # what starlette's own router goes by
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.errors import InvalidKeyError, LimitExceededError, SatoriError, error_body
from deployments.keys import Key, KeyStore

OPEN = frozenset(
    "/ /health /ready /ping /version /metrics /metrics/targets /docs /docs/oauth2-redirect /redoc /openapi.json".split()
)
UI = "/ui"
MINUTE_S = 60
# Tokens are entered into the window this often: an entry costs a thread of the library's (35 µs at a token each 1.6 ms).
ENTER_S = 0.25

# The name of the key by which the request that is being served came.
client: ContextVar[str] = ContextVar("client", default="")


def client_name() -> str:
    """Return the name of the key by which the current request came; "" where none was asked for."""
    return client.get()


def is_open(scope: Scope) -> bool:
    """Whether a request needs no key. Its path is what the router goes by: decoded, case and all, nothing resolved."""
    path = get_route_path(scope)
    return path in OPEN or path == UI or path.startswith(UI + "/") or scope.get("method") == "OPTIONS"


class Guard:
    """The keys, and what each has used. Without a store everything is open."""

    def __init__(self, store: KeyStore | None) -> None:
        self.store = store
        self.usage = Usage()

    def key(self, scope: Scope) -> Key:
        """Return the key that a request came with. Raises InvalidKeyError."""
        presented = list(_presented(Headers(scope=scope)))
        for word in presented:
            if self.store is not None and (key := self.store.find(word)) is not None:
                return key
        wrong = "the API key is not known" if presented else "an API key is needed"
        raise InvalidKeyError(f"{wrong}; send a valid one as 'Authorization: Bearer KEY' or 'x-api-key: KEY'")


class Usage:
    """Counts what each key uses, against its limits. What was counted stays when a limit changes.

    Requests a minute are the library's moving window. That would keep an entry for every token, so tokens a minute are its sliding
    window counter: this minute's sum, and of the last minute's the share that a window of 60 s still covers.
    """

    def __init__(self) -> None:
        self._storage = MemoryStorage()
        self._requests = MovingWindowRateLimiter(self._storage)
        self._running: Counter[str] = Counter()
        self._due: Counter[str] = Counter()
        self._entered: dict[str, float] = {}

    def begin(self, key: Key) -> None:
        """Count a request; `end` must follow. Raises LimitExceededError when it is one too many, which is then not counted."""
        if key.concurrent_requests is not None and self._running[key.name] >= key.concurrent_requests:
            raise _exceeded("concurrent_requests", key.concurrent_requests, 1)
        if key.tokens_per_minute is not None:
            self._enter(key.name)
            if (wait := self._until_tokens(key.name, key.tokens_per_minute)) is not None:
                raise _exceeded("tokens_per_minute", key.tokens_per_minute, wait)
        if key.requests_per_minute is not None:
            item = _Requests(key.requests_per_minute)
            if not self._requests.hit(item, key.name):
                wait = self._requests.get_window_stats(item, key.name).reset_time - time.time()
                raise _exceeded("requests_per_minute", key.requests_per_minute, wait)
        self._running[key.name] += 1

    def end(self, key: Key) -> None:
        """Hear that a request is over."""
        self._running[key.name] -= 1
        self._enter(key.name)

    def charge(self, name: str, tokens: int) -> None:
        """Count tokens of a key."""
        self._due[name] += tokens
        if time.time() - self._entered.get(name, 0) >= ENTER_S:
            self._enter(name)

    def _enter(self, name: str) -> None:
        """Put the tokens that were charged into the window, also beyond the limit, which the library's limiter would not."""
        if tokens := self._due.pop(name, 0):
            now = self._entered[name] = time.time()
            _, window = self._storage.sliding_window_keys(_Tokens(1).key_for(name), MINUTE_S, now)
            self._storage.incr(window, 2 * MINUTE_S, tokens)

    def _until_tokens(self, name: str, limit: int) -> float | None:
        """Return None while a key's tokens of a minute are not spent, else the seconds until they are below the limit again.

        The library's own answer is when one token is free again, which is not when those beyond the limit are worked off.
        """
        last, last_share_s, this, this_ttl_s = self._storage.get_sliding_window(_Tokens(limit).key_for(name), MINUTE_S)
        if last * last_share_s / MINUTE_S + this < limit:
            return None
        if this < limit:
            return last_share_s - MINUTE_S * (limit - this) / last
        return this_ttl_s - MINUTE_S * limit / this  # kept to the end of the next minute


def _exceeded(limit: str, value: int, wait: float) -> LimitExceededError:
    return LimitExceededError(f"this API key's limit {limit}={value} is reached", wait)


class _PerMinute(RateLimitItemPerMinute):
    """A limit whose counts do not belong to its amount, so that they stay when that changes."""

    def key_for(self, *identifiers: bytes | str | int | float) -> str:
        return f"{type(self).__name__}/{identifiers[0]!s}"


class _Requests(_PerMinute):
    """Requests a minute."""


class _Tokens(_PerMinute):
    """Tokens a minute."""


_guard: Guard | None = None


def install(store: KeyStore | None) -> None:
    """Set whose keys are asked for from now on; None for nobody's. vLLM makes the middleware, and gives it nothing but the app."""
    global _guard
    _guard = Guard(store)


def charge(name: str, tokens: int) -> None:
    """Count tokens, of a prompt or new ones, of the client of this name. Cheap for those without a limit of tokens."""
    if name and _guard is not None and _guard.store is not None:
        key = _guard.store.get(name)
        if key is not None and key.tokens_per_minute is not None:
            _guard.usage.charge(name, tokens)


class Access:
    """ASGI middleware that lets in requests with a valid key and within its limits; others are answered before anything is read."""

    def __init__(self, app: ASGIApp) -> None:
        if _guard is None:
            raise RuntimeError("access.install() comes first")
        self._app = app
        self._guard = _guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if self._guard.store is None or scope["type"] not in ("http", "websocket") or is_open(scope):
            await self._app(scope, receive, send)
            return
        limited = scope.get("method") == "POST"
        try:
            key = self._guard.key(scope)
            if limited:
                self._guard.usage.begin(key)
        except SatoriError as error:
            if scope["type"] == "http":
                await _refusal(error)(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        token = client.set(key.name)
        try:
            await self._app(scope, receive, send)
        finally:
            if limited:
                self._guard.usage.end(key)
            client.reset(token)


def _presented(headers: Headers) -> Iterator[str]:
    scheme, _, word = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and word.strip():
        yield word.strip()
    if word := headers.get("x-api-key", "").strip():
        yield word


def _refusal(error: SatoriError) -> JSONResponse:
    kind, headers = "AuthenticationError", {"www-authenticate": "Bearer"}
    if isinstance(error, LimitExceededError):
        kind, headers = "RateLimitError", {"retry-after": str(max(1, math.ceil(error.retry_after_s)))}
    return JSONResponse(error_body(str(error), kind, error.code), error.status, headers)
