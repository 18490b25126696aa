"""The counts of a real Redis: ingresses in processes of their own keep a key's limits together, also when Redis dies."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.access.counts import Counts
from deployments.access.keys import Key, digest
from deployments.access.shared import AwayError
from deployments.errors import LimitExceededError
from deployments.ingress.middleware.access import Guard
from tests.support.paths import ROOT
from tests.support.ports import free_ports
from tests.support.programs import require
from tests.support.until import until, until_async

PASSWORD = "not-shown"
INGRESS = """
import asyncio, json, sys
from deployments.access import counts as counts_module
from deployments.access.counts import Counts
from deployments.access.keys import Key
from deployments.access.shared import SharedUsage
from deployments.access.usage import Usage
from deployments.errors import LimitExceededError

async def ask(usage, key, tokens):
    refused = 0
    while refused < 20:
        try:
            await usage.begin(key)
        except LimitExceededError:
            refused += 1
            await asyncio.sleep(0.01)
            continue
        usage.charge(key, tokens)
        usage.end(key)
        got.append(tokens)

async def main(url, limits, tokens):
    counts_module.WAIT_S = 60  # the machine may be slow
    counts = Counts(url)
    usage, key = SharedUsage(counts, Usage(), 3), Key(name="alice", sha256="0" * 64, **limits)
    await asyncio.gather(*(ask(usage, key, tokens) for _ in range(4)))
    await counts.close()

got = []
asyncio.run(main(*json.loads(sys.argv[1])))
print(json.dumps(got))
"""
"""An ingress with four clients of one key, who ask until each was refused 20 times."""


class Redis:
    """A Redis on a port of this host, with a password."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_ports(1)[0]
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{self.port}/1"
        self.start()

    def start(self) -> None:
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--requirepass", PASSWORD]
        self.log = (self.folder / "redis.log").open("w")
        self.process = subprocess.Popen(command, cwd=self.folder, stdout=self.log)
        until(lambda: "Ready to accept" in (self.folder / "redis.log").read_text(), "Redis to be up")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    require("redis-server")
    redis = Redis(tmp_path)
    yield redis
    redis.stop()


def limited(name: str, requests_per_minute: int) -> Key:
    return Key(name=name, sha256=digest(name), requests_per_minute=requests_per_minute)


def three(redis: Redis, tokens: int, **limits: int) -> tuple[list[int], float]:
    """Have three ingresses let in all they may; return the tokens of each request, and the seconds it took at most."""
    command = [sys.executable, "-c", INGRESS, json.dumps([redis.url, limits, tokens])]
    began = time.monotonic()
    ingresses = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(3)]
    requests = [request for ingress in ingresses for request in json.loads(ingress.communicate()[0])]
    return requests, time.monotonic() - began


def test_three_ingresses_let_in_the_requests_of_one(redis: Redis) -> None:
    requests, took_s = three(redis, 0, requests_per_minute=300)
    assert len(requests) == 300 or took_s > 60


def test_three_ingresses_let_in_the_tokens_of_one(redis: Redis) -> None:
    requests, took_s = three(redis, 50, tokens_per_minute=60_000)
    assert 0.99 * 60_000 <= sum(requests) <= 1.01 * (60_000 + took_s * 1000)


def test_a_days_tokens_are_those_of_all_and_outlive_an_ingress(redis: Redis) -> None:
    for expected in (60_000, 0):
        requests, _ = three(redis, 50, tokens_per_day=60_000)
        assert 0.99 * expected <= sum(requests) <= 1.01 * expected


async def test_requests_that_run_are_counted_over_all_ingresses(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when one dies with those that it has."""
    monkeypatch.setattr("deployments.access.counts.WAIT_S", 60)
    monkeypatch.setattr("deployments.access.counts.HELD_S", 3)
    monkeypatch.setattr("deployments.access.shared.HOLD_S", 0.05)
    key = Key(name="alice", sha256=digest("alice"), concurrent_requests=5)
    counts = [Counts(redis.url) for _ in range(3)]
    guards = [Guard(None, store, 3) for store in counts]
    for guard in (guards[0], guards[1], guards[0], guards[2], guards[2]):
        await guard.begin(key)
    for guard in guards:
        with pytest.raises(LimitExceededError, match="concurrent_requests=5"):
            await guard.begin(key)
    guards[0].end(key)
    await guards[1].begin(key)

    async def let_in() -> bool:
        with contextlib.suppress(LimitExceededError):
            await guards[1].begin(key)
            return True
        return False

    await asyncio.sleep(3.5)  # longer than they would count if nobody held them
    assert not await let_in()
    guards[2]._shared._holding.cancel()  # type: ignore[union-attr]
    for _ in range(2):
        await until_async(let_in, "the dead ingress' requests to be forgotten")
    assert not await let_in()
    for guard, running in zip(guards, (1, 4, 0), strict=True):
        for _ in range(running):
            guard.end(key)
    await until_async(asyncio.all_tasks, "the store to know that none runs", holds=lambda tasks: len(tasks) == 1)
    for store in counts:
        await store.close()


async def test_a_client_that_leaves_ends_its_call(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled call ends as one, in whichever step of it the client leaves."""
    monkeypatch.setattr("deployments.access.counts.WAIT_S", 60)
    counts, key = Counts(redis.url), limited("alice", 1_000_000)
    await counts.settle(key, 0)  # connected
    ended_alone = cancelled = 0
    for call in range(400):
        task = asyncio.create_task(counts.begin(key, str(call), 0, 0))
        for _ in range(call % 8):
            await asyncio.sleep(0)
        if task.done():
            ended_alone += 1
            continue
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled(), f"call {call} went on after {call % 8} steps"
        cancelled += 1
    assert cancelled > ended_alone
    await counts.close()


async def let_in(guards: list[Guard], key: Key) -> int:
    """Return how many requests of a key are let in, as long as one of the ingresses lets it in."""
    count = 0
    while True:
        before = count
        for guard in guards:
            with contextlib.suppress(LimitExceededError):
                await guard.begin(key)
                guard.end(key)
                count += 1
        if count == before:
            return count


async def test_requests_go_on_when_redis_hangs_or_dies(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each ingress keeps its share of what has been used by then."""
    counts = [Counts(redis.url) for _ in range(3)]
    guards = [Guard(None, store, 3) for store in counts]
    with monkeypatch.context() as patient:
        patient.setattr("deployments.access.counts.WAIT_S", 60)
        assert await let_in(guards, limited("alice", 9)) == 9
    redis.process.send_signal(signal.SIGSTOP)
    assert await let_in(guards, limited("bob", 9)) == 9
    redis.process.send_signal(signal.SIGCONT)
    redis.stop()
    assert await let_in(guards, limited("carol", 9)) == 9
    redis.start()

    async def answers() -> bool:
        with contextlib.suppress(LimitExceededError):
            await guards[0].begin(limited("dave", 1000))
        return await counts[1].begin(limited("dave", 1), "one", 0, 0) is not None

    await until_async(answers, "the new Redis to be used")
    said = "".join(capfd.readouterr())
    assert "does not answer" in said
    assert PASSWORD not in said
    for store in counts:
        await store.close()


async def test_a_wrong_password_is_told_without_it(redis: Redis) -> None:
    counts = Counts(redis.url.replace(PASSWORD, "wrong-one"))
    with pytest.raises(AwayError, match="AuthenticationError") as away:
        await counts.begin(limited("alice", 1), "one", 0, 0)
    assert "wrong-one" not in str(away.value)
    await counts.close()
