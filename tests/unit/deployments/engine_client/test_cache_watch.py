"""How an ingress follows the KV caches of replicas, over the token channel: both ends are real, the engines are scripted."""

import asyncio
import socket
from array import array
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.core.kv_cache_utils import BlockHash
from vllm.v1.engine import EngineCoreRequest

from deployments.engine_client import cache_watch
from deployments.engine_client.block_hashes import Prompt
from deployments.engine_client.cache_watch import CacheWatch
from deployments.observability import metrics
from deployments.replica import cache_feed
from deployments.replica.cache_feed import CacheFeed
from deployments.routing.cache_index import STORED, Scheme
from deployments.transport.cache_events import EngineBatch
from deployments.transport.channel import CACHE_BATCH, CACHE_WHOLE, SECRET_BYTES, VERSION, Address, MalformedError
from deployments.transport.receiver import Receiver
from tests.support.until import until_async

SCHEME, YOUNG = (Scheme("sha256", 4, root) for root in (b"root", b""))


class Replica:
    """A replica's end: its feed, and an engine that stores blocks."""

    def __init__(self, name: str, queue: int = cache_feed.QUEUE) -> None:
        self.feed = CacheFeed(queue)
        self.feed.serve(name)
        self._batches = 0
        self.feed.on_batch(EngineBatch(0, 0, [], YOUNG, 100))

    def store(self, *hashes: int) -> None:
        self._batches += 1
        operations = [(STORED, array("Q", hashes).tobytes())]
        self.feed.on_batch(EngineBatch(self._batches - 1, self._batches, operations, SCHEME, 100))

    def close(self) -> None:
        self.feed.close()


class Fleet:
    """Replicas as the watch uses them."""

    def __init__(self, *names: str) -> None:
        self.replicas = {name: Replica(name) for name in names}
        self.asked: list[str] = []
        self.fails = False

    def known(self) -> list[str]:
        return list(self.replicas)

    async def follow_cache(self, replica: str, address: Address) -> bool:
        self.asked.append(replica)
        if self.fails:
            raise ConnectionError
        return self.replicas[replica].feed.follow(address)


@asynccontextmanager
async def watching(fleet: Fleet) -> AsyncIterator[CacheWatch]:
    """An ingress that follows these replicas."""
    watch: CacheWatch

    def receive(kind: bytes, frames: list[bytes], reply: Any) -> None:
        assert watch.on_message(kind, frames, reply)

    receiver = Receiver("127.0.0.1", lambda frames: None, on_message=receive)
    watch = CacheWatch(fleet, receiver.address)  # type: ignore[arg-type]
    try:
        yield watch
    finally:
        watch.close()
        receiver.close()
        for replica in fleet.replicas.values():
            replica.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for what happens every second or so."""
    for module, names in ((cache_watch, ("LOOK_S", "ASK_S", "AGAIN_S")), (cache_feed, ("BEAT_S",))):
        for name in names:
            monkeypatch.setattr(module, name, 0.02)


def prompt_of(hashes: list[int]) -> Prompt:
    """Return a prompt whose blocks have these hashes."""
    prompt = Prompt(EngineCoreRequest("r", [1], None, SamplingParams(), None, 0.0, None, None, None))
    prompt.hashes = lambda scheme: hashes  # type: ignore[assignment, method-assign, return-value]
    return prompt


async def knows(watch: CacheWatch, hashes: list[int], **tokens: int) -> None:
    await until_async(lambda: watch.cached_tokens(prompt_of(hashes)), f"{tokens} are known", holds=lambda found: found == tokens)


def count(metric: metrics.Metric, *labels: str) -> float:
    return float(metric.labels(*labels)._value.get())


async def test_an_ingress_learns_what_was_cached_before_and_what_is_cached_after() -> None:
    fleet = Fleet("a", "b")
    fleet.replicas["a"].store(1, 2)
    async with watching(fleet) as watch:
        await knows(watch, [1, 2, 3], a=8, b=0)
        assert watch.index.known() == {SCHEME: ["a"], YOUNG: ["b"]}
        fleet.replicas["a"].store(3)
        fleet.replicas["b"].store(1)
        await knows(watch, [1, 2, 3], a=12, b=4)
        assert watch.cached_tokens(()) is None
        assert sorted(watch.index.known()[SCHEME]) == ["a", "b"]
        assert set(fleet.asked) == {"a", "b"}
        assert watch.index.blocks == 4


async def test_what_a_replica_will_read_counts_there_and_needs_no_event() -> None:
    fleet = Fleet("a", "b")
    fleet.replicas["a"].store(1)
    async with watching(fleet) as watch:
        await knows(watch, [1, 2, 3], a=4, b=0)
        forget = watch.coming(prompt_of([1, 2, 3]), "a")
        assert forget is not None
        assert watch.cached_tokens(prompt_of([1, 2, 5])) == {"a": 8, "b": 0}
        assert watch.coming(prompt_of([1]), "nobody") is watch.coming((), "a") is None
        forget()
        assert watch.cached_tokens(prompt_of([1, 2, 5])) == {"a": 4, "b": 0}


async def test_a_prompt_that_cannot_be_hashed_fails_nothing() -> None:
    fleet = Fleet("a", "b")
    fleet.replicas["a"].store(1)
    async with watching(fleet) as watch:
        await knows(watch, [1], a=4, b=0)
        broken = prompt_of([])
        broken.hashes = lambda scheme: 1 / 0  # type: ignore[assignment, method-assign, return-value]
        assert watch.coming(broken, "a") is watch.cached_tokens(broken) is None


async def test_of_a_single_replica_nothing_is_asked_until_there_is_another() -> None:
    fleet = Fleet("a")
    async with watching(fleet) as watch:
        fleet.replicas["a"].store(1)
        await asyncio.sleep(0.1)
        assert fleet.asked == []
        assert watch.cached_tokens(prompt_of([1])) is None
        fleet.replicas["b"] = Replica("b")
        await knows(watch, [1], a=4, b=0)
        fleet.replicas.pop("b").close()
        await until_async(lambda: watch.index.blocks == 0, "the index is empty")


async def test_a_lost_batch_is_noticed_at_the_next_word_and_the_whole_comes_again() -> None:
    fleet = Fleet("a", "b")
    missed = count(metrics.CACHE_WHOLES, "missed")
    async with watching(fleet) as watch:
        await knows(watch, [1], a=0, b=0)
        lanes = vars(fleet.replicas["a"].feed)["_lanes"]
        kept = set(lanes)
        lanes.clear()
        fleet.replicas["a"].store(1)
        lanes.update(kept)
        await knows(watch, [1], a=4, b=0)
        assert count(metrics.CACHE_WHOLES, "missed") > missed


async def test_a_full_queue_drops_and_what_was_dropped_comes_with_the_whole(slow: Address) -> None:
    replica = Replica("a", queue=2)
    dropped = count(metrics.CACHE_DROPPED)
    try:
        assert replica.feed.follow(slow)
        for block in range(20):
            replica.store(block)
        assert count(metrics.CACHE_DROPPED) == dropped + 19  # the whole and one batch are in the queue
    finally:
        replica.close()


@pytest.fixture
def slow() -> Iterator[Address]:
    """The address of an ingress that accepts connections and reads nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield Address(f"tcp://127.0.0.1:{listening.getsockname()[1]}", VERSION + bytes(SECRET_BYTES), b"x" * 40)


async def test_a_replica_that_fails_or_whose_cache_cannot_be_followed_is_unknown() -> None:
    fleet = Fleet("a", "b")
    fleet.fails = True
    async with watching(fleet) as watch:
        await until_async(lambda: fleet.asked.count("a") > 2, "it is asked again")
        assert watch.cached_tokens(prompt_of([1])) is None
        fleet.replicas["b"].feed.on_batch(EngineBatch(0, 0, [], None, 100))
        fleet.fails = False
        await knows(watch, [1], a=0)
        asked = fleet.asked.count("b")
        await asyncio.sleep(0.1)
        assert fleet.asked.count("b") <= asked + 1
        assert watch.cached_tokens(prompt_of([1])) == {"a": 0}


async def test_what_cannot_be_read_is_malformed() -> None:
    async with watching(Fleet("a", "b")) as watch:
        for kind in (CACHE_BATCH, CACHE_WHOLE):
            for frames in ([], [b"a"], [b"a", b"\xc1"], [b"\xff", b"\x93\x00\x00\x90"]):
                with pytest.raises(MalformedError):
                    watch.on_message(kind, frames, lambda frames: None)
        assert not watch.on_message(b"?", [], lambda frames: None)


def test_a_prompts_hashes_are_made_once_and_no_further_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def hashed(function: Any, parent: bytes, tokens: list[int], extra: Any) -> BlockHash:
        made.append(tokens[0])
        return BlockHash(bytes(24) + tokens[0].to_bytes(8, "big"))

    monkeypatch.setattr("deployments.engine_client.block_hashes.hash_block_tokens", hashed)
    prompt = Prompt(EngineCoreRequest("r", list(range(400)), None, SamplingParams(), None, 0.0, None, None, None))
    for _ in range(2):
        assert prompt.hashes(SCHEME)[2] == 8
        assert made == [0, 4, 8]
    assert len(prompt.hashes(YOUNG)) == 0
    assert len(prompt.hashes(SCHEME)) == 99
    assert prompt.hashes(SCHEME)[-1] == 392
    assert prompt.hashes(SCHEME)[1:3] == [4, 8]
    with pytest.raises(IndexError):
        prompt.hashes(SCHEME)[99]
