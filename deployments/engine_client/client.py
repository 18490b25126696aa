"""vLLM's `EngineCoreClient` over Ray Serve: to vLLM's AsyncLLM, all LLM replicas together look like one engine that never dies.

A request is on one replica at a time, until the replica has sent its last token. It is sent by a Serve handle call of its own, or
by a call that carries many requests (`deployments.engine_client.carrier`); its tokens come over the token channel. An abort ends
it on the replica. When a replica is lost, its requests continue on others (`deployments.engine_client.failover`).
"""

import asyncio
import contextvars
import functools
import random
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import zmq
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from deployments.access.usage import deferrable
from deployments.engine.config import TASKS
from deployments.engine_client.block_hashes import Prompt
from deployments.engine_client.cache_watch import CacheWatch
from deployments.engine_client.carrier import Carriers
from deployments.engine_client.failover import Failover, next_attempt
from deployments.engine_client.replicas import LLMReplicas
from deployments.engine_client.request import OpenRequest, OpenRequests
from deployments.engine_client.stored import end_of, ending, one_by_one
from deployments.errors import EngineLostError, GrammarNotFollowedError, SatoriError
from deployments.observability import logs, record
from deployments.patching import patched
from deployments.routing import prospect
from deployments.routing.lengths import Lengths
from deployments.routing.score import Work
from deployments.store import chain as store
from deployments.store.chain import Chain
from deployments.store.values import End
from deployments.transport.channel import BY_POSITION, EPHEMERAL, NOISE, OTHERS, SPEEDS, MalformedError, Send
from deployments.transport.receiver import Receiver

logger = logs.logger("ingress")

PACE_WEIGHT = 0.1
REPORT_TOKENS = 32
"""After so many tokens of a request the router is told how many are still to come."""
ASKED_ABOUT = 200
"""Of so many replies at most is told how long they still take: each takes some 30 µs to ask about."""
UNFOLLOWED = "the engine could not go on with this format: it failed, or following it took too long"
# What vLLM's decoder raises for frames that its encoder did not make.
UNREADABLE = (
    msgspec.DecodeError,
    NotImplementedError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    RuntimeError,
)


@dataclass(frozen=True)
class Hooks:
    """The engine client's calls to the server in front of it. The defaults do nothing.

    `refuse` gets a request's id and the error, before the request ends with it. `prepared` is called when the current task's
    request has reached the engine client. `client_name` returns the name of that request's client. `charge` counts tokens of a
    client, those of prompts and generated ones.
    """

    refuse: Callable[[str, SatoriError], None] = lambda request_id, error: None
    prepared: Callable[[], None] = lambda: None
    client_name: Callable[[], str] = lambda: ""
    charge: Callable[[str, int], None] = lambda client, tokens: None


class ServeEngineClient(EngineCoreClient):
    """The engine side of an AsyncLLM whose engine is a set of LLM replicas.

    The replicas send tokens to one of the `ports` of `host`. For `wait_s` and `beat_s` see `deployments.engine_client.failover`.
    With `cache_blocks`, it knows what the replicas have cached, of so many blocks (see `deployments.engine_client.cache_watch`).
    """

    engine_ranks_managed = (0,)

    def __init__(
        self,
        replicas: LLMReplicas,
        host: str,
        *,
        wait_s: float,
        beat_s: float,
        hooks: Hooks,
        ports: range = EPHEMERAL,
        cache_blocks: int = 0,
    ) -> None:
        self.resources = types.SimpleNamespace(engine_dead=False)
        self._replicas = replicas
        self._hooks = hooks
        self._requests = OpenRequests()
        self._receiver = Receiver(host, self._on_step, ports, self._on_message)
        self._carriers = Carriers(replicas, self._receiver.address)
        self._watch = CacheWatch(replicas, self._receiver.address, cache_blocks) if cache_blocks else None
        self._prompt: tuple[str, Prompt] | None = None
        if self._watch is not None:
            replicas.look_up(self._watch.cached_tokens, self._watch.coming)
        self._failover = Failover(
            self._requests,
            replicas,
            self._carriers,
            wait_s=wait_s,
            beat_s=beat_s,
            encode=self._encode,
            work=self._work,
            fail=self._fail,
        )
        self._encoder = MsgpackEncoder()
        self._decoder = MsgpackDecoder(EngineCoreOutputs)
        self._outputs: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()
        self._pace_s = 0.0
        self._lengths = Lengths()
        self.turn_ids: frozenset[int] = frozenset()
        """The tokens that begin a turn of a chain, where the model writes chains."""
        self._chains: dict[str, Chain] = {}
        """Those of stored responses, by the request's own id."""
        self._stored: list[EngineCoreOutput] = []

    @property
    def pace_s(self) -> float:
        """How long recent requests took, in seconds from arrival to end: a mean in which older requests fade."""
        return self._pace_s

    @property
    def unassigned(self) -> int:
        """The number of requests that wait for a replica. Other threads may read it."""
        return sum(not self._replicas.assigned(wire_id) for wire_id in list(self._requests.by_wire_id))

    def idle(self, kept: float) -> float:
        """Return how many more requests the replicas can run at once, if each keeps this share of its slots free."""
        return self._replicas.idle(kept)

    @property
    def open_requests(self) -> list[str]:
        """The ids of the requests that are neither finished nor aborted, those that are read from the store among them."""
        return list(self._requests.by_id | self._chains)

    @property
    def carriers(self) -> int:
        """The number of replicas to which requests go without a handle call for each."""
        return self._carriers.usable

    @property
    def behind(self) -> bool:
        """Whether engine steps have arrived that were not taken yet (`get_output_async`)."""
        return not self._outputs.empty()

    async def get_supported_tasks_async(self) -> tuple[Any, ...]:
        """Return what the replicas can do: generate text."""
        return TASKS

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        """Start the request on a replica. Returns at once; its outputs come from `get_output_async`."""
        self._hooks.prepared()
        if (chain := store.current.get()) is not None:
            self._add_stored(request, chain)
            return
        encoded = self._encode(request)
        self._start(self._open(request), encoded)

    def _open(self, request: EngineCoreRequest) -> OpenRequest:
        opened = OpenRequest.open(request, self._hooks.client_name(), time.monotonic(), record.current.get(), deferrable.get())
        if opened.first_sample:  # the samples of a request share its prompt, which is charged once
            self._hooks.charge(opened.timeline.client, opened.timeline.prompt_tokens)
        return opened

    def _start(self, opened: OpenRequest, encoded: list[bytes]) -> None:
        self._requests.add(opened)
        prospect.current.set(opened.expect(self._lengths, self.turn_ids))
        # In a context of its own: in the HTTP request's context Serve gives all handle calls the same id, and its router mixes up
        # calls that share an id (the samples of one request then wait for ever; Ray 2.60.0).
        opened.call = asyncio.create_task(self._run(opened, encoded), context=contextvars.Context())

    def _add_stored(self, request: EngineCoreRequest, chain: Chain) -> None:
        """Start a request whose tokens are in the store. More are generated here only where this ingress holds the lease."""
        self._chains[request.request_id] = chain
        if chain.writes:
            opened = self._open(request)
            opened.tokens += chain.tokens
            chain.on_lost = functools.partial(self._abort_if_open, opened)
            self._start(opened, self._encode(next_attempt(opened, self._failover.seeded_by_position) if opened.tokens else request))
        chain.start(functools.partial(self._on_stored, request.request_id))

    def _abort_if_open(self, opened: OpenRequest) -> None:
        """Abort a request whose lease is lost. Its client gets what the new holder writes."""
        if opened in self._requests:
            self._abort(opened)

    def _on_stored(
        self, request_id: str, tokens: Sequence[int], end: End | None, payload: tuple[EngineCoreOutput, float] | None
    ) -> None:
        """Deliver tokens that are in the store now: live ones with their output, those of a log as if an engine had sent them."""
        output, timestamp = payload or (EngineCoreOutput(request_id, list(tokens)), 0.0)
        outputs = one_by_one(output)
        if end is not None:
            self._chains.pop(request_id, None)
            ending(outputs, request_id, end)
        if timestamp:  # all that a transaction has written is delivered at once, as an engine's step is
            if not self._stored:
                asyncio.get_running_loop().call_soon(self._deliver_stored, timestamp)
            self._stored += outputs
        else:
            self._deliver_stored(time.monotonic(), outputs)

    def _deliver_stored(self, timestamp: float, outputs: list[EngineCoreOutput] | None = None) -> None:
        """Deliver what the store has by now, and then these outputs."""
        ready = [*self._stored, *(outputs or ())]
        self._stored.clear()
        if ready:
            self._outputs.put_nowait(EngineCoreOutputs(outputs=ready, timestamp=timestamp))

    async def get_output_async(self) -> EngineCoreOutputs:
        """Return the outputs of the next engine step of any replica."""
        return await self._outputs.get()

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        """Cancel the calls of these requests; the replica then frees their places in the engine."""
        for request_id in request_ids:
            if (chain := self._chains.pop(request_id, None)) is not None:
                chain.stop()
            if (opened := self._requests.by_id.get(request_id)) is not None:
                self._abort(opened)

    def shutdown(self, timeout: float | None = None) -> None:
        """Cancel all calls and close the token channel. The replicas keep running: they do not belong to this client."""
        for opened in list(self._requests.by_id.values()):
            self._abort(opened)
        self._failover.close()
        if self._watch is not None:
            self._watch.close()
        self._carriers.shutdown()
        self._receiver.close()

    def _encode(self, request: EngineCoreRequest) -> list[bytes]:
        return [bytes(part) for part in self._encoder.encode(request)]

    async def _run(self, opened: OpenRequest, encoded: list[bytes]) -> None:
        """Keep a request on a replica until it ends, or end it with an error."""
        try:
            await self._failover.keep(opened, encoded)
        except SatoriError as error:
            self._fail(opened, error)
        except Exception as error:
            logger.exception("request %s failed", opened.attempt.wire_id)
            self._fail(opened, EngineLostError(f"the request failed on its replica ({type(error).__name__})"))

    def _work(self, opened: OpenRequest) -> Work:
        """Return what a request is expected to cost on a replica that it is given now: some generate their tokens so far again."""
        if again := opened.attempt.repeated:
            return Work(opened.timeline.prompt_tokens, self._expected_tokens(opened) + again)
        return Work(opened.timeline.prompt_tokens + len(opened.tokens), self._expected_tokens(opened), self._blocks(opened))

    def _blocks(self, opened: OpenRequest) -> Any:
        """Return what stands for the prompt of a request that is given to a replica now, the tokens so far with it."""
        if self._watch is None or len(self._replicas.known()) < 2:
            return ()
        if opened.tokens:
            return Prompt(opened.request, opened.tokens)
        if self._prompt is None or self._prompt[0] != opened.group:  # the samples of a request come one after the other
            self._prompt = (opened.group, Prompt(opened.request))
        return self._prompt[1]

    def _expected_tokens(self, opened: OpenRequest) -> float:
        """Return how many tokens a request is expected to generate from now on."""
        return reply.forecast().mean if (reply := opened.timeline.prospect) is not None else 0.0

    def left_s(self) -> dict[str, float] | None:
        """Return quantiles of the seconds that the replies of this ingress still take; None before that is known."""
        opened = list(self._requests.by_id.values())
        some = opened if len(opened) <= ASKED_ABOUT else random.sample(opened, ASKED_ABOUT)
        return prospect.left_s((reply for one in some if (reply := one.timeline.prospect) is not None), time.monotonic())

    def _abort(self, opened: OpenRequest) -> None:
        params = opened.request.sampling_params
        self._close(opened, "aborted", whole=bool(params and params.stop))  # vLLM's frontend finds stop strings, and aborts
        opened.cancel()

    def _close(self, opened: OpenRequest, how: str, *, whole: bool = False) -> None:
        """Remove a request, log how it ended, and learn from its length; it may be `whole`, ended by itself."""
        if (reply := opened.timeline.prospect) is not None:
            reply.ended(cut=not whole)
        taken_s = time.monotonic() - opened.timeline.began
        logs.ended(opened.attempt.wire_id, how, tokens=len(opened.tokens), seconds=round(taken_s, 3))
        self._requests.remove(opened)
        if opened.waiting is not None:
            opened.waiting.cancel()

    def _fail(self, opened: OpenRequest, error: SatoriError) -> None:
        """End a request with an error, and with it those of its siblings (n > 1) that have not ended yet."""
        if opened not in self._requests:
            return
        for sibling in self._requests.siblings(opened):
            logger.error("request %s is refused: %s", sibling.attempt.wire_id, error)
            record.failed(error.code, sibling.record)
            self._close(sibling, "failed")
            if sibling is not opened:
                sibling.cancel()
            request_id = sibling.request.request_id
            if (chain := self._chains.get(request_id)) is not None:
                chain.append([], End("error", code=error.code, message=str(error)), None)
                continue
            self._hooks.refuse(request_id, error)
            failed = EngineCoreOutput(request_id, [], finish_reason=FinishReason.ERROR)
            self._outputs.put_nowait(EngineCoreOutputs(outputs=[failed]))

    def _decode(self, frames: list[zmq.Frame]) -> EngineCoreOutputs:
        try:
            step: EngineCoreOutputs = self._decoder.decode(frames)
        except UNREADABLE as error:
            raise MalformedError from error
        return step

    def _on_message(self, kind: bytes, frames: list[bytes], reply: Send) -> None:
        """Receive a message of a replica that is not a step. All replicas of a deployment make noise alike."""
        if kind == NOISE:
            self._failover.seeded_by_position = frames[0] == BY_POSITION
        elif kind == OTHERS:
            self._replicas.told(frames[0].decode(), *msgspec.msgpack.decode(frames[1]))
        elif kind == SPEEDS:
            self._replicas.measured(frames[0].decode(), *msgspec.msgpack.decode(frames[1]))
        elif self._watch is None or not self._watch.on_message(kind, frames, reply):
            self._carriers.on_message(kind, frames, reply)

    def _on_step(self, frames: list[zmq.Frame]) -> None:
        """Deliver the outputs of an engine step. This runs for every token."""
        step = self._decode(frames)
        now = time.monotonic()
        by_wire_id, charge = self._requests.by_wire_id, self._hooks.charge
        new = []
        for output in step.outputs:
            if (opened := by_wire_id.get(output.request_id)) is None:
                continue  # the request was aborted, or the output is of a lost attempt
            attempt = opened.attempt
            attempt.silent = 0
            if not output.new_token_ids and output.finish_reason is None:
                continue  # only a sign of life: the replica still has the request
            if attempt.settled is not None:
                attempt.settled.set()
                attempt.visit.engine = step.engine_index
            if not opened.timeline.first_here and output.new_token_ids:
                opened.started(output.events, step.timestamp, now)
                attempt.visit.engine = step.engine_index
            timestamp = opened.on_first_clock(step.timestamp, now)
            try:
                if opened.accept(output):
                    if len(opened.tokens) >= attempt.next_report:
                        attempt.next_report = len(opened.tokens) + REPORT_TOKENS
                        self._replicas.progressed(attempt.wire_id, self._expected_tokens(opened))
                    if self._chains and (chain := self._chains.get(output.request_id)) is not None:
                        chain.append(output.new_token_ids, end_of(output), (output, timestamp))
                    elif timestamp == step.timestamp:
                        new.append(output)
                    else:
                        self._outputs.put_nowait(EngineCoreOutputs(step.engine_index, [output], timestamp=timestamp))
                    charge(opened.timeline.client, len(output.new_token_ids))
            except ValueError as error:
                self._fail(opened, EngineLostError(f"the request could not be moved: {error}"))
                opened.cancel()
                continue
            if output.finish_reason is not None:
                if output.finish_reason == FinishReason.ERROR:
                    self._explain(opened)
                self._ended(opened, output.finish_reason, now)
        if new or step.scheduler_stats is not None:
            step.outputs = new
            self._outputs.put_nowait(step)

    def _explain(self, opened: OpenRequest) -> None:
        """Say why the engine has ended a request with an error: vLLM (0.32.0) does not, but what fails there are grammars."""
        params = opened.request.sampling_params
        if params is not None and params.structured_outputs is not None:
            error = GrammarNotFollowedError("structured_outputs", UNFOLLOWED)
            record.failed(error.code, opened.record)
            if opened.request.request_id not in self._chains:  # whose outputs are not delivered yet
                self._hooks.refuse(opened.request.request_id, error)

    def _ended(self, opened: OpenRequest, reason: FinishReason, now: float) -> None:
        self._replicas.ended(opened.attempt.wire_id)
        self._carriers.ended(opened.attempt.wire_id)
        self._pace_s += PACE_WEIGHT * (now - opened.timeline.began - self._pace_s)
        self._close(opened, f"ended ({reason})", whole=reason == FinishReason.STOP)


@contextmanager
def used_by_async_llm(client: EngineCoreClient) -> Iterator[None]:
    """Within this context, a new AsyncLLM uses `client` as its engine core client."""
    with patched(
        EngineCoreClient,
        "make_async_mp_client",
        lambda *_, **__: client,
        why="AsyncLLM's constructor (vLLM 0.32.0) makes an engine core client of its own",
        until="it accepts one",
    ):
        yield
