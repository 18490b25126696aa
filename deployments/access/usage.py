"""The usage of each API key, checked against its limits."""

import time
from collections import Counter
from contextvars import ContextVar

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from deployments.access.keys import Key
from deployments.errors import LimitExceededError

MINUTE_S = 60
# Tokens are added to the window at most this often: an addition costs a thread of the library (35 µs at one token every 1.6 ms).
FLUSH_S = 0.25
# The name of the current request's API key.
client: ContextVar[str] = ContextVar("client", default="")


def client_name() -> str:
    """Return the name of the current request's API key; "" if none is required."""
    return client.get()


class Usage:
    """Counts the usage of each key and enforces its limits. Counts stay when a limit changes.

    Requests per minute use the library's moving window. It would keep an entry for every token, so tokens per minute use its
    sliding window counter: this minute's sum, plus the share of the last minute's sum that a window of 60 s still covers.
    """

    def __init__(self) -> None:
        self._storage = MemoryStorage()
        self._requests = MovingWindowRateLimiter(self._storage)
        self._running: Counter[str] = Counter()
        self._pending: Counter[str] = Counter()
        self._flushed_s: dict[str, float] = {}

    def begin(self, key: Key) -> None:
        """Count a request; `end` must follow. Raises LimitExceededError when it exceeds a limit; it is then not counted."""
        if key.concurrent_requests is not None and self._running[key.name] >= key.concurrent_requests:
            raise _exceeded("concurrent_requests", key.concurrent_requests, 1)
        if key.tokens_per_minute is not None:
            self._flush(key.name)
            if (wait := self._seconds_until_below(key.name, key.tokens_per_minute)) is not None:
                raise _exceeded("tokens_per_minute", key.tokens_per_minute, wait)
        if key.requests_per_minute is not None:
            item = _Requests(key.requests_per_minute)
            if not self._requests.hit(item, key.name):
                wait = self._requests.get_window_stats(item, key.name).reset_time - time.time()
                raise _exceeded("requests_per_minute", key.requests_per_minute, wait)
        self._running[key.name] += 1

    def end(self, key: Key) -> None:
        """Count a request as ended."""
        self._running[key.name] -= 1
        self._flush(key.name)

    def charge(self, name: str, tokens: int) -> None:
        """Count tokens against a key."""
        self._pending[name] += tokens
        if time.time() - self._flushed_s.get(name, 0) >= FLUSH_S:
            self._flush(name)

    def _flush(self, name: str) -> None:
        """Add the charged tokens to the window, even beyond the limit; the library's limiter would refuse those."""
        if tokens := self._pending.pop(name, 0):
            now = self._flushed_s[name] = time.time()
            _, window = self._storage.sliding_window_keys(_Tokens(1).key_for(name), MINUTE_S, now)
            self._storage.incr(window, 2 * MINUTE_S, tokens)

    def _seconds_until_below(self, name: str, limit: int) -> float | None:
        """Return the seconds until a key's tokens per minute are below the limit again; None while they are below it.

        The library itself only tells when one token is free again, not when the tokens beyond the limit are worked off.
        """
        last, last_share_s, this, this_ttl_s = self._storage.get_sliding_window(_Tokens(limit).key_for(name), MINUTE_S)
        if last * last_share_s / MINUTE_S + this < limit:
            return None
        if this < limit:
            return last_share_s - MINUTE_S * (limit - this) / last
        return this_ttl_s - MINUTE_S * limit / this  # the library keeps a minute's sum to the end of the next one


def _exceeded(limit: str, value: int, wait: float) -> LimitExceededError:
    return LimitExceededError(f"this API key's limit {limit}={value} is reached", wait)


class _PerMinute(RateLimitItemPerMinute):
    """A limit per minute whose counts are kept apart from its amount, so that they stay when the amount changes."""

    def key_for(self, *identifiers: bytes | str | int | float) -> str:
        return f"{type(self).__name__}/{identifiers[0]!s}"


class _Requests(_PerMinute):
    """Requests per minute."""


class _Tokens(_PerMinute):
    """Tokens per minute."""
