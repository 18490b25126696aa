"""Limits whose counts are in a store: what it is told, and what holds while it is away. The real one is in `tests/parts`."""

import asyncio
import contextlib
from collections.abc import Iterable

import pytest

from deployments.access.keys import Key, digest
from deployments.access.shared import AWAY_S, AwayError, SharedUsage
from deployments.access.usage import Usage
from deployments.errors import LimitExceededError
from deployments.observability import metrics
from tests.support.clock import Clock
from tests.support.until import until_async


class Store:
    """A store that keeps what it is told; it may be away, refuse, or never answer."""

    def __init__(self) -> None:
        self.told = 0.0
        self.asked = 0
        self.away = self.hangs = False
        self.over: tuple[str, float] | None = None
        self.over_once: tuple[str, float] | None = None
        self.running: set[str] = set()
        self.held: list[str] = []

    async def begin(self, key: Key, request: str, tokens: float, estimate: float) -> tuple[str, float] | None:
        await self.settle(key, tokens)
        over, self.over_once = self.over_once or self.over, None
        if over is None:
            self.told += estimate
            self.running.add(request)
        return over

    async def settle(self, key: Key, tokens: float, ended: Iterable[str] = (), running: Iterable[str] = ()) -> None:
        self.asked += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.away:
            raise AwayError("it is away")
        self.told += tokens
        self.running.difference_update(ended)
        self.held += running


class Ingress:
    """One of three ingresses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **limits: int) -> None:
        monkeypatch.setattr("deployments.access.shared.SETTLE_S", 0)
        self.clock, self.store, self.local = Clock(), Store(), Usage()
        self.usage = SharedUsage(self.store, self.local, 3, self.clock)
        self.key = Key(name="alice", sha256=digest("alice"), **limits)

    async def ask(self, tokens: int = 0) -> None:
        await self.usage.begin(self.key)
        self.usage.charge(self.key, tokens)
        self.usage.end(self.key)

    async def settled(self, tokens: float) -> None:
        await until_async(lambda: self.store.told, "the store to know all tokens", holds=lambda told: told == pytest.approx(tokens))


async def test_the_store_is_told_of_all_tokens_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimates are taken back when a request has ended."""
    ingress = Ingress(monkeypatch, tokens_per_minute=1000)
    for tokens in (100, 10, 0, 500):
        await ingress.ask(tokens)
    await ingress.settled(610)
    await ingress.usage.begin(ingress.key)
    assert ingress.store.told > 610, "what the request is expected to take is owed at once"
    ingress.usage.end(ingress.key)
    await ingress.settled(610)


async def test_what_the_store_refuses_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ingress = Ingress(monkeypatch, requests_per_minute=5)
    ingress.store.over = "requests_per_minute", 12.5
    with pytest.raises(LimitExceededError, match="requests_per_minute=5 is reached") as refused:
        await ingress.ask()
    assert refused.value.retry_after_s == 12.5


async def test_a_key_without_limits_asks_nothing_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    ingress = Ingress(monkeypatch)
    await ingress.ask(5)
    assert ingress.store.asked == 0


async def test_the_store_knows_which_requests_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.access.shared.HOLD_S", 0.001)
    ingress = Ingress(monkeypatch, concurrent_requests=3)
    for _ in range(2):
        await ingress.usage.begin(ingress.key)
    running = set(ingress.store.running)
    await until_async(lambda: ingress.store.held, "both to be held", holds=lambda held: running <= set(held))
    ingress.usage.end(ingress.key)
    await until_async(lambda: ingress.store.running, "one to be left", holds=lambda running: len(running) == 1)
    ingress.store.held.clear()
    await until_async(lambda: ingress.store.held, "only that one to be held")
    ingress.usage.end(ingress.key)
    await until_async(lambda: ingress.store.running, "none to be left", holds=lambda running: not running)


async def test_an_end_that_the_store_did_not_hear_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ingress = Ingress(monkeypatch, concurrent_requests=2)
    await ingress.usage.begin(ingress.key)
    ingress.store.away = True
    with contextlib.suppress(LimitExceededError):
        await ingress.usage.begin(ingress.key)  # which finds that it is away
    ingress.usage.end(ingress.key)
    await asyncio.sleep(0)
    assert len(ingress.store.running) == 1
    ingress.store.away = False
    ingress.clock.now_s += AWAY_S
    await until_async(lambda: ingress.store.running, "the store to know", holds=lambda running: not running)


async def test_one_more_is_let_in_as_soon_as_another_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store may refuse what another ingress is about to tell the end of."""
    ingress = Ingress(monkeypatch, concurrent_requests=1)
    ingress.store.over = "concurrent_requests", 1.0
    with pytest.raises(LimitExceededError, match="concurrent_requests=1 is reached"):
        await ingress.ask()
    ingress.store.over, ingress.store.over_once = None, ingress.store.over
    await ingress.ask()


async def test_requests_that_began_without_the_store_are_told_of_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.access.shared.HOLD_S", 0.001)
    ingress = Ingress(monkeypatch, concurrent_requests=6)
    ingress.store.away = True
    for _ in range(2):
        await ingress.usage.begin(ingress.key)
    with pytest.raises(LimitExceededError, match="concurrent_requests=6"):
        await ingress.usage.begin(ingress.key)  # a third of its limit is this ingress'
    ingress.store.away = False
    ingress.clock.now_s += AWAY_S
    await until_async(lambda: set(ingress.store.held), "both to be held", holds=lambda held: len(held) == 2)


async def test_requests_that_wait_for_the_store_are_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many come at once; those that are refused, or whose client leaves, are no longer."""
    ingress = Ingress(monkeypatch, concurrent_requests=2, requests_per_minute=100)
    ingress.store.hangs = True
    waiting = [asyncio.create_task(ingress.usage.begin(ingress.key)) for _ in range(2)]
    await until_async(lambda: ingress.store.asked, "the store to be asked for both", holds=lambda asked: asked == 2)
    with pytest.raises(LimitExceededError, match="concurrent_requests=2"):
        await ingress.usage.begin(ingress.key)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    ingress.store.hangs = False
    ingress.store.over = "requests_per_minute", 1.0
    for _ in range(3):
        with pytest.raises(LimitExceededError, match="requests_per_minute"):
            await ingress.usage.begin(ingress.key)
    ingress.store.over = None
    for _ in range(2):
        await ingress.usage.begin(ingress.key)
    with pytest.raises(LimitExceededError, match="concurrent_requests=2"):
        await ingress.usage.begin(ingress.key)


async def test_without_the_store_an_ingress_keeps_its_share(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It asks again once in a while, one request for all, and tells what it could not."""
    ingress = Ingress(monkeypatch, requests_per_minute=9, tokens_per_minute=1_000_000)
    before = metrics.LOCAL_LIMITS.labels()._value.get()
    await ingress.ask(7)
    await ingress.settled(7)
    ingress.store.away = True
    for _ in range(2):
        await ingress.ask(5)
    with pytest.raises(LimitExceededError, match="requests_per_minute=9 is reached"):
        await ingress.ask()
    assert ingress.store.asked <= 4, "a store that does not answer is left alone"
    assert metrics.LOCAL_LIMITS.labels()._value.get() == before + 3
    assert capfd.readouterr().err.count("does not answer (it is away)") == 1
    ingress.store.away = False
    ingress.clock.now_s += AWAY_S
    await ingress.ask(1)
    await ingress.settled(18)
    assert "answers again" in capfd.readouterr().err


async def test_a_client_that_leaves_while_the_store_is_asked_loses_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    ingress = Ingress(monkeypatch, tokens_per_minute=1000)
    ingress.store.hangs = True
    ingress.local.charge(ingress.key, 50)
    asking = asyncio.create_task(ingress.usage.begin(ingress.key))
    await until_async(lambda: ingress.store.asked, "the store to be asked")
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking
    ingress.store.hangs = False
    await ingress.ask(1)
    await ingress.settled(51)
