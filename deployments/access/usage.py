"""The usage of each API key, checked against its limits."""

import time
from collections import Counter, defaultdict
from contextvars import ContextVar

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from deployments.access.keys import Key
from deployments.errors import LimitExceededError

MINUTE_S = 60
SMOOTHING = 0.2
"""How much the last request counts in the mean of a key's tokens a request."""
# The name of the current request's API key.
client: ContextVar[str] = ContextVar("client", default="")


def client_name() -> str:
    """Return the name of the current request's API key; "" if none is required."""
    return client.get()


class Debt:
    """The tokens that a key owes: what it was charged, less what its limit has worked off since, all the time at the same rate.

    So over any number of minutes a key gets as many tokens as its limit says, and once those of a minute at a time, however it
    asks (the generic cell rate algorithm, a leaky bucket). A request that begins is expected to take as many tokens as the key's
    requests have taken on the average; that is owed until it ends. What requests that run at the same time take beyond their
    estimates is owed afterwards.
    """

    def __init__(self) -> None:
        self._owed = 0.0
        self._at_s = time.time()
        self._limit = 0
        self._running = 0
        self._mean = 0.0
        self._taken = 0
        self._estimated = 0.0

    def _work_off(self) -> None:
        now_s = time.time()
        self._owed = max(0.0, self._owed - max(0.0, now_s - self._at_s) * self._limit / MINUTE_S)
        self._at_s = now_s

    def seconds_until_below(self, limit: int) -> float | None:
        """Return the seconds until the key owes less than a minute's tokens again; None while it does."""
        self._work_off()
        self._limit = limit
        owed = self._owed + self._estimated
        return None if owed < limit else (owed - limit) * MINUTE_S / limit

    def begin(self) -> None:
        """Owe what a request is expected to take."""
        self._running += 1
        self._estimated += self._mean

    def end(self) -> None:
        """Settle a request: its estimate goes, what it took stays."""
        share, self._taken = self._taken / max(1, self._running), self._taken - self._taken // max(1, self._running)
        self._mean += SMOOTHING * (share - self._mean)
        self._running -= 1
        self._estimated = self._mean * self._running

    def charge(self, tokens: int) -> None:
        """Owe tokens; they take the place of their request's estimate."""
        self._work_off()
        self._owed += tokens
        self._taken += tokens
        self._estimated = max(0.0, self._estimated - tokens)


class Usage:
    """Counts the usage of each key and enforces its limits. Counts stay when a limit changes.

    Requests per minute use the library's moving window, which would keep an entry for every token; tokens per minute are a `Debt`.
    """

    def __init__(self) -> None:
        self._requests = MovingWindowRateLimiter(MemoryStorage())
        self._running: Counter[str] = Counter()
        self._debts: defaultdict[str, Debt] = defaultdict(Debt)

    def begin(self, key: Key) -> None:
        """Count a request; `end` must follow. Raises LimitExceededError when it exceeds a limit; it is then not counted."""
        if key.concurrent_requests is not None and self._running[key.name] >= key.concurrent_requests:
            raise _exceeded("concurrent_requests", key.concurrent_requests, 1)
        if key.tokens_per_minute is not None:
            wait = self._debts[key.name].seconds_until_below(key.tokens_per_minute)
            if wait is not None:
                raise _exceeded("tokens_per_minute", key.tokens_per_minute, wait)
        if key.requests_per_minute is not None:
            item = _Requests(key.requests_per_minute)
            if not self._requests.hit(item, key.name):
                wait = self._requests.get_window_stats(item, key.name).reset_time - time.time()
                raise _exceeded("requests_per_minute", key.requests_per_minute, wait)
        self._running[key.name] += 1
        self._debts[key.name].begin()

    def end(self, key: Key) -> None:
        """Count a request as ended."""
        self._running[key.name] -= 1
        self._debts[key.name].end()

    def charge(self, name: str, tokens: int) -> None:
        """Count tokens against a key."""
        self._debts[name].charge(tokens)


def _exceeded(limit: str, value: int, wait: float) -> LimitExceededError:
    return LimitExceededError(f"this API key's limit {limit}={value} is reached", wait)


class _Requests(RateLimitItemPerMinute):
    """Requests per minute. Their count is kept apart from the limit's amount, so that it stays when the amount changes."""

    def key_for(self, *identifiers: bytes | str | int | float) -> str:
        return f"requests/{identifiers[0]!s}"
