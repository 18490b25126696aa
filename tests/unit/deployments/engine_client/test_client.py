"""The engine client: outputs in, calls out, and no state left behind, whatever happens to a request."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError, RequestCancelledError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.engine import (
    EngineCoreEvent,
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
)
from vllm.v1.outputs import LogprobsLists
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from deployments.engine_client import failover
from deployments.engine_client.client import PACE_WEIGHT, Hooks, ServeEngineClient
from deployments.errors import SatoriError
from deployments.observability import record as record_module
from deployments.observability.record import Record
from deployments.routing.score import Work
from deployments.settings import BEATS
from deployments.transport.channel import BY_POSITION, BY_STEPS, HELLO, NOISE, OTHERS, REQUEST, SPEEDS, Address, MalformedError
from deployments.transport.sender import Lane, Sender
from tests.support.until import until_async

Script = Callable[["Fleet", str, Address], Awaitable[None]]
Made = Callable[..., tuple["Fleet", ServeEngineClient]]


class Fleet:
    """Replicas with scripted tokens: what `script` does for each call."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.sender = Sender(on_message=self._on_message)
        self.calls: dict[str, EngineCoreRequest] = {}
        self.groups: list[str] = []
        self.clients: list[str | None] = []
        self.cancelled: list[str] = []
        self.ended_on: list[str] = []
        self.lost_on: list[str] = []
        self.refused: list[tuple[str, str]] = []
        self.charged: list[tuple[str, int]] = []
        self.prepared = 0
        self.expected: list[float] = []
        self.on: set[str] = set()
        self.chosen: str | None = None
        self.carried: list[str] = []
        self.times = 1
        self.others: list[tuple[str, int, float]] = []
        self.died = asyncio.Event()

    async def carry(self, replica: str, address: Address) -> None:
        self.sender.open(address).send([replica.encode()], HELLO)
        await asyncio.Event().wait()

    def _on_message(self, lane: Lane, frames: list[bytes]) -> None:
        """Answer a carried request with one token."""
        if frames[0] == REQUEST:
            request_id, *_ = msgspec.msgpack.decode(frames[1])
            self.carried.append(request_id)
            self.send(lane.address, request_id, 5, last=True)

    def choose(self, group: str, request_id: str) -> str | None:
        return self.chosen

    def assign(self, request_id: str, replica: str, group: str) -> None:
        assert replica == self.chosen
        self.on.add(request_id)

    async def generate(self, group: str, request_id: str, address: Address, encoded: list[bytes], client: str | None) -> None:
        self.groups.append(group)
        self.clients.append(client)
        self.on.add(request_id)
        self.calls[request_id] = MsgpackDecoder(EngineCoreRequest).decode(encoded)
        try:
            await self._script(self, request_id, address)
        except asyncio.CancelledError:
            self.cancelled.append(request_id)
            raise

    def expect(self, request_id: str, work: Work) -> None:
        self.expected.append(work.expected_tokens)

    def unread(self, request_id: str) -> float:
        return 0.0

    def told(self, replica: str, requests: int, unread_tokens: float) -> None:
        self.others.append((replica, requests, unread_tokens))

    def measured(self, replica: str, prefill_tokens_per_s: float, decode_tokens_per_s: float) -> None:
        self.others.append((replica, prefill_tokens_per_s, decode_tokens_per_s))

    def progressed(self, request_id: str, expected_tokens: float) -> None: ...

    def assigned(self, request_id: str) -> int:
        return request_id in self.on and self.times

    def ended(self, request_id: str) -> None:
        self.ended_on.append(request_id)

    def lost(self, request_id: str) -> None:
        self.lost_on.append(request_id)

    def left(self, request_id: str) -> None:
        self.on.discard(request_id)

    def refuse(self, request_id: str, error: SatoriError) -> None:
        self.refused.append((request_id, error.code))

    def count_prepared(self) -> None:
        self.prepared += 1

    def charge(self, client: str, tokens: int) -> None:
        self.charged.append((client, tokens))

    def send(self, address: Address, request_id: str, token: int, last: bool = False) -> None:
        output = EngineCoreOutput(request_id, [token], finish_reason=FinishReason.STOP if last else None)
        self.sender.open(address).send(MsgpackEncoder().encode(EngineCoreOutputs(outputs=[output])))


def request(request_id: str, **params: int) -> EngineCoreRequest:
    return EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=[1, 2, 3],
        mm_features=None,
        sampling_params=SamplingParams(max_tokens=5, **params),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
        external_req_id="group-" + request_id,
    )


async def arrived(client: ServeEngineClient, request_id: str, count: int) -> None:
    tokens = client._requests.by_id[request_id].tokens
    await until_async(lambda: len(tokens), f"{count} tokens of {request_id}", holds=lambda here: here >= count)


async def tokens_of(client: ServeEngineClient, request_id: str) -> list[int]:
    """Return all tokens of a request that ends well."""
    tokens: list[int] = []
    while True:
        for output in (await asyncio.wait_for(client.get_output_async(), 5)).outputs:
            assert output.request_id == request_id
            assert output.finish_reason is not FinishReason.ERROR
            tokens += output.new_token_ids
            if output.finish_reason is not None:
                return tokens


async def ended(client: ServeEngineClient, *left: str) -> None:
    """Read outputs until only these requests are open."""

    async def read() -> list[str]:
        if client.open_requests != list(left):
            await client.get_output_async()
        return client.open_requests

    await until_async(read, f"only {left} are open", holds=lambda found: found == list(left), every_s=0)


async def three_tokens(replica: Fleet, request_id: str, address: Address) -> None:
    for token in (1, 2, 3):
        replica.send(address, request_id, token, last=token == 3)


async def never_ends(replica: Fleet, request_id: str, address: Address) -> None:
    replica.send(address, request_id, 1)
    await asyncio.Event().wait()


@pytest.fixture
async def made() -> AsyncIterator[Made]:
    made: list[tuple[Fleet, ServeEngineClient]] = []

    def make(script: Script, wait_s: float = 60) -> tuple[Fleet, ServeEngineClient]:
        fleet = Fleet(script)
        hooks = Hooks(fleet.refuse, fleet.count_prepared, lambda: "alice", fleet.charge)
        client = ServeEngineClient(fleet, "127.0.0.1", wait_s=wait_s, beat_s=60, hooks=hooks)  # type: ignore[arg-type]
        made.append((fleet, client))
        return made[-1]

    yield make
    for fleet, client in made:
        client.shutdown()
        fleet.sender.close()


async def test_outputs_arrive_and_nothing_is_kept(made: Made) -> None:
    replica, client = made(three_tokens)
    await client.add_request_async(request("a"))
    outputs = [(await client.get_output_async()).outputs[0] for _ in range(3)]
    assert [output.new_token_ids for output in outputs] == [[1], [2], [3]]
    assert outputs[-1].finish_reason is FinishReason.STOP
    assert client.open_requests == []
    assert replica.ended_on == ["a"]
    assert replica.calls["a"].prompt_token_ids == [1, 2, 3]
    assert replica.calls["a"].sampling_params.max_tokens == 5
    assert replica.groups == ["a"]


@pytest.mark.parametrize("has_format", [True, False])
async def test_what_the_engine_gives_up_is_the_fault_of_a_format_where_there_is_one(made: Made, has_format: bool) -> None:
    async def gives_up(replica: Fleet, request_id: str, address: Address) -> None:
        replica.send(address, request_id, 1)
        failed = EngineCoreOutput(request_id, [], finish_reason=FinishReason.ERROR)
        replica.sender.open(address).send(MsgpackEncoder().encode(EngineCoreOutputs(outputs=[failed])))

    fleet, client = made(gives_up)
    asked = request("a")
    assert asked.sampling_params
    asked.sampling_params.structured_outputs = StructuredOutputsParams(regex="x") if has_format else None
    await client.add_request_async(asked)
    await ended(client)
    assert fleet.refused == ([("a", "grammar_not_followed")] if has_format else [])


async def test_a_carried_request_ends_with_its_last_token(made: Made) -> None:
    fleet, client = made(three_tokens)
    fleet.chosen = "r1"
    await client.add_request_async(request("first"))
    assert await tokens_of(client, "first") == [1, 2, 3]
    await until_async(lambda: client.carriers == 1, "the replica can be sent requests")
    await client.add_request_async(request("a"))
    call = client._requests.by_id["a"].call
    assert call is not None
    assert await tokens_of(client, "a") == [5]
    await asyncio.wait_for(call, 5)
    assert (list(fleet.calls), fleet.carried, fleet.on) == (["first"], ["a"], set())


async def test_the_pace_is_of_requests_that_ended_and_fades(made: Made) -> None:
    async def slow(replica: Fleet, request_id: str, address: Address) -> None:
        await asyncio.sleep(0.1)
        replica.send(address, request_id, 1, last=True)

    _, client = made(slow)
    paces = [client.pace_s]
    for _ in range(2):
        await client.add_request_async(request("a"))
        await ended(client)
        paces.append(client.pace_s)
    assert paces[0] == 0
    assert paces[1] >= PACE_WEIGHT * 0.1
    assert paces[2] >= paces[1] + PACE_WEIGHT * (0.1 - paces[1])


async def test_the_router_expects_of_a_request_what_those_before_it_had(made: Made) -> None:
    fleet, client = made(three_tokens)
    for _ in range(40):
        asked = request("a")
        assert asked.sampling_params
        asked.sampling_params.max_tokens = 1000
        await client.add_request_async(asked)
        await ended(client)
    assert fleet.expected[0] > 100, "nothing is known"
    assert 3 <= fleet.expected[-1] < 30
    await client.add_request_async(request("b", ignore_eos=True))
    await ended(client)
    assert fleet.expected[-1] == 5, "it has no other choice"


async def test_requests_that_wait_for_a_replica_are_unassigned(made: Made) -> None:
    fleet, client = made(never_ends)
    for request_id in "abc":
        await client.add_request_async(request(request_id))
    await until_async(lambda: len(fleet.on) == 3, "all are on a replica")
    assert client.unassigned == 0
    fleet.on -= {"a", "b"}
    assert client.unassigned == 2


async def test_an_abort_cancels_the_call(made: Made) -> None:
    replica, client = made(never_ends)
    await client.add_request_async(request("a"))
    await client.add_request_async(request("b"))
    await client.get_output_async()
    await client.get_output_async()
    await client.abort_requests_async(["a", "unknown"])
    assert client.open_requests == ["b"]
    await until_async(lambda: replica.cancelled, "a call is cancelled")
    assert replica.cancelled == ["a"]


async def test_a_requests_own_fault_ends_it_with_an_error(made: Made) -> None:
    async def fails(replica: Fleet, request_id: str, address: Address) -> None:
        raise RuntimeError("cannot decode")

    fleet, client = made(fails)
    await client.add_request_async(request("a"))
    output = (await client.get_output_async()).outputs[0]
    assert (output.request_id, output.new_token_ids, output.finish_reason) == ("a", [], FinishReason.ERROR)
    assert client.open_requests == []
    assert list(fleet.calls) == ["a"]
    assert fleet.refused == [("a", "engine_lost")]


async def test_a_lost_replicas_request_goes_on_from_its_last_token(made: Made) -> None:
    async def dies_once(replica: Fleet, request_id: str, address: Address) -> None:
        if request_id == "a":
            replica.send(address, request_id, 7)
            replica.send(address, request_id, 8)
            await arrived(client, "a", 2)
            raise ActorDiedError
        replica.send(address, "a", 99, last=True)  # the lost replica was only slow
        replica.send(address, request_id, 9, last=True)

    fleet, client = made(dies_once)
    await client.add_request_async(request("a"))
    assert await tokens_of(client, "a") == [7, 8, 9]
    moved = fleet.calls["a#1"]
    assert moved.prompt_token_ids == [1, 2, 3, 7, 8]
    assert (moved.sampling_params.max_tokens, moved.sampling_params.min_tokens) == (3, 0)
    assert (fleet.ended_on, fleet.lost_on) == (["a#1"], ["a"])
    assert client.open_requests == []
    await until_async(lambda: not fleet.on, "it is on no replica")


@pytest.mark.parametrize(("noise", "prompt"), [(BY_POSITION, [1, 2, 3, 7]), (BY_STEPS, [1, 2, 3])])
async def test_a_seeded_request_goes_on_from_its_last_token_where_replicas_say_it_may(
    made: Made, noise: bytes, prompt: list[int]
) -> None:
    async def dies_once(replica: Fleet, request_id: str, address: Address) -> None:
        if request_id == "a":
            replica.sender.open(address).send([noise], NOISE)
            replica.send(address, request_id, 7)
            await arrived(client, "a", 1)
            raise ActorDiedError
        if prompt == [1, 2, 3]:
            replica.send(address, request_id, 7)
        replica.send(address, request_id, 8, last=True)

    fleet, client = made(dies_once)
    await client.add_request_async(request("a", seed=5))
    assert await tokens_of(client, "a") == [7, 8]
    assert fleet.calls["a#1"].prompt_token_ids == prompt


async def test_what_a_replica_tells_of_others_requests_and_of_its_speed_reaches_the_placement(made: Made) -> None:
    async def tells(replica: Fleet, request_id: str, address: Address) -> None:
        replica.sender.open(address).send([b"r1", msgspec.msgpack.encode([4, 700])], OTHERS)
        replica.sender.open(address).send([b"r1", msgspec.msgpack.encode([5000.0, 900.0])], SPEEDS)
        replica.send(address, request_id, 7, last=True)

    fleet, client = made(tells)
    await client.add_request_async(request("a"))
    assert await tokens_of(client, "a") == [7]
    assert fleet.others == [("r1", 4, 700), ("r1", 5000, 900)]


async def test_a_request_goes_on_as_often_as_replicas_are_lost(made: Made) -> None:
    async def dies_after_a_token(replica: Fleet, request_id: str, address: Address) -> None:
        attempt = len(replica.calls)
        replica.send(address, request_id, attempt, last=attempt == 4)
        if attempt < 4:
            await arrived(client, "a", attempt)
            raise ActorDiedError

    fleet, client = made(dies_after_a_token)
    await client.add_request_async(request("a"))
    assert await tokens_of(client, "a") == [1, 2, 3, 4]
    assert [call.prompt_token_ids[3:] for call in fleet.calls.values()] == [[], [1], [1, 2], [1, 2, 3]]
    assert [call.sampling_params.max_tokens for call in fleet.calls.values()] == [5, 4, 3, 2]
    assert [client is None for client in fleet.clients] == [False, True, True, True], "it had its turn"
    assert fleet.refused == []


@pytest.mark.parametrize("error", [asyncio.CancelledError(), RequestCancelledError("a")])
async def test_a_call_that_the_other_side_cancels_goes_on_elsewhere(made: Made, error: BaseException) -> None:
    async def cancels_once(replica: Fleet, request_id: str, address: Address) -> None:
        if request_id == "a":
            raise error
        replica.send(address, request_id, 7, last=True)

    fleet, client = made(cancels_once)
    await client.add_request_async(request("a"))
    assert await tokens_of(client, "a") == [7]
    assert (fleet.lost_on, fleet.refused) == (["a"], [])


async def test_calls_that_fail_before_they_are_placed_are_not_made_for_ever(made: Made) -> None:
    async def cancelled_at_once(replica: Fleet, request_id: str, address: Address) -> None:
        replica.on.discard(request_id)
        raise RequestCancelledError(request_id)

    fleet, client = made(cancelled_at_once, wait_s=0.25)
    await client.add_request_async(request("a"))
    assert (await client.get_output_async()).outputs[0].finish_reason is FinishReason.ERROR
    assert fleet.refused == [("a", "engine_unavailable")]
    assert 1 < len(fleet.calls) < 5


async def test_a_deployment_that_has_failed_is_no_fault_of_the_request(made: Made) -> None:
    async def failed(replica: Fleet, request_id: str, address: Address) -> None:
        raise DeploymentUnavailableError(DeploymentID("LLM"))

    fleet, client = made(failed)
    await client.add_request_async(request("a"))
    assert (await client.get_output_async()).outputs[0].finish_reason is FinishReason.ERROR
    assert (fleet.refused, list(fleet.calls)) == ([("a", "engine_unavailable")], ["a"])


async def test_an_abort_while_moving_lets_the_next_one_move(made: Made) -> None:
    """One at a time is on probation: the first to move has no token yet when its client leaves."""

    async def dies_once(replica: Fleet, request_id: str, address: Address) -> None:
        if "#" not in request_id:
            replica.send(address, request_id, 1)
            await arrived(client, request_id, 1)
            raise ActorDiedError
        if request_id == "a#1":
            await asyncio.Event().wait()
        replica.send(address, request_id, 2, last=True)

    fleet, client = made(dies_once)
    await client.add_request_async(request("a"))
    await until_async(lambda: "a#1" in fleet.calls, "the first one has moved")
    await client.add_request_async(request("b"))
    await until_async(lambda: client._requests.by_id["b"].attempt.number, "the second one is to move")
    assert "b#1" not in fleet.calls
    await client.abort_requests_async(["a"])
    await ended(client)
    assert [call for call in fleet.cancelled if "#" in call] == ["a#1"]
    assert fleet.refused == []


async def test_times_of_a_moved_request_are_of_its_first_engines_clock(made: Made) -> None:
    """Clocks of two hosts have nothing in common, and vLLM's metrics are differences; a request is queued once."""

    def send(fleet: Fleet, address: Address, request_id: str, token: int, clock: float) -> None:
        events = [EngineCoreEvent(EngineCoreEventType.QUEUED, clock), EngineCoreEvent(EngineCoreEventType.SCHEDULED, clock)]
        output = EngineCoreOutput(request_id, [token], events=events, finish_reason=FinishReason.STOP if token == 4 else None)
        fleet.sender.open(address).send(MsgpackEncoder().encode(EngineCoreOutputs(outputs=[output], timestamp=clock)))

    async def dies_once(replica: Fleet, request_id: str, address: Address) -> None:
        if request_id == "a":
            send(replica, address, request_id, 1, 1000.0)
            send(replica, address, request_id, 2, 1000.5)
            await arrived(client, "a", 2)
            raise ActorDiedError
        send(replica, address, request_id, 3, 9_000_000.0)
        send(replica, address, request_id, 4, 9_000_000.25)

    _, client = made(dies_once)
    await client.add_request_async(request("a"))
    steps: list[EngineCoreOutputs] = []
    while len(steps) < 4:
        steps += [step for step in [await asyncio.wait_for(client.get_output_async(), 5)] if step.outputs]
    times = [step.timestamp for step in steps]
    assert times[:2] == [1000.0, 1000.5]
    assert 1000.5 <= times[2] < 1100, "what passed here, between two hosts"
    assert times[3] - times[2] == pytest.approx(0.25)
    assert [len(step.outputs[0].events or ()) for step in steps] == [2, 2, 0, 0]


async def test_what_a_prompt_cannot_give_back_is_written_again_and_delivered_once(made: Made) -> None:
    async def dies_once(replica: Fleet, request_id: str, address: Address) -> None:
        if request_id == "a":
            replica.send(address, request_id, 7)
            await arrived(client, "a", 1)
            raise ActorDiedError
        for token in (7, 8, 9):
            replica.send(address, request_id, token, last=token == 9)

    fleet, client = made(dies_once)
    await client.add_request_async(request("a", seed=4))
    assert await tokens_of(client, "a") == [7, 8, 9]
    moved = fleet.calls["a#1"]
    assert moved.prompt_token_ids == [1, 2, 3]
    assert (moved.sampling_params.max_tokens, moved.sampling_params.seed) == (5, 4)
    assert moved.sampling_params.extra_args == {"satori_repeat": {"tokens": [7]}}


async def test_another_text_the_second_time_is_an_error_and_is_not_delivered(made: Made) -> None:
    async def dies_once(replica: Fleet, request_id: str, address: Address) -> None:
        if request_id == "a":
            replica.send(address, request_id, 7)
            await arrived(client, "a", 1)
            raise ActorDiedError
        replica.send(address, request_id, 6)
        await asyncio.Event().wait()

    fleet, client = made(dies_once)
    await client.add_request_async(request("a", seed=4))
    outputs = [(await client.get_output_async()).outputs for _ in range(2)]
    assert [[output.new_token_ids for output in step] for step in outputs] == [[[7]], [[]]]
    assert outputs[1][0].finish_reason is FinishReason.ERROR
    assert fleet.refused == [("a", "engine_lost")]
    await until_async(lambda: "a#1" in fleet.cancelled, "the second call is cancelled")


async def test_a_request_that_kills_two_replicas_is_refused_and_the_others_are_not(made: Made) -> None:
    held: dict[str, asyncio.Event] = {}
    dies_with: dict[str, asyncio.Event] = {}

    async def script(replica: Fleet, request_id: str, address: Address) -> None:
        name = request_id.split("#")[0]
        died = replica.died
        if name == "poison":
            await asyncio.sleep(0)
            replica.died = asyncio.Event()
            died.set()
            raise ActorDiedError
        replica.send(address, request_id, 1)
        held[name], dies_with[name] = asyncio.Event(), died
        ends = asyncio.create_task(held[name].wait())
        dies = asyncio.create_task(died.wait())
        await asyncio.wait((ends, dies), return_when=asyncio.FIRST_COMPLETED)
        if dies.done():
            raise ActorDiedError
        replica.send(address, request_id, 2, last=True)

    fleet, client = made(script)
    innocent = [f"innocent-{number}" for number in range(5)]
    for name in (*innocent[:3], "poison", *innocent[3:]):
        await client.add_request_async(request(name))
    await ended(client, *innocent)
    assert fleet.refused == [("poison", "request_kills_replicas")]

    def settled(name: str) -> bool:
        """Return whether a request has sent something since the last replica died."""
        event = client._requests.by_id[name].attempt.settled
        return dies_with[name] is fleet.died and event is not None and event.is_set()

    await until_async(lambda: [settled(name) for name in innocent], "all others have moved", holds=all)
    for event in held.values():
        event.set()
    await ended(client)
    assert fleet.refused == [("poison", "request_kills_replicas")]


async def test_a_request_waits_for_a_replica_but_not_for_ever(made: Made) -> None:
    async def no_replica(replica: Fleet, request_id: str, address: Address) -> None:
        replica.on.discard(request_id)
        await asyncio.Event().wait()

    fleet, client = made(no_replica, wait_s=0.01)
    await client.add_request_async(request("a"))
    assert (await client.get_output_async()).outputs[0].finish_reason is FinishReason.ERROR
    assert fleet.refused == [("a", "engine_unavailable")]
    await until_async(lambda: fleet.cancelled == ["a"], "the call is cancelled")


async def test_a_request_that_was_to_go_to_a_replica_but_could_not_be_sent_waits_no_longer(made: Made) -> None:
    async def taken_back(replica: Fleet, request_id: str, address: Address) -> None:
        await asyncio.sleep(0.05)
        replica.on.discard(request_id)
        await asyncio.Event().wait()

    fleet, client = made(taken_back, wait_s=0.01)
    await client.add_request_async(request("a"))
    assert (await client.get_output_async()).outputs[0].finish_reason is FinishReason.ERROR
    assert fleet.refused == [("a", "engine_unavailable")]


async def test_a_request_on_a_replica_may_take_its_time(made: Made) -> None:
    async def slow(replica: Fleet, request_id: str, address: Address) -> None:
        await asyncio.sleep(0.1)
        replica.send(address, request_id, 1, last=True)

    fleet, client = made(slow, wait_s=0.01)
    await client.add_request_async(request("a"))
    assert await tokens_of(client, "a") == [1]
    assert fleet.refused == []


async def test_last_tokens_that_do_not_come_are_asked_for_elsewhere(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failover, "LAST_TOKENS_S", 0.01)

    async def loses_the_end(replica: Fleet, request_id: str, address: Address) -> None:
        replica.send(address, request_id, 1, last=request_id != "a")
        opened = client._requests.by_id["a"]  # what it sends is read, what it does not is lost
        await until_async(lambda: len(opened.tokens), "a token a call", holds=lambda here: here == len(fleet.calls))

    fleet, client = made(loses_the_end)
    await client.add_request_async(request("a"))
    assert await tokens_of(client, "a") == [1, 1]
    assert fleet.calls["a#1"].prompt_token_ids == [1, 2, 3, 1]
    assert fleet.lost_on == []


@pytest.mark.parametrize("error", [ActorDiedError(), RuntimeError("late")])
async def test_a_replica_that_is_lost_after_the_last_token_changes_nothing(made: Made, error: Exception) -> None:
    async def dies_at_the_end(replica: Fleet, request_id: str, address: Address) -> None:
        if request_id == "1_a":
            await asyncio.Event().wait()
        replica.send(address, request_id, 1, last=True)
        await until_async(lambda: "0_a" not in client.open_requests, "its last token is here")
        raise error

    fleet, client = made(dies_at_the_end)
    await client.add_request_async(request("0_a"))
    await client.add_request_async(request("1_a"))
    call = client._requests.by_id["0_a"].call
    assert call is not None
    assert await tokens_of(client, "0_a") == [1]
    await asyncio.wait([call])
    assert call.exception() is None
    assert client.open_requests == ["1_a"]
    assert (list(fleet.calls), fleet.refused) == (["0_a", "1_a"], [])


async def test_samples_are_a_group_and_requests_that_chose_the_same_id_are_none(made: Made) -> None:
    fleet, client = made(never_ends)
    for request_id in ("0_chatcmpl-x-1f", "1_chatcmpl-x-1f", "chatcmpl-x-2e"):
        sample = request(request_id)
        sample.external_req_id = "chatcmpl-x"
        await client.add_request_async(sample)
    await until_async(lambda: len(fleet.groups) == 3, "three calls")
    assert fleet.groups == ["chatcmpl-x-1f", "chatcmpl-x-1f", "chatcmpl-x-2e"]


async def test_the_server_is_told_of_a_request_and_charged_for_its_tokens(made: Made) -> None:
    fleet, client = made(three_tokens)
    for request_id in ("0_a", "1_a", "b"):
        await client.add_request_async(request(request_id))
    assert fleet.prepared == 3
    assert fleet.charged == [("alice", 3), ("alice", 3)], "the prompt of samples counts once"
    await ended(client)
    assert fleet.charged[2:] == [("alice", 1)] * 9
    assert fleet.clients == ["alice"] * 3


async def test_what_is_delivered_twice_is_charged_once(made: Made) -> None:
    async def dies_once(replica: Fleet, request_id: str, address: Address) -> None:
        for token in (7, 8):
            replica.send(address, request_id, token, last=token == 8 and request_id != "a")
        if request_id == "a":
            await arrived(client, "a", 2)
            raise ActorDiedError
        await until_async(lambda: not client.open_requests, "the last token is here")

    fleet, client = made(dies_once)
    await client.add_request_async(request("a", seed=4))
    await ended(client)
    assert fleet.refused == [("a", "engine_lost")], "the repetition ended too early"
    assert fleet.charged == [("alice", 3), ("alice", 1), ("alice", 1)]


async def test_a_moved_request_leaves_its_visits_in_the_record(made: Made) -> None:
    async def dies_once(replica: Fleet, request_id: str, address: Address) -> None:
        replica.send(address, request_id, 7, last=request_id != "a")
        if request_id == "a":
            await arrived(client, "a", 1)
            raise ActorDiedError

    _, client = made(dies_once)
    record = Record(arrived=0.0)
    token = record_module.current.set(record)
    await client.add_request_async(request("a"))
    record_module.current.reset(token)
    await client.add_request_async(request("nobody's"))
    opened = client._requests.by_id["a"]
    call = opened.call
    assert call is not None
    await ended(client)
    await asyncio.wait([call])
    [timeline] = record.engine
    assert (timeline.request_id, timeline.client, timeline.prompt_tokens, timeline.tokens) == ("a", "alice", 3, [7, 7])
    assert [(visit.lost, visit.engine) for visit in timeline.visits] == [(True, 0), (False, 0)]
    assert all(0 < visit.began <= visit.ended for visit in timeline.visits)
    assert timeline.moved
    assert timeline.began <= timeline.first_here


async def test_an_error_is_told_in_the_record_of_its_request(made: Made) -> None:
    async def fails(replica: Fleet, request_id: str, address: Address) -> None:
        raise RuntimeError("cannot decode")

    _, client = made(fails)
    record = Record(arrived=0.0)
    token = record_module.current.set(record)
    await client.add_request_async(request("a"))
    record_module.current.reset(token)
    await ended(client)
    assert record.error == "engine_lost"


async def test_samples_of_a_request_end_together_with_an_error(made: Made) -> None:
    async def one_fails(replica: Fleet, request_id: str, address: Address) -> None:
        if request_id == "0_a":
            await until_async(lambda: len(replica.calls) == 3, "all have begun")
            raise RuntimeError("cannot decode")
        await asyncio.Event().wait()

    fleet, client = made(one_fails)
    for request_id in ("0_a", "1_a", "b"):
        await client.add_request_async(request(request_id))
    await ended(client, "b")
    assert fleet.refused == [("0_a", "engine_lost"), ("1_a", "engine_lost")]
    await until_async(lambda: fleet.cancelled == ["1_a"], "the other sample's call is cancelled")


async def test_nothing_is_kept_of_a_request_that_cannot_be_sent(made: Made) -> None:
    _, client = made(never_ends)
    with pytest.raises(UnicodeEncodeError):
        await client.add_request_async(request("a", stop=["\ud800"]))  # type: ignore[arg-type]
    assert client.open_requests == []
    await client.abort_requests_async(["a"])


ARRAYS = LogprobsLists(*[np.ones((1, 200), dtype=np.int32)] * 3)
STEP = bytes(MsgpackEncoder().encode(EngineCoreOutputs(outputs=[EngineCoreOutput("a", [1], new_logprobs=ARRAYS)]))[0])


@given(st.lists(st.binary(max_size=64), min_size=1, max_size=3), st.integers(0, len(STEP)), st.integers(0, len(STEP)))
def test_frames_that_no_encoder_made_are_told_as_such(garbage: list[bytes], begin: int, end: int) -> None:
    client = ServeEngineClient.__new__(ServeEngineClient)
    client._decoder = MsgpackDecoder(EngineCoreOutputs)
    for frames in (garbage, [STEP[:begin] + garbage[0] + STEP[end:], *garbage[1:]]):
        with contextlib.suppress(MalformedError):
            client._decode(frames)
    with pytest.raises(MalformedError):
        client._decode([STEP, *garbage[:1]])  # the arrays were in other frames


def poll(client: ServeEngineClient, times: int = BEATS) -> None:
    """Have so many polls pass."""
    for _ in range(times):
        client._failover._polling.cancel()
        client._failover._poll()


async def test_a_silent_replicas_request_moves_and_is_not_blamed(made: Made) -> None:
    async def falls_silent(replica: Fleet, request_id: str, address: Address) -> None:
        replica.send(address, request_id, 7 + request_id.count("#"), last="#2" in request_id)
        await asyncio.Event().wait()

    fleet, client = made(falls_silent)
    await client.add_request_async(request("a"))
    for count in (1, 2):
        await arrived(client, "a", count)
        poll(client, BEATS + 2)  # the first one sees where it is
    assert await tokens_of(client, "a") == [7, 8, 8]
    assert (fleet.lost_on, fleet.cancelled) == (["a", "a#1"], ["a", "a#1"])
    assert fleet.refused == []


async def test_a_request_is_not_refused_for_replicas_that_fell_silent(made: Made) -> None:
    async def silent_three_times(replica: Fleet, request_id: str, address: Address) -> None:
        if request_id == "a#3":
            replica.send(address, request_id, 7, last=True)
        await asyncio.Event().wait()

    fleet, client = made(silent_three_times)
    await client.add_request_async(request("a"))
    for wire_id in ("a", "a#1", "a#2"):
        await until_async(lambda: fleet.calls, f"a call for {wire_id}", holds=lambda calls, wire_id=wire_id: wire_id in calls)
        poll(client, BEATS + 2)
    assert await tokens_of(client, "a") == [7]
    assert (fleet.lost_on, fleet.refused) == (["a", "a#1", "a#2"], [])


async def test_signs_of_life_keep_a_request_where_it_is_and_are_no_outputs(made: Made) -> None:
    address: asyncio.Future[Address] = asyncio.get_running_loop().create_future()

    async def holds(replica: Fleet, request_id: str, where: Address) -> None:
        address.set_result(where)
        await asyncio.Event().wait()

    fleet, client = made(holds)
    await client.add_request_async(request("a"))
    lane = fleet.sender.open(await address)
    attempt = client._requests.by_id["a"].attempt
    for _ in range(3):
        poll(client)
        assert attempt.silent
        lane.send(MsgpackEncoder().encode(EngineCoreOutputs(outputs=[EngineCoreOutput("a", [])])))
        await until_async(lambda: not attempt.silent, "the sign of life is here")
    fleet.send(await address, "a", 1, last=True)
    assert [output.new_token_ids for output in (await client.get_output_async()).outputs] == [[1]]
    assert (list(fleet.calls), fleet.lost_on) == (["a"], [])


async def test_a_request_that_waits_for_a_replica_or_is_handed_back_by_full_ones_is_not_silent(made: Made) -> None:
    fleet, client = made(never_ends)
    await client.add_request_async(request("a"))
    await arrived(client, "a", 1)
    fleet.times = 0
    poll(client, 2 * BEATS)
    for _ in range(2 * BEATS):
        fleet.times += 1
        poll(client, 1)
    poll(client)
    await asyncio.sleep(0.02)
    assert (list(fleet.calls), fleet.cancelled) == (["a"], [])
    poll(client, 1)
    await until_async(lambda: fleet.cancelled == ["a"], "the call is cancelled")
