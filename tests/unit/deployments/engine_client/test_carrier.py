"""Carriers: which way a request goes, and that what happens to the call happens to all it carries."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import RequestCancelledError

from deployments.engine_client import carrier as carrier_module
from deployments.engine_client.carrier import Carriers
from deployments.errors import EngineUnavailableError
from deployments.transport.channel import CANCEL, HELLO, LAST, REFUSED, REQUEST, Address
from deployments.transport.receiver import Receiver
from deployments.transport.sender import Lane, Sender
from tests.support.until import until_async


class Replica:
    """One replica `r1`, over a real lane: `received` is what came over it, `called` what came by calls of their own."""

    def __init__(self) -> None:
        self.sender = Sender(on_message=lambda _, frames: self.received.append(frames))
        self.received: list[list[bytes]] = []
        self.called: list[str] = []
        self.assigned: list[str] = []
        self.carried = 0
        self.call: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lane: Lane | None = None
        self.chosen: str | None = "r1"

    async def generate(self, group: str, request_id: str, address: Address, encoded: list[bytes], client: str | None) -> None:
        self.called.append(request_id)

    async def carry(self, replica: str, address: Address) -> None:
        assert replica == "r1"
        self.carried += 1
        self.call = asyncio.get_running_loop().create_future()
        self.lane = self.sender.open(address)
        self.lane.send([b"r1"], HELLO)
        await self.call

    def choose(self, group: str, request_id: str) -> str | None:
        return self.chosen

    def unread(self, request_id: str) -> float:
        return 7

    def assign(self, request_id: str, replica: str, group: str) -> None:
        self.assigned.append(request_id)

    def requests(self) -> list[Any]:
        return [msgspec.msgpack.decode(frames[1]) for frames in self.received if frames[0] == REQUEST]

    async def has(self, messages: int) -> None:
        """Wait until so many messages have come over the lane."""
        await until_async(lambda: len(self.received), f"{messages} messages", holds=lambda count: count >= messages)


class Ingress:
    def __init__(self, replica: Replica) -> None:
        self.receiver = Receiver("127.0.0.1", lambda frames: None, on_message=lambda *message: self.carriers.on_message(*message))
        self.carriers = Carriers(replica, self.receiver.address)  # type: ignore[arg-type]

    def start(self, request_id: str) -> "asyncio.Task[None]":
        return asyncio.create_task(self.carriers.generate("group", request_id, [b"encoded", b"more"], "alice"))

    async def carrying(self) -> None:
        """Send a first request, and wait until others would be carried."""
        await self.start("first")
        await until_async(lambda: self.carriers.usable == 1, "a usable carrier")

    async def forgotten(self) -> None:
        await until_async(lambda: not self.carriers._carriers, "no carrier is known")


@pytest.fixture
async def replica() -> AsyncIterator[Replica]:
    made = Replica()
    yield made
    made.sender.close()


@pytest.fixture
async def ingress(replica: Replica) -> AsyncIterator[Ingress]:
    made = Ingress(replica)
    yield made
    made.carriers.shutdown()
    made.receiver.close()


async def test_the_first_request_has_a_call_and_the_next_are_carried(ingress: Ingress, replica: Replica) -> None:
    await ingress.carrying()
    assert (replica.called, replica.carried, replica.received) == (["first"], 1, [])
    calls = [ingress.start(name) for name in "ab"]
    await replica.has(2)
    assert replica.requests() == [["a", "alice", 7], ["b", "alice", 7]]
    assert [frames[2:] for frames in replica.received] == [[b"encoded", b"more"]] * 2
    assert replica.assigned == ["a", "b"]
    ingress.carriers.ended("b")
    await calls[1]
    assert not calls[0].done()
    ingress.carriers.ended("a")
    await calls[0]
    assert (replica.called, replica.carried) == (["first"], 1)
    assert not ingress.carriers._carried


async def test_without_a_replica_a_request_waits_by_its_call(ingress: Ingress, replica: Replica) -> None:
    replica.chosen = None
    await ingress.start("a")
    assert (replica.called, replica.carried) == (["a"], 0)


async def test_a_cancelled_request_is_cancelled_there_and_alone(ingress: Ingress, replica: Replica) -> None:
    await ingress.carrying()
    one, two = ingress.start("a"), ingress.start("b")
    await replica.has(2)
    one.cancel()
    await replica.has(3)
    assert replica.received[2] == [CANCEL, b"a"]
    ingress.carriers.ended("b")
    await two


async def test_one_that_is_refused_has_a_call(ingress: Ingress, replica: Replica) -> None:
    await ingress.carrying()
    call = ingress.start("a")
    await replica.has(1)
    assert replica.lane is not None
    replica.lane.send([b"a"], REFUSED)
    await call
    assert replica.called == ["first", "a"]


@pytest.mark.parametrize("error", [ActorDiedError(), EngineUnavailableError("the engine is dead")])
async def test_a_failed_call_fails_all_it_carries(ingress: Ingress, replica: Replica, error: Exception) -> None:
    await ingress.carrying()
    calls = [ingress.start(name) for name in "ab"]
    await replica.has(2)
    replica.call.set_exception(error)
    for call in calls:
        with pytest.raises(type(error)):
            await call
    await ingress.start("c")
    assert (replica.called, replica.carried) == (["first", "c"], 1), "nor is it asked again at once"


async def test_a_call_that_serve_cancels_is_no_abort_of_ours(ingress: Ingress, replica: Replica) -> None:
    await ingress.carrying()
    call = ingress.start("a")
    await replica.has(1)
    replica.call.cancel()
    with pytest.raises(RequestCancelledError):
        await call


async def test_a_failed_one_is_tried_again_later(ingress: Ingress, replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrier_module, "AGAIN_S", 0.01)
    await ingress.carrying()
    replica.call.set_exception(ActorDiedError())
    await ingress.forgotten()
    await ingress.carrying()
    assert replica.carried == 2


async def test_an_idle_one_is_given_up_and_another_opened_later(
    ingress: Ingress, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrier_module, "IDLE_S", 0.2)
    await ingress.carrying()
    call = ingress.start("a")
    await replica.has(1)
    await asyncio.sleep(0.3)
    assert len(replica.received) == 1, "it is in use"
    ingress.carriers.ended("a")
    await call
    await replica.has(2)
    assert replica.received[1] == [LAST]
    await ingress.start("b")
    assert replica.called == ["first", "b"], "nothing goes after the last"
    replica.call.set_result(None)
    await ingress.forgotten()
    await ingress.carrying()
    assert replica.carried == 2


async def test_one_that_never_says_hello_is_given_up(ingress: Ingress, replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrier_module, "OPEN_S", 0.01)
    monkeypatch.setattr(carrier_module, "AGAIN_S", 0.01)
    monkeypatch.setattr(carrier_module, "HELLO", b"something else")
    await ingress.start("first")
    await until_async(lambda: replica.carried, "the call is open")
    await until_async(lambda: replica.call.cancelled(), "the call is cancelled")
    await ingress.forgotten()
    assert not replica.received


async def test_a_lane_that_has_ended_takes_no_request(ingress: Ingress, replica: Replica) -> None:
    await ingress.carrying()
    assert replica.lane is not None
    replica.lane.close()

    async def tried() -> "asyncio.Task[None]":
        call = ingress.start("a")
        await asyncio.wait([call], timeout=0.01)
        ingress.carriers.ended("a")  # where the receiver does not know of the end yet
        await asyncio.wait([call])
        return call

    call = await until_async(tried, "the lane has ended", holds=lambda _: ingress.carriers.usable == 0)
    with pytest.raises(EngineUnavailableError, match="to the replica is broken"):
        await call
    await ingress.start("b")
    assert replica.called[-1] == "b"
