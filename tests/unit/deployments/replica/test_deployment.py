"""The LLM deployment over an engine core with scripted tokens."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from ray import serve
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.core import EngineCore
from vllm.v1.metrics.stats import PrefixCacheStats, SchedulerStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from deployments.errors import EngineLostError, EngineUnavailableError
from deployments.observability import exposition, progress
from deployments.reasoning.limits import Chain, Repetition
from deployments.reasoning.rules import rules_of
from deployments.replica import deployment
from deployments.replica.deployment import LLM, QUESTION
from deployments.settings import load
from deployments.transport import wire
from deployments.transport.channel import BY_POSITION, CANCEL, DEFERRED, HELLO, LAST, NOISE, OTHERS, REFUSED, REQUEST, SPEEDS, Send
from deployments.transport.receiver import Receiver
from tests.support.until import until_async


class Core:
    """An engine core whose steps are put into `steps` by the test."""

    seeded_by_position = True
    pid = os.getpid()

    def __init__(self) -> None:
        self.steps: asyncio.Queue[wire.Step | Exception] = asyncio.Queue()
        self.added: list[str] = []
        self.priorities: list[int] = []
        self.aborted: list[str] = []
        self.killed = asyncio.Event()
        self.answers = asyncio.Event()
        self.answers.set()
        self.asked: list[str] = []

    async def call(self, method: str) -> bool:
        self.asked.append(method)
        await self.answers.wait()
        return False

    def attach(self, on_cache: Any) -> None: ...

    async def step(self) -> tuple[wire.Step, list[bytes]]:
        step = await self.steps.get()
        if isinstance(step, Exception):
            raise step
        return step, []

    def add(self, request: wire.Request, rest: list[bytes]) -> None:
        self.added.append(request.request_id)
        self.priorities.append(request.priority)

    def abort(self, request_ids: list[str]) -> None:
        self.aborted += request_ids

    def kill(self) -> None:
        self.killed.set()

    def close(self) -> None: ...


class Ingress:
    """The receiving end: token ids by request."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.ended: list[str] = []
        self.stats = 0
        self.engines: set[int] = set()
        self._decoder = MsgpackDecoder(EngineCoreOutputs)
        self.receiver = Receiver("127.0.0.1", self._deliver, on_message=self._on_message)
        self.messages: list[tuple[bytes, list[bytes]]] = []
        self.to_replica: Send | None = None

    def _on_message(self, kind: bytes, frames: list[bytes], reply: Send) -> None:
        self.messages.append((kind, frames))
        self.to_replica = reply

    def send(self, *frames: bytes) -> None:
        """Send over the lane."""
        assert self.to_replica is not None
        self.to_replica(list(frames))

    def ask(self, name: str, client: str | None = "", body: list[bytes] | None = None, unread: int = 3) -> None:
        """Send a request over the lane."""
        self.send(REQUEST, msgspec.msgpack.encode((name, client, unread)), *(encoded(name) if body is None else body))

    async def has(self, **tokens: list[int]) -> None:
        """Wait until just these tokens have come."""
        await until_async(lambda: self.tokens, f"the tokens {tokens}", holds=lambda here: here == tokens)

    def _deliver(self, frames: list[Any]) -> None:
        step = self._decoder.decode(frames)
        self.stats += step.scheduler_stats is not None
        self.engines.add(step.engine_index)
        for output in step.outputs:
            self.tokens.setdefault(output.request_id, []).extend(output.new_token_ids)
            self.ended += [output.request_id] if output.finish_reason is not None else []


def encoded(request_id: str) -> list[bytes]:
    request = EngineCoreRequest(request_id, [1], None, SamplingParams(), None, 0.0, None, None, None)
    return [bytes(part) for part in MsgpackEncoder().encode(request)]


def step(*outputs: tuple[str, int, bool], running: int = 0, counts: bool = True) -> wire.Step:
    stats = SchedulerStats(running, prefix_cache_stats=PrefixCacheStats(requests=1 if counts else 0, queries=7))
    return wire.Step(
        outputs=[wire.Output(i, [token], finish_reason=wire.STOP if last else None) for i, token, last in outputs],
        scheduler_stats=msgspec.to_builtins(stats),
    )


async def warm(llm: LLM) -> None: ...


@pytest.fixture
async def llm(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LLM]:
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="r1"), rank=SimpleNamespace(rank=3))
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(LLM, "_start", lambda self, settings: Core())
    monkeypatch.setattr(LLM, "_warm_up", warm)
    monkeypatch.setattr(progress, "note", lambda doing: None)
    monkeypatch.setattr(exposition, "show", lambda part, settings: None)
    monkeypatch.setattr(deployment, "REGISTRY", CollectorRegistry())
    made = LLM.__new__(LLM)
    await made.__init__(load({"preset": "nano-cpu"}))  # type: ignore[misc]
    yield made
    for task in made._tasks:
        task.cancel()
    made._sender.close()


@pytest.fixture
async def ingress() -> AsyncIterator[Ingress]:
    made = Ingress()
    yield made
    made.receiver.close()


async def started(llm: LLM, ingress: Ingress, *request_ids: str, client: str | None = "") -> list[asyncio.Task[None]]:
    """Start calls and return them when the core has their requests."""
    address = ingress.receiver.address
    calls = [asyncio.create_task(llm.generate("group", name, address, encoded(name), client)) for name in request_ids]
    await until_async(lambda: set(request_ids) <= set(llm._core.added), f"the engine has {request_ids}", every_s=0)
    return calls


async def test_each_ingress_gets_its_own_tokens_and_calls_end(llm: LLM, ingress: Ingress) -> None:
    one, two = ingress, Ingress()
    calls = await started(llm, one, "a", "b")
    calls += await started(llm, two, "c")
    llm._core.steps.put_nowait(step(("a", 1, False), ("b", 1, False), ("c", 1, False), running=3))
    llm._core.steps.put_nowait(step(("a", 2, True), ("b", 2, True), ("c", 2, True), ("stranger", 9, True), running=0))
    await asyncio.gather(*calls)
    await one.has(a=[1, 2], b=[1, 2])
    await two.has(c=[1, 2])
    assert one.stats + two.stats == 2, "a step's counters go to one ingress only"
    assert one.engines == two.engines == {3}, "the ingresses are told which engine it was"
    assert await llm.state() == {"id": "r1", "open": 0, "served": 3, "running": 0, "waiting": 0}
    assert llm._core.aborted == []
    two.receiver.close()


async def test_a_cancelled_call_frees_its_place(llm: LLM, ingress: Ingress) -> None:
    [one, two] = await started(llm, ingress, "a", "b")
    one.cancel()
    with pytest.raises(asyncio.CancelledError):
        await one
    assert llm._core.aborted == ["a"]
    assert (await llm.state())["open"] == 1
    llm._core.steps.put_nowait(step(("b", 1, True)))
    await two


async def test_a_dead_engine_fails_its_calls_and_its_health_check(llm: LLM, ingress: Ingress) -> None:
    await llm.check_health()
    calls = await started(llm, ingress, "a", "b")
    llm._core.steps.put_nowait(RuntimeError("engine died"))
    for call in calls:
        with pytest.raises(EngineUnavailableError, match="engine died"):
            await call
    with pytest.raises(EngineUnavailableError, match="engine died"):
        await llm.check_health()
    with pytest.raises(EngineUnavailableError, match="engine died"):
        await llm.generate("group", "c", ingress.receiver.address, encoded("c"), "")
    assert (await llm.state())["open"] == 0


async def test_an_engine_that_is_told_to_end_does_not_end_its_requests(llm: LLM, ingress: Ingress) -> None:
    """By SIGTERM vLLM's engine aborts them: passed on, that would be the end of a reply, without an error."""
    calls = await started(llm, ingress, "a", "b")
    aborted = wire.Step(outputs=[wire.Output(name, [], finish_reason=wire.ABORT) for name in "ab"])
    llm._core.steps.put_nowait(step(("a", 1, False), ("b", 1, False)))
    llm._core.steps.put_nowait(aborted)
    for call in calls:
        with pytest.raises(EngineUnavailableError, match="the engine stops") as raised:
            await call
        assert not isinstance(raised.value, EngineLostError), "it did not die of them"
    with pytest.raises(EngineUnavailableError):
        await llm.check_health()
    await ingress.has(a=[1], b=[1])
    assert ingress.ended == []


async def test_a_hung_engine_is_given_up_but_an_idle_one_is_not(llm: LLM, ingress: Ingress) -> None:
    llm._hung_after_s = 0.05
    llm._silent = 1000  # idle since long ago
    watch = asyncio.create_task(llm._watch())
    await until_async(lambda: len(llm._core.asked) > 3, "it is asked, and answers", every_s=0.001)
    await llm.check_health()
    assert not llm._core.killed.is_set()
    [call] = await started(llm, ingress, "a")
    with pytest.raises(EngineLostError, match=r"nothing for 0\.05 s"):
        await call
    await llm._core.killed.wait()
    with pytest.raises(EngineUnavailableError):
        await llm.check_health()
    await watch


async def test_an_engine_that_hangs_while_it_is_idle_is_found_before_the_next_request(llm: LLM) -> None:
    assert hasattr(EngineCore, QUESTION), "vLLM's engine has what it is asked"
    llm._hung_after_s = 0.05
    llm._core.answers.clear()
    await llm._watch()
    assert llm._core.killed.is_set()
    assert llm._core.asked == [QUESTION] * 2, "once by each of its watches, of which the first is not in a hurry"
    with pytest.raises(EngineUnavailableError):
        await llm.check_health()


async def test_a_pause_of_the_replica_is_no_hang_of_its_engine(llm: LLM, ingress: Ingress) -> None:
    llm._hung_after_s = 0.2
    [call] = await started(llm, ingress, "a")
    watch = asyncio.create_task(llm._watch())
    for _ in range(2):
        silent = llm._silent
        time.sleep(0.5)  # the event loop stands still, as while all processes are stopped
        await until_async(lambda before=silent: llm._silent > before, "a round", every_s=0)  # type: ignore[misc]
    await llm.check_health()
    assert not llm._core.killed.is_set()
    llm._core.steps.put_nowait(step(("a", 1, True)))
    await call
    watch.cancel()


async def test_waiting_requests_start_in_an_order_that_is_fair_between_clients(llm: LLM, ingress: Ingress) -> None:
    calls = []
    for number, client in enumerate(["crowd", "crowd", "crowd", "single", None]):
        calls += await started(llm, ingress, f"r{number}", client=client)
    assert llm._core.priorities == [1, 2, 3, 1, 0], "what goes on from another replica comes first"
    llm._core.steps.put_nowait(step(("r0", 1, True), ("r1", 1, True), ("r2", 1, True)))
    await asyncio.gather(*calls[:3])
    [late] = await started(llm, ingress, "late", client="new")
    assert llm._core.priorities[-1] == 4
    for call in [*calls[3:], late]:
        call.cancel()
    await asyncio.gather(*calls[3:], late, return_exceptions=True)


async def test_the_autoscaler_is_told_which_requests_are_lines_of_batches(llm: LLM, ingress: Ingress) -> None:
    calls = await started(llm, ingress, "a", "b", client="person")
    calls += await started(llm, ingress, "c", "d", client=DEFERRED + "person")
    llm._core.steps.put_nowait(step(("a", 1, False), ("c", 1, False)))
    await ingress.has(a=[1], c=[1])
    load = await llm.record_autoscaling_stats()
    names = ("running", "waiting", "deferred_running", "deferred_waiting", "queued_prompt_tokens", "arrived", "started", "read")
    assert {name: load[name] for name in names} == dict(zip(names, (2, 2, 1, 1, 1, 2, 1, 2), strict=True))
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_counters_of_a_step_without_tokens_are_sent_and_gauges_are_not(llm: LLM, ingress: Ingress) -> None:
    [call] = await started(llm, ingress, "a")
    llm._core.steps.put_nowait(step(running=1))  # a part of a long prompt was read
    llm._core.steps.put_nowait(step(running=1, counts=False))
    llm._core.steps.put_nowait(step(("a", 1, True), running=2, counts=False))
    await call
    await ingress.has(a=[1])
    assert ingress.stats == 1
    assert (await llm.state())["running"] == 2


async def test_an_engine_is_warm_when_it_has_run_a_request_of_each_kind() -> None:
    made = LLM.__new__(LLM)
    core = made._core = Core()  # type: ignore[assignment]
    warming = asyncio.create_task(made._warm_up())
    await until_async(lambda: core.added, "the engine has a request")
    core.steps.put_nowait(step(running=1))
    await asyncio.sleep(0.01)
    assert not warming.done()
    first, *others = deployment.FIRST_REQUESTS
    core.steps.put_nowait(step(*((name, 1, True) for name in others)))
    await asyncio.sleep(0.01)
    assert not warming.done()
    core.steps.put_nowait(step((first, 1, True)))
    await warming
    assert core.added == [first, *others]


def test_the_first_requests_have_rules_of_all_kinds() -> None:
    """So that what enforces them is compiled before a client asks for it."""
    fields = vars(deployment.RULES)
    assert [name for name, value in fields.items() if value is None] == []
    [extra] = [parameters["extra_args"] for parameters in deployment.FIRST_REQUESTS.values() if "extra_args" in parameters]
    assert [type(rule) for rule in rules_of(extra, [])] == [Chain, Repetition]


async def test_an_ingress_is_told_of_its_requests_while_nothing_comes_of_them(llm: LLM, ingress: Ingress) -> None:
    llm._beat_s = 0.001
    beating = asyncio.create_task(llm._beat())
    [call] = await started(llm, ingress, "a")
    await ingress.has(a=[])
    call.cancel()
    beating.cancel()
    await asyncio.gather(call, beating, return_exceptions=True)


async def test_requests_of_an_ingress_that_is_gone_are_dropped(llm: LLM, ingress: Ingress) -> None:
    gone = Ingress()
    [call] = await started(llm, ingress, "a")
    [lost] = await started(llm, gone, "lost")
    llm._core.steps.put_nowait(step(("lost", 1, False)))
    await gone.has(lost=[1])
    gone.receiver.close()
    with pytest.raises(EngineUnavailableError, match="to the ingress is broken"):
        await lost
    assert llm._core.aborted == ["lost"]
    llm._core.steps.put_nowait(step(("a", 1, True)))
    await call


async def test_ingresses_are_told_of_the_requests_of_others(llm: LLM, ingress: Ingress, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "TELL_S", 0.001)
    telling = asyncio.create_task(llm._tell_of_others())

    def told(of: Ingress) -> list[Any]:
        return [msgspec.msgpack.decode(frames[1]) for kind, frames in of.messages if kind == OTHERS and frames[0] == b"r1"]

    other = Ingress()
    [call] = await started(llm, ingress, "a")
    carried = await carrying(llm, other, "b")
    await until_async(lambda: told(ingress)[-1:] == [[1, 3]] and told(other)[-1:] == [[1, 1]], "each knows of the other's request")
    llm._core.steps.put_nowait(step(("b", 1, False)))
    await until_async(lambda: told(ingress)[-1] == [1, 0], "its prompt has been read")
    llm._core.steps.put_nowait(step(("a", 1, True), ("b", 2, True)))
    await until_async(lambda: told(ingress)[-1] == [0, 0] == told(other)[-1], "both have ended")
    other.send(LAST)
    await asyncio.gather(call, carried)
    telling.cancel()
    other.receiver.close()


async def test_ingresses_are_told_how_fast_a_replica_is(llm: LLM, ingress: Ingress, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "SPEEDS_S", 0.001)
    telling = asyncio.create_task(llm._tell_speeds())
    [call] = await started(llm, ingress, "a")

    def told() -> list[Any]:
        return [msgspec.msgpack.decode(frames[1]) for kind, frames in ingress.messages if kind == SPEEDS and frames[0] == b"r1"]

    await until_async(told, "it is told of the settings", holds=lambda found: len(found) == 1)
    assert told()[0] == pytest.approx([20000, 1 / 0.00011])
    for number in range(20):  # a token and a prompt of 500 tokens in half a second
        made = step(("a", 1, False), running=1)
        made.timestamp = 100 + number / 2
        made.outputs[0].prefill_stats = {"num_computed_tokens": 500}
        llm._core.steps.put_nowait(made)
    await until_async(lambda: told()[-1][0] < 2500, "it reads more slowly than thought")
    call.cancel()
    telling.cancel()


async def carrying(llm: LLM, ingress: Ingress, *names: str) -> asyncio.Task[None]:
    """Start a call that carries these requests, and return it when the engine has them."""
    call = asyncio.create_task(llm.carry("r1", ingress.receiver.address))
    await until_async(lambda: ingress.to_replica is not None, "the replica has said hello")
    for name in names:
        ingress.ask(name)
    await until_async(lambda: set(names) <= set(llm._core.added), f"the engine has {names}")
    return call


async def test_a_call_carries_many_requests(llm: LLM, ingress: Ingress) -> None:
    call = await carrying(llm, ingress, "a", "b")
    assert ingress.messages == [(NOISE, [BY_POSITION]), (HELLO, [b"r1"])], "what a moved request needs to know comes first"
    [own] = await started(llm, ingress, "c")
    assert (await llm.state())["open"] == 3
    llm._core.steps.put_nowait(step(("a", 1, False), ("b", 1, True), ("c", 1, True), running=3))
    llm._core.steps.put_nowait(step(("a", 2, True)))
    await own
    await ingress.has(a=[1, 2], b=[1], c=[1])
    assert await llm.state() == {"id": "r1", "open": 0, "served": 3, "running": 0, "waiting": 0}
    assert not call.done()
    ingress.send(LAST)
    await call
    assert (llm._core.aborted, llm._carrying) == ([], {})


async def test_a_carried_request_is_cancelled_alone(llm: LLM, ingress: Ingress) -> None:
    call = await carrying(llm, ingress, "a", "b")
    ingress.send(CANCEL, b"a")
    ingress.send(CANCEL, b"a")
    ingress.send(CANCEL, b"unknown")
    await until_async(lambda: llm._core.aborted, "the engine has the request no more")
    assert list(llm._running) == ["b"]
    llm._core.steps.put_nowait(step(("a", 1, False), ("b", 1, True)))
    await ingress.has(b=[1])
    ingress.send(LAST)
    await call
    assert (ingress.tokens, llm._core.aborted) == ({"b": [1]}, ["a"])


async def test_a_cancelled_call_frees_the_places_of_all_it_carried(llm: LLM, ingress: Ingress) -> None:
    call = await carrying(llm, ingress, "a", "b")
    [own] = await started(llm, ingress, "c")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert llm._core.aborted == ["a", "b"]
    assert list(llm._running) == ["c"]
    ingress.ask("late")
    llm._core.steps.put_nowait(step(("c", 1, True)))
    await own
    await ingress.has(c=[1])
    await asyncio.sleep(0.05)  # the lane is read meanwhile
    assert "late" not in llm._core.added, "nobody would be told of its end"


async def test_a_dead_engine_fails_the_call_that_carries_also_an_idle_one(llm: LLM, ingress: Ingress) -> None:
    idle = Ingress()
    calls = [await carrying(llm, ingress, "a"), await carrying(llm, idle)]
    llm._core.steps.put_nowait(RuntimeError("engine died"))
    for call in calls:
        with pytest.raises(EngineLostError, match="engine died"):
            await call
    with pytest.raises(EngineUnavailableError, match="engine died"):
        await llm.carry("r1", ingress.receiver.address)
    assert (await llm.state())["open"] == 0
    idle.receiver.close()


async def test_what_is_carried_for_an_ingress_that_is_gone_is_dropped(llm: LLM) -> None:
    gone = Ingress()
    call = await carrying(llm, gone, "a")
    gone.receiver.close()
    with pytest.raises(EngineUnavailableError, match="to the ingress is broken"):
        await call
    assert llm._core.aborted == ["a"]


async def test_a_carried_request_that_cannot_be_read_is_handed_back(llm: LLM, ingress: Ingress) -> None:
    call = await carrying(llm, ingress, "a")
    ingress.ask("b", body=[b"\xc1"])
    await until_async(lambda: len(ingress.messages) == 3, "an answer")
    assert ingress.messages[2] == (REFUSED, [b"b"])
    assert list(llm._running) == ["a"]
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
