"""The usage of each API key, checked against its limits."""

import time
from collections import Counter, defaultdict
from contextvars import ContextVar
from datetime import UTC, datetime

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from deployments.access.keys import Key
from deployments.errors import LimitExceededError

MINUTE_S = 60
DAY_S = 86400
SMOOTHING = 0.2
"""How much the last request counts in the mean of a key's tokens a request."""
# The name of the current request's API key.
client: ContextVar[str] = ContextVar("client", default="")

deferrable: ContextVar[bool] = ContextVar("deferrable", default=False)
"""Whether the current request is a line of a batch, which starts after all others."""


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
        self._charged = 0

    @property
    def mean(self) -> float:
        """How many tokens a request is expected to take."""
        return self._mean

    @property
    def estimated(self) -> float:
        """How many tokens the running requests are expected to take yet."""
        return self._estimated

    @property
    def committed(self) -> float:
        """All tokens that were ever charged, and those that the running requests are expected to take yet."""
        return self._charged + self._estimated

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
        self._charged += tokens
        self._taken += tokens
        self._estimated = max(0.0, self._estimated - tokens)


class Day:
    """The tokens of a key on the current day, which ends at 00:00 UTC."""

    def __init__(self) -> None:
        self._day = 0
        self._used = 0

    def used(self) -> int:
        """Return the tokens of today."""
        if (today := int(time.time() // DAY_S)) != self._day:
            self._day, self._used = today, 0
        return self._used

    def charge(self, tokens: int) -> None:
        """Count tokens."""
        self._used = self.used() + tokens


class Usage:
    """Counts the usage of each key in this process and enforces its limits. Counts stay when a limit changes.

    Requests per minute use the library's moving window, which would keep an entry for every token; tokens per minute are a `Debt`.
    """

    def __init__(self) -> None:
        self._requests = MovingWindowRateLimiter(MemoryStorage())
        self._running: Counter[str] = Counter()
        self._days: defaultdict[str, Day] = defaultdict(Day)
        self.debts: defaultdict[str, Debt] = defaultdict(Debt)

    def begin(self, key: Key, share: int = 1) -> None:
        """Count a request; `end` must follow. Raises LimitExceededError when it exceeds a limit; it is then not counted.

        Of each limit, only one part of `share` is this process'.
        """
        self.reserve(key, share)
        try:
            self._check_over_time(key, share)
        except LimitExceededError:
            self.release(key)
            raise
        self.debts[key.name].begin()

    def reserve(self, key: Key, share: int = 1) -> None:
        """Count a request as running; `begin_reserved` or `release` must follow. Raises LimitExceededError where too many run."""
        if key.concurrent_requests is not None and self._running[key.name] >= part(key.concurrent_requests, share):
            raise exceeded(key, "concurrent_requests", 1)
        self._running[key.name] += 1

    def release(self, key: Key) -> None:
        """Count a reserved request as not running."""
        self._running[key.name] -= 1

    def begin_reserved(self, key: Key) -> None:
        """Count a request that was reserved, and let in elsewhere; `end` must follow."""
        if key.requests_per_minute is not None:
            self._requests.hit(_Requests(key.requests_per_minute), key.name)
        debt = self.debts[key.name]
        if key.tokens_per_minute is not None:
            debt.seconds_until_below(key.tokens_per_minute)  # from now on it is worked off at this rate
        debt.begin()

    def end(self, key: Key) -> None:
        """Count a request as ended."""
        self.release(key)
        self.debts[key.name].end()

    def charge(self, key: Key, tokens: int) -> None:
        """Count tokens against a key."""
        self.debts[key.name].charge(tokens)
        self._days[key.name].charge(tokens)

    def _check_over_time(self, key: Key, share: int) -> None:
        debt = self.debts[key.name]
        if key.tokens_per_minute is not None:
            wait = debt.seconds_until_below(part(key.tokens_per_minute, share))
            if wait is not None:
                raise exceeded(key, "tokens_per_minute", wait)
        used = self._days[key.name].used() + debt.estimated
        if key.tokens_per_day is not None and used >= part(key.tokens_per_day, share):
            raise exceeded(key, "tokens_per_day", DAY_S - time.time() % DAY_S)
        if key.requests_per_minute is not None:
            item = _Requests(part(key.requests_per_minute, share))
            if not self._requests.hit(item, key.name):
                wait = self._requests.get_window_stats(item, key.name).reset_time - time.time()
                raise exceeded(key, "requests_per_minute", wait)


def part(limit: int, share: int) -> int:
    """Return one part of a limit that is divided into `share`, at least 1."""
    return max(1, limit // share)


def exceeded(key: Key, limit: str, wait_s: float) -> LimitExceededError:
    """Return the error of a key that has to wait, for the limit of this name."""
    message = f"this API key's limit {limit}={getattr(key, limit)} is reached"
    if limit == "tokens_per_day":
        renewed = datetime.fromtimestamp(time.time() + wait_s + DAY_S / 2, UTC)  # in the next day, whichever clock said so
        message = f"the API key {key.name!r} has used its {limit}={key.tokens_per_day}; they renew at {renewed:%Y-%m-%d} 00:00 UTC"
    return LimitExceededError(message, wait_s)


class _Requests(RateLimitItemPerMinute):
    """Requests per minute. Their count is kept apart from the limit's amount, so that it stays when the amount changes."""

    def key_for(self, *identifiers: bytes | str | int | float) -> str:
        return f"requests/{identifiers[0]!s}"
