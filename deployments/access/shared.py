"""Limits that hold for all ingresses together: their counts are in a store (`deployments.access.counts`).

The store is told of tokens every `SETTLE_S` while there are some, and before each request of their key. A request is owed at once
with the tokens that it is expected to take; what it takes beyond, or less, follows. Where running requests are limited, the store
is told at once when one ends, and every `HOLD_S` of those that run: what it does not hear of, it forgets after a while.

While the store is away or slow, each ingress goes on with its own counts and its share of each limit. What it has to tell waits.
"""

import asyncio
import itertools
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from deployments.access.keys import Key
from deployments.access.usage import Usage, exceeded
from deployments.errors import LimitExceededError
from deployments.observability import logs, metrics

AWAY_S = 1.0
"""How long nobody asks a store that did not answer."""
SETTLE_S = 0.1
HOLD_S = 10.0
KEPT = 1000
"""How many ends are remembered for a store that is away; it forgets the others by itself."""
logger = logs.logger("access")


class AwayError(Exception):
    """The store does not answer, or not in time."""


class CountStore(Protocol):
    """Where counts are kept; see `deployments.access.counts.Counts`. Its operations raise AwayError."""

    async def begin(self, key: Key, request: str, tokens: float, estimate: float) -> tuple[str, float] | None:
        """Count tokens, and a request; return the limit that it exceeds, and the seconds to wait."""

    async def settle(self, key: Key, tokens: float, ended: Iterable[str] = (), running: Iterable[str] = ()) -> None:
        """Count tokens, forget requests that have ended, and hold those that run."""


class SharedUsage:
    """The usage of each key in all ingresses, checked against its limits; `local` is that in this one, of `ingresses`."""

    def __init__(self, store: CountStore, local: Usage, ingresses: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._local, self._ingresses, self._clock = store, local, ingresses, clock
        self._names = (f"{secrets.token_hex(8)}-{number}" for number in itertools.count())
        self._told: defaultdict[str, float] = defaultdict(float)
        self._running: defaultdict[str, list[str]] = defaultdict(list)
        self._ended: defaultdict[str, list[str]] = defaultdict(list)
        self._unsettled: dict[str, Key] = {}
        self._held: dict[str, Key] = {}
        self._settling: asyncio.Task[None] | None = None
        self._holding: asyncio.Task[None] | None = None
        self._telling_ends: set[asyncio.Task[bool]] = set()
        self._away = False
        self._ask_again_s = 0.0

    async def begin(self, key: Key) -> None:
        """Count a request; `end` must follow. Raises LimitExceededError when it exceeds a limit; it is then not counted."""
        self._local.reserve(key)
        request, estimate = next(self._names), self._local.debts[key.name].mean
        try:
            over = await self._ask(key, request, estimate)
            if over is not None and over[0] == "concurrent_requests":  # another ingress may be about to tell of an end
                await asyncio.sleep(SETTLE_S)
                over = await self._ask(key, request, estimate)
            if over is not None:
                raise exceeded(key, *over)
        except AwayError:
            metrics.LOCAL_LIMITS.labels().inc()
            self._local.release(key)
            self._end_soon(key, request)  # the store may have let it in
            self._local.begin(key, self._ingresses)
            request = next(self._names)
            self._settle_soon(key)
        except LimitExceededError:
            self._local.release(key)
            raise
        except BaseException:  # a client that leaves, which the store may have let in
            self._local.release(key)
            self._end_soon(key, request)
            raise
        else:
            self._told[key.name] += estimate
            self._local.begin_reserved(key)
        self._running[key.name].append(request)
        self._hold(key)

    def end(self, key: Key) -> None:
        """Count a request as ended."""
        self._local.end(key)
        request = self._running[key.name].pop()  # whichever: they count alike
        self._end_soon(key, request)
        self._settle_soon(key)

    def charge(self, key: Key, tokens: int) -> None:
        """Count tokens against a key."""
        self._local.charge(key, tokens)
        self._settle_soon(key)

    def _settle_soon(self, key: Key) -> None:
        if key.counts_tokens or self._ended.get(key.name):
            self._unsettled[key.name] = key
            if self._settling is None or self._settling.done():
                self._settling = asyncio.create_task(self._settle())

    async def _settle(self) -> None:
        """Tell the store of tokens and ends until it knows all."""
        while self._unsettled:
            await asyncio.sleep(SETTLE_S)
            for name, key in list(self._unsettled.items()):
                self._unsettled.pop(name, None)
                if not await self._tell(key):
                    break

    async def _ask(self, key: Key, request: str, estimate: float) -> tuple[str, float] | None:
        """Return the limit that a request exceeds, and the seconds to wait. Raises AwayError."""
        if not (key.counts_requests or key.counts_tokens):
            return None
        with self._telling(key) as tokens:
            return await self._store.begin(key, request, tokens, estimate)

    def _end_soon(self, key: Key, request: str) -> None:
        """Tell the store that a request has ended."""
        if key.concurrent_requests is not None:
            self._ended[key.name].append(request)
            task = asyncio.create_task(self._tell(key))
            self._telling_ends.add(task)
            task.add_done_callback(self._telling_ends.discard)

    async def _tell(self, key: Key, running: Iterable[str] = ()) -> bool:
        """Tell the store what it does not know of a key; return whether it knows it now. Else it is told soon."""
        ended = self._ended.pop(key.name, [])
        try:
            with self._telling(key) as tokens:
                await self._store.settle(key, tokens, ended, running)
        except AwayError:
            if ended := [*ended, *self._ended.pop(key.name, [])][-KEPT:]:
                self._ended[key.name] = ended
            self._settle_soon(key)
            return False
        return True

    def _hold(self, key: Key) -> None:
        if key.concurrent_requests is not None:
            self._held[key.name] = key
            if self._holding is None or self._holding.done():
                self._holding = asyncio.create_task(self._hold_running())

    async def _hold_running(self) -> None:
        """Tell the store of the requests that run, as long as some do."""
        while self._held:
            await asyncio.sleep(HOLD_S)
            for name, key in list(self._held.items()):
                running = list(self._running[name])
                if running:
                    await self._tell(key, running)
                    for request in set(running).difference(self._running[name]):  # ended meanwhile: the store may have heard first
                        self._end_soon(key, request)
                else:
                    del self._held[name]

    @contextmanager
    def _telling(self, key: Key) -> Iterator[float]:
        """Yield the tokens that the store is now told of. Raises AwayError at once while it is away, and notes when it is.

        What it may not have been told is told again; what is to be taken back is not, as that could be done twice.
        """
        now_s = self._clock()
        if self._away and now_s < self._ask_again_s:
            raise AwayError
        self._ask_again_s = now_s + AWAY_S  # only this one asks a store that is away
        tokens = self._local.debts[key.name].committed - self._told[key.name]
        self._told[key.name] += tokens
        try:
            yield tokens
        except BaseException as error:  # a client that leaves, too
            self._told[key.name] -= max(0.0, tokens)
            if isinstance(error, AwayError):
                self._note(away=True, why=str(error))
            raise
        self._note(away=False)

    def _note(self, *, away: bool, why: str = "") -> None:
        if away:
            self._ask_again_s = self._clock() + AWAY_S
        if away == self._away:
            return
        self._away = away
        if away:
            logger.warning(
                "the store of counts does not answer (%s): this ingress goes on with its own counts and 1/%d of each limit",
                why,
                self._ingresses,
            )
        else:
            logger.info("the store of counts answers again")
