"""The LLM deployment: each replica holds one vLLM EngineCore and nothing else. No tokenizer, no template, no HTTP."""

import asyncio
import contextlib
import time
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
from prometheus_client import REGISTRY
from ray import serve

from deployments.engine.compile_cache import one_at_first
from deployments.engine.config import prepare
from deployments.errors import EngineLostError, EngineUnavailableError, SettingsError
from deployments.host import cards
from deployments.host.garbage import collect_less
from deployments.observability import exposition, logs, metrics, progress
from deployments.observability.startup import Phases
from deployments.reasoning.limits import ARGUMENT, REPEAT, Limits
from deployments.replica.cache_feed import CacheFeed
from deployments.replica.engine_core import EngineProxy, Gauges
from deployments.replica.fair_order import FIRST, FairOrder
from deployments.replica.meter import Meter
from deployments.replica.others import TELL_S, Others
from deployments.replica.speeds import Speeds
from deployments.settings import Settings, is_path
from deployments.transport import wire
from deployments.transport.channel import (
    BY_POSITION,
    BY_STEPS,
    CANCEL,
    DEFERRED,
    HELLO,
    LAST,
    NOISE,
    OTHERS,
    REFUSED,
    SPEEDS,
    Address,
)
from deployments.transport.sender import Lane, Sender
from deployments.weights.download import download
from deployments.weights.peers import from_cluster

logger = logs.logger("replica")

RULES = Limits(
    0, 1, [0, 1], [2], [3], [[4, 5]], [6], [], max_reasoning_tokens=1, max_reflections=0, max_explorations=0, min_reflections=1
)
"""Rules of all kinds, with tokens that every vocabulary has."""
FIRST_REQUESTS: dict[str, dict[str, Any]] = {
    "warm-up": {"max_tokens": 1, "logprobs": 0},
    "warm-up greedy": {"max_tokens": 2, "temperature": 0.0},
    "warm-up rules": {"max_tokens": 3, "extra_args": {ARGUMENT: asdict(RULES), REPEAT: {"tokens": [0]}}},
}
"""What a new engine is asked for: request id and sampling parameters."""

ROUNDS = 10
"""After how many rounds in a row the engine is hung: without a step while it has requests, without an answer while it has none."""
SPEEDS_S, TELLING, NO_SPEEDS = 2.0, 0.1, (0.0, 0.0)
"""How often ingresses may be told of this replica's speeds, and by what share those must have changed."""
QUESTION = "is_scheduler_paused"
"""What an idle engine is asked: one of vLLM's methods of an engine, which only looks at a flag."""


@dataclass
class Running:
    """A request in the engine.

    Its tokens go to `lane`. `tag` is its tag in the fair order, or None once it has started. `prompt_tokens` is the length of its
    prompt, and `unread` how many tokens of it are not cached, until it has been read. `call` is done when its handle call ends; a
    `carried` request shares that call with others. A `deferred` one is a line of a batch.
    """

    lane: Lane
    tag: int | None
    prompt_tokens: int
    call: asyncio.Future[None]
    carried: bool
    deferred: bool = False
    unread: float = 0.0


class LLM:
    """One engine core.

    A request has a handle call of its own, open until its last token has been sent, or shares one with all requests that this call
    carries (see `deployments.engine_client.carrier`).
    """

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits it
        self._phases = Phases("engine", progress.note)
        self._stats: dict[str, Any] | None = None
        self._stopping = False
        exposition.show(metrics.LLM, settings)
        with self._phases.printing_errors():
            self._core = await asyncio.to_thread(self._start, settings)
            self._feed = CacheFeed()
            self._core.attach(self._feed.on_batch)
            with self._phases("warm-up"):
                await self._warm_up()
        self._phases.done("start")
        self._hung_after_s = settings.llm.hung_after_s
        self._beat_s = settings.llm.beat_s
        self._costs = settings.autoscaling
        self._serve()
        REGISTRY.register(Gauges(self._core, self._rank, lambda: self._stats))
        exposition.count_tasks()
        exposition.count_memory_of(self._core.pid)
        collect_less()

    def _start(self, settings: Settings) -> EngineProxy:
        if problem := cards.unfit(settings.llm.num_gpus):
            raise SettingsError(problem)
        prepare(settings.llm.env)
        if settings.measuring.enabled:
            logs.write_requests("LLM")
        core = EngineProxy(cpu=not settings.llm.num_gpus)
        try:
            if not is_path(settings.model):
                with self._phases("download"):
                    settings = download(settings, self._phases.report, fetch=from_cluster)
            with self._phases("import vllm"):
                core.imported()
            with one_at_first(settings):
                with self._phases("configure"):
                    core.configure(settings)
                with self._phases("load model"):
                    core.load()
        except BaseException:
            core.close()
            raise
        gpus = settings.llm.num_gpus
        metrics.DEVICES.labels("gpu" if gpus else "cpu").set(gpus or 1)
        return core

    async def _warm_up(self) -> None:
        """Have the engine run a request of each of `FIRST_REQUESTS`, so that no client's request is the first of its kind.

        What an engine has not run yet it compiles at first use, between two steps, while all requests wait. vLLM (0.32.0) itself
        runs most of a sampler's kernels before, but neither log probabilities on a CPU nor our rules.
        """
        waiting = set(FIRST_REQUESTS)
        for name, parameters in FIRST_REQUESTS.items():
            self._core.add(wire.Request(name, [0], None, parameters, None, time.time(), None, None, None), [])
        while waiting:
            waiting -= {output.request_id for output in (await self._core.step())[0].outputs if output.finish_reason is not None}

    @staticmethod
    def _rank() -> int:
        """Return this replica's number among those of its deployment."""
        return serve.get_replica_context().rank.rank

    def _serve(self) -> None:
        self._decoder = msgspec.msgpack.Decoder(wire.Request)
        self._encoder = msgspec.msgpack.Encoder()
        self._sender = Sender(self._cut_off, self._on_message)
        self._running: dict[str, Running] = {}
        self._carrying: dict[Lane, asyncio.Future[None]] = {}
        self._id = serve.get_replica_context().replica_id.unique_id
        self._feed.serve(self._id)
        self._order = FairOrder()
        self._meter = Meter()
        self._speeds = Speeds(self._costs)
        self._error: EngineUnavailableError | None = None
        self._silent = 0
        work = (self._forward(), self._watch(), self._beat(), self._tell_of_others(), self._tell_speeds())
        self._tasks = [asyncio.create_task(part) for part in work]

    async def generate(self, group: str, request_id: str, address: Address, encoded: list[bytes], client: str | None) -> None:
        """Run an encoded `EngineCoreRequest` to its end; cancelling the call frees its place in the engine.

        `group` is for the router (see `deployments.routing.router`). Queued requests start in an order that is fair between
        clients; a request without `client`, which had started on another replica, comes first. Raises EngineUnavailableError when
        the engine is dead.
        """
        self._raise_if_dead()
        lane = self._lane(address)
        call: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            self._core.add(self._enter(encoded, Running(lane, None, 0, call, carried=False), client), encoded[1:])
            await call
        finally:
            self._sender.release(lane)
            if request_id in self._running:
                done = call.done() and not call.cancelled()
                how = "failed" if done and call.exception() else "ended" if done else "cancelled"
                self._leave(request_id, how)
                if how != "ended" and self._error is None:
                    self._core.abort([request_id])

    async def carry(self, replica: str, address: Address) -> None:
        """Receive an ingress's requests over its lane, without a call for each, until the ingress says that no more will come.

        `replica` is this replica's id, for the router. When this call fails, all requests that it carries are lost. Raises what
        `generate` raises.
        """
        self._raise_if_dead()
        lane = self._lane(address)
        call = self._carrying[lane] = asyncio.get_running_loop().create_future()
        lane.send([self._id.encode()], HELLO)
        try:
            await call
        finally:
            if self._carrying.get(lane) is call:
                del self._carrying[lane]
            self._sender.release(lane)
            remaining = [request_id for request_id, running in self._running.items() if running.call is call]
            for request_id in remaining:
                self._leave(request_id, "cancelled" if call.cancelled() or not call.exception() else "failed")
            if remaining and self._error is None:
                self._core.abort(remaining)

    def _lane(self, address: Address) -> Lane:
        """Return the lane to an ingress; it tells first what the ingress must know when it moves a seeded request."""
        lane = self._sender.open(address)
        if lane.requests == 1:
            lane.send([BY_POSITION if self._core.seeded_by_position else BY_STEPS], NOISE)
        return lane

    def _on_message(self, lane: Lane, frames: list[bytes]) -> None:
        """Receive an ingress's message over its lane: a request, a request's cancellation, or notice that no more will come."""
        if (call := self._carrying.get(lane)) is None or call.done():
            return  # the carrying call has ended, so the ingress knows
        kind, *rest = frames
        if kind == LAST:
            call.set_result(None)
        elif kind == CANCEL:
            if (request_id := rest[0].decode()) in self._running:
                self._leave(request_id, "cancelled")
                self._core.abort([request_id])
        else:
            request_id, client, unread = msgspec.msgpack.decode(rest[0])
            try:
                request = self._enter(rest[1:], Running(lane, None, 0, call, carried=True, unread=unread), client)
            except Exception:  # of whatever kind, it is this request's own: the ingress repeats it by a call, which then fails
                logger.exception("request %s could not be read", request_id)
                lane.send([request_id.encode()], REFUSED)
            else:
                self._core.add(request, rest[2:])

    def _enter(self, encoded: list[bytes], running: Running, client: str | None) -> wire.Request:
        """Return a request, ready for the engine, and register it as running."""
        request = self._decoder.decode(encoded[0])
        request.priority = running.tag = FIRST if client is None else self._order.tag(client)
        running.prompt_tokens = len(request.prompt_token_ids or ())
        if not running.carried:
            running.unread = running.prompt_tokens
        self._running[request.request_id] = running
        running.deferred = client is not None and client.startswith(DEFERRED)
        self._meter.arrived += client is not None and not running.deferred
        return request

    def _leave(self, request_id: str, how: str) -> None:
        """Remove a request, count it as ended, and log how it ended."""
        del self._running[request_id]
        self._meter.ended += 1
        logs.ended(request_id, how)

    def _raise_if_dead(self) -> None:
        if self._error is not None:
            raise EngineUnavailableError(str(self._error))

    async def follow_cache(self, replica: str, address: Address) -> bool:
        """Tell an ingress from now on what is in this replica's KV cache; return False when that cannot be followed.

        `replica` is this replica's id, for the router. Raises EngineUnavailableError when the engine is dead.
        """
        self._raise_if_dead()
        return self._feed.follow(address)

    async def state(self) -> dict[str, Any]:
        """Return this replica's id and its requests: ongoing (`open`), in the engine (`running`, `waiting`), ended (`served`)."""
        stats = self._stats
        engine = {"running": stats["num_running_reqs"] if stats else 0, "waiting": stats["num_waiting_reqs"] if stats else 0}
        return {"id": self._id, "open": len(self._running), "served": self._meter.ended, **engine}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return this replica's load and counts for the autoscaler. Serve calls it all the time while autoscaling is on."""
        stats, waiting = self._stats, [running for running in self._running.values() if running.tag is not None]
        deferred_waiting = sum(running.deferred for running in waiting)
        load = {
            "running": len(self._running) - len(waiting),
            "waiting": len(waiting),
            "deferred_running": sum(running.deferred for running in self._running.values()) - deferred_waiting,
            "deferred_waiting": deferred_waiting,
            "queued_prompt_tokens": sum(running.prompt_tokens for running in waiting if not running.deferred),
            "kv_cache_usage": stats["kv_cache_usage"] if stats is not None and self._running else 0.0,
        }
        return load | asdict(self._meter)

    async def check_health(self) -> None:
        """Raise when the engine is dead; Serve then replaces this replica."""
        self._raise_if_dead()

    async def _forward(self) -> None:
        """Send each engine step's outputs to the ingresses they belong to; fail all requests when the engine dies."""
        try:
            while True:
                step, rest = await self._core.step()
                self._silent = 0
                self._send(step, rest)
        except Exception as error:
            if self._stopping:
                return
            logger.error("%s", error)
            self._give_up(EngineLostError(str(error)))

    async def _watch(self) -> None:
        """Give up the engine when it has requests and does nothing, or has none and does not answer a question.

        It counts rounds of its own rather than seconds: a pause of all processes, or of the whole machine, is one round at most.
        """
        question: asyncio.Task[None] | None = None
        while self._error is None:
            if not self._running and (question is None or question.done()):
                question = asyncio.create_task(self._ask())
            await asyncio.sleep(self._hung_after_s / ROUNDS)
            waits = bool(self._running) or (question is not None and not question.done())
            self._silent = self._silent + 1 if waits else 0
            if self._silent > ROUNDS:
                logger.error("the engine is hung: with %d requests it did nothing for %g s", len(self._running), self._hung_after_s)
                self._give_up(EngineLostError(f"the engine did nothing for {self._hung_after_s:g} s"))
                self._core.kill()

    async def _ask(self) -> None:
        """Ask the engine something that costs it nothing, and note its answer as a sign of life."""
        with contextlib.suppress(EngineLostError):  # `_forward` hears of its end, too
            await self._core.call(QUESTION)
            self._silent = 0

    async def _beat(self) -> None:
        """Tell the ingresses which of their requests are here, by outputs without tokens. A host that is cut off falls silent."""
        while self._error is None:
            await asyncio.sleep(self._beat_s)
            parts: dict[Lane, list[wire.Output]] = {}
            for request_id, running in self._running.items():
                parts.setdefault(running.lane, []).append(wire.Output(request_id, []))
            for lane, outputs in parts.items():
                lane.send([self._encoder.encode(wire.Step(outputs=outputs, timestamp=time.monotonic()))])

    async def _tell_of_others(self) -> None:
        """Tell each ingress of the requests of others that are here."""
        others = Others()
        while self._error is None:
            await asyncio.sleep(TELL_S)
            for lane, *news in others.news(self._sender.lanes, ((one.lane, one.unread) for one in self._running.values())):
                lane.send([self._id.encode(), self._encoder.encode(news)], OTHERS)

    async def _tell_speeds(self) -> None:
        """Tell each ingress how fast this replica is, once it is known better than before."""
        told: dict[Lane, tuple[float, float]] = {}
        while self._error is None:
            await asyncio.sleep(SPEEDS_S)
            now = (self._speeds.prefill_tokens_per_s, self._speeds.decode_tokens_per_s)
            told, before = {}, told
            for lane in self._sender.lanes:
                told[lane] = before.get(lane, NO_SPEEDS)
                if any(abs(new - old) > TELLING * old for new, old in zip(now, told[lane], strict=True)):
                    lane.send([self._id.encode(), self._encoder.encode(now)], SPEEDS)
                    told[lane] = now

    def _cut_off(self, lane: Lane) -> None:
        """Drop the requests of an ingress that is gone or cut off: it has moved them elsewhere, or will."""
        for call in self._calls(lane):
            call.set_exception(EngineUnavailableError("the connection to the ingress is broken"))

    def _calls(self, lane: Lane | None = None) -> set[asyncio.Future[None]]:
        """Return the calls that have not ended: all of them, or those of one ingress."""
        calls = {running.call for running in self._running.values() if lane in (None, running.lane)}
        calls |= {call for carrying, call in self._carrying.items() if lane in (None, carrying)}
        return {call for call in calls if not call.done()}

    def _give_up(self, error: EngineUnavailableError) -> None:
        """Refuse new requests, fail the ongoing ones so that they move, and fail the health check so that Serve replaces us."""
        self._error = error
        for call in self._calls():
            call.set_exception(type(error)(str(error)))

    def _send(self, step: wire.Step, rest: list[bytes]) -> None:
        """Send a step's outputs to the ingresses; `rest` are further frames that they refer to."""
        step.engine_index = self._rank()
        if (stats := step.scheduler_stats) is not None:
            self._stats = stats
            self._meter.count_step(stats)
            if not wire.counts(stats):
                step.scheduler_stats = None  # nothing for the ingresses' counters
        parts: dict[Lane, list[wire.Output]] = {}
        generated = read = 0
        for output in step.outputs:
            if (running := self._running.get(output.request_id)) is None:
                continue
            if output.finish_reason == wire.ABORT:  # nobody here aborted it: a SIGTERM has told the engine to end
                self._give_up(EngineUnavailableError("the engine stops"))
                continue
            if running.tag is not None:
                self._order.started(running.tag)
                running.tag = None
                self._meter.count_start(output, running.prompt_tokens, running.deferred)
                running.unread = 0.0
            if (prefill := output.prefill_stats) is not None:
                read += prefill["num_computed_tokens"]
            generated += bool(output.new_token_ids)
            self._meter.generated += len(output.new_token_ids)
            if (part := parts.get(running.lane)) is None:
                part = parts[running.lane] = []
            part.append(output)
            if output.finish_reason is not None:
                if running.carried:
                    self._leave(output.request_id, "ended")
                elif not running.call.done():
                    running.call.set_result(None)
        if stats is not None:
            works = stats["num_running_reqs"] + stats["num_waiting_reqs"] > 0
            self._speeds.count_step(step.timestamp, generated, read, works)
        if not parts and step.scheduler_stats is not None and self._running:
            parts[next(iter(self._running.values())).lane] = []
        for lane, outputs in parts.items():
            step.outputs = outputs
            lane.send([self._encoder.encode(step), *rest])
            step.scheduler_stats = None  # its counters are deltas, so only one ingress may count them

    def __del__(self) -> None:
        if (core := getattr(self, "_core", None)) is not None:
            self._stopping = True
            core.close()
