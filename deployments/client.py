"""An `EngineCoreClient` of vLLM over Ray Serve: to vLLM's AsyncLLM, all LLM replicas together look like one engine that never dies.

A request is on one replica at a time, by a Serve handle call of its own or by one that carries many (`deployments.carrier`), until
the replica has sent its last token; the tokens come over the token channel. An abort ends it there. When a replica is lost, its
requests go on on others (`deployments.failover`).
"""

import asyncio
import contextvars
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from unittest import mock

import grpc
import msgspec
import zmq
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException, RequestCancelledError
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from deployments import access, intake, logs, measuring, metrics
from deployments.carrier import Calls, Carriers
from deployments.channel import EPHEMERAL, MalformedError, Receiver
from deployments.engine import TASKS
from deployments.errors import EngineLostError, EngineUnavailableError, PoisonError, SatoriError
from deployments.failover import Attempt, OpenRequest
from deployments.settings import BEATS

logger = logs.logger("ingress")

# The last tokens travel beside the call's own return and may come a little later; not this much later.
LAST_TOKENS_S = 5.0
# Replicas that die within this time of each other may have died of one cause (a host, a deploy): with a request they count as one.
COINCIDENCE_S = 1.0
PACE_WEIGHT = 0.1
# Before a call is made again that failed before it was on any replica: it may fail at once again.
AGAIN_S = 0.1
# What vLLM's decoder raises for frames that no encoder made.
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


class Replicas(Calls, Protocol):
    """What the client needs of the set of LLM replicas. Ids are those of attempts (`OpenRequest.wire_id`).

    Samples of one request share `group` and so the replica. `client` is whose a request is, None for one that has started before
    and goes on.
    """

    def assigned(self, request_id: str) -> int:
        """Return how often the request was given to a replica: 0 while it waits for one."""

    def ended(self, request_id: str) -> None:
        """Hear that the request's last token is here."""

    def lost(self, request_id: str) -> None:
        """Hear that the replica of this request is dead or hung; nothing more should go there."""

    def left(self, request_id: str) -> None:
        """Hear that the request is on no replica any more, after `ended` or `lost`."""


class ServeEngineClient(EngineCoreClient):
    """The engine side of an AsyncLLM whose engine is a set of LLM replicas.

    `host` and one of `ports` is where the replicas send tokens to. A request for which there is no replica for `wait_s` is refused;
    `refuse` is told a request's id and why before it ends with an error. Every `beat_s` it looks whether each request was heard of
    since; one that was not for `BEATS` looks has lost its replica.
    """

    engine_ranks_managed = (0,)

    def __init__(
        self,
        replicas: Replicas,
        host: str,
        wait_s: float,
        refuse: Callable[[str, SatoriError], None],
        beat_s: float,
        ports: range = EPHEMERAL,
    ) -> None:
        self.resources = types.SimpleNamespace(engine_dead=False)
        self._replicas = replicas
        self._wait_s = wait_s
        self._refuse = refuse
        self._receiver = Receiver(host, self._deliver, ports, lambda *said: self._carriers.hear(*said))
        self._carriers = Carriers(replicas, self._receiver.address)
        self._beat_s = beat_s
        self._looking = asyncio.get_running_loop().call_later(beat_s, self._look)
        self._encoder = MsgpackEncoder()
        self._decoder = MsgpackDecoder(EngineCoreOutputs)
        self._outputs: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()
        self._open: dict[str, OpenRequest] = {}
        self._wire: dict[str, OpenRequest] = {}
        self._calls: dict[str, asyncio.Task[None]] = {}
        self._pace_s = 0.0
        # One moved request at a time until its first token: when a replica dies of one, it is known which.
        self._probation = asyncio.Lock()

    @property
    def pace_s(self) -> float:
        """Seconds that requests took lately, from coming to their end: a mean in which older ones fade."""
        return self._pace_s

    @property
    def unassigned(self) -> int:
        """Requests that wait for a replica. For another thread, too."""
        return sum(not self._replicas.assigned(wire_id) for wire_id in list(self._wire))

    @property
    def open_requests(self) -> list[str]:
        """Ids of the requests that are neither finished nor aborted."""
        return list(self._open)

    @property
    def carriers(self) -> int:
        """How many replicas take requests without a handle call for each."""
        return self._carriers.usable

    async def get_supported_tasks_async(self) -> tuple[Any, ...]:
        """Return what the replicas can do: generate text."""
        return TASKS

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        """Start the request on a replica. Returns at once; its outputs come from `get_output_async`."""
        intake.prepared()
        encoded = self._encode(request)
        record = measuring.current.get()
        opened = OpenRequest(request, client=access.client_name(), began=time.monotonic(), record=record)
        if record is not None:
            record.engine.append(opened)
        if opened.first_sample:  # the prompt counts once
            access.charge(opened.client, len(request.prompt_token_ids or ()))
        self._open[request.request_id] = opened
        self._wire[request.request_id] = opened
        # In a context of its own: in the HTTP request's, Serve gives all handle calls one id, and its router mixes up calls that
        # share an id (the samples of one request then wait for ever; Ray 2.60.0).
        call = self._run(opened, encoded)
        self._calls[request.request_id] = asyncio.create_task(call, context=contextvars.Context())

    async def get_output_async(self) -> EngineCoreOutputs:
        """Return the outputs of the next engine step of any replica."""
        return await self._outputs.get()

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        """Cancel the calls of these requests; the replica then frees their places in the engine."""
        for request_id in request_ids:
            if (opened := self._open.get(request_id)) is not None:
                self._close(opened, "aborted").cancel()

    def shutdown(self, timeout: float | None = None) -> None:
        """Cancel all calls and close the token channel. The replicas live on: they are not ours."""
        for opened in list(self._open.values()):
            self._close(opened, "aborted").cancel()
        self._looking.cancel()
        self._carriers.shutdown()
        self._receiver.close()

    def _encode(self, request: EngineCoreRequest) -> list[bytes]:
        return [bytes(part) for part in self._encoder.encode(request)]

    def _close(self, opened: OpenRequest, how: str) -> asyncio.Task[None]:
        """Forget a request, and say in the log how it ended; return its call."""
        taken_s = time.monotonic() - opened.began
        logs.ended(opened.wire_id, how, tokens=len(opened.tokens), seconds=round(taken_s, 3))
        del self._open[opened.request.request_id]
        self._wire.pop(opened.wire_id, None)
        if opened.waiting is not None:
            opened.waiting.cancel()
        return self._calls.pop(opened.request.request_id)

    def _decode(self, frames: list[zmq.Frame]) -> EngineCoreOutputs:
        try:
            step: EngineCoreOutputs = self._decoder.decode(frames)
        except UNREADABLE as error:
            raise MalformedError from error
        return step

    def _deliver(self, frames: list[zmq.Frame]) -> None:
        step = self._decode(frames)
        now = time.monotonic()
        new = []
        for output in step.outputs:
            wire_id = output.request_id
            if (opened := self._wire.get(wire_id)) is None:
                continue  # aborted, or of a lost attempt
            opened.quiet = 0
            if not output.new_token_ids and output.finish_reason is None:
                continue  # a sign of life
            if opened.settled is not None:
                opened.settled.set()
                opened.attempts[-1].engine = step.engine_index
            if not opened.first_here and output.new_token_ids:
                opened.started(output.events, step.timestamp, now)
                opened.attempts[-1].engine = step.engine_index
            timestamp = opened.passed(step.timestamp, now)
            try:
                if opened.take(output):
                    if timestamp == step.timestamp:
                        new.append(output)
                    else:
                        self._outputs.put_nowait(EngineCoreOutputs(step.engine_index, [output], timestamp=timestamp))
                    access.charge(opened.client, len(output.new_token_ids))
            except ValueError as error:
                task = self._calls[opened.request.request_id]
                self._end(opened, EngineLostError(f"the request could not be moved: {error}"))
                task.cancel()
                continue
            if output.finish_reason is not None:
                self._replicas.ended(wire_id)
                self._carriers.ended(wire_id)
                self._pace_s += PACE_WEIGHT * (now - opened.began - self._pace_s)
                self._close(opened, f"ended ({output.finish_reason})")
        if new or step.scheduler_stats is not None:
            step.outputs = new
            self._outputs.put_nowait(step)

    def _look(self) -> None:
        """Give up replicas that were silent for too long about requests that they have.

        Looks are counted and not seconds: after this process stood still itself, it reads first what came meanwhile.
        """
        self._looking = asyncio.get_running_loop().call_later(self._beat_s, self._look)
        for wire_id, opened in self._wire.items():
            times = self._replicas.assigned(wire_id)
            opened.quiet = opened.quiet + 1 if times and times == opened.times else 0
            opened.times = times
            if opened.quiet > BEATS and not opened.attempts[-1].limit.expired():
                opened.attempts[-1].limit.reschedule(0)

    async def _run(self, opened: OpenRequest, encoded: list[bytes]) -> None:
        """Keep a request on a replica until it ends."""
        try:
            self._start_waiting(opened)
            while not await self._attempt(opened, encoded):
                if opened.request.request_id not in self._open:
                    return  # it had ended before its replica did
                del self._wire[opened.wire_id]
                if opened.killed_two(COINCIDENCE_S):
                    raise PoisonError(f"{len(opened.deaths)} replicas died with this request")
                encoded = self._encode(opened.next_attempt())
                self._wire[opened.wire_id] = opened
                if opened.attempts[-1].placed:
                    self._start_waiting(opened)
                else:
                    await asyncio.sleep(AGAIN_S)
                metrics.FAILOVER_REQUESTS.labels().inc()
                metrics.FAILOVER_TOKENS.labels().inc(len(opened.tokens))
                logger.warning("request %s moves on after %d tokens", opened.wire_id, len(opened.tokens))
        except SatoriError as error:
            self._end(opened, error)
        except Exception as error:
            logger.exception("request %s failed", opened.wire_id)
            self._end(opened, EngineLostError(f"the request failed on its replica ({type(error).__name__})"))

    def _start_waiting(self, opened: OpenRequest) -> None:
        """Bound the time that a request waits for a replica."""
        if opened.waiting is not None:
            opened.waiting.cancel()
        opened.waiting = asyncio.get_running_loop().call_later(self._wait_s, self._waited, opened)

    def _waited(self, opened: OpenRequest) -> None:
        if self._replicas.assigned(opened.wire_id):
            self._start_waiting(opened)  # Serve's router may take it back from a replica that it cannot reach
            return
        task = self._calls.get(opened.request.request_id)
        self._end(opened, EngineUnavailableError(f"no LLM replica could take the request for {self._wait_s:g} s"))
        if task is not None:
            task.cancel()

    async def _attempt(self, opened: OpenRequest, encoded: list[bytes]) -> bool:
        """Run a request on one replica; return whether it ended there."""
        if opened.settled is None:
            return await self._call(opened, encoded)
        async with self._probation:
            call = asyncio.create_task(self._call(opened, encoded), context=contextvars.Context())
            settled = asyncio.create_task(opened.settled.wait())
            try:
                await asyncio.wait((call, settled), return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                call.cancel()
                raise
            finally:
                settled.cancel()
        try:
            return await call
        finally:
            call.cancel()

    async def _call(self, opened: OpenRequest, encoded: list[bytes]) -> bool:
        wire_id = opened.wire_id
        attempt = Attempt(time.monotonic())
        opened.attempts.append(attempt)
        try:
            client = None if opened.tokens else opened.client
            async with attempt.limit:
                await self._carriers.generate(opened.group, wire_id, encoded, client)
        except DeploymentUnavailableError as error:
            raise EngineUnavailableError("the LLM deployment has failed or is deleted") from error
        except (Exception, asyncio.CancelledError) as error:
            silent = attempt.limit.expired()
            if not silent and not _lost_replica(error):
                raise
            logger.warning("the replica of request %s is %s", wire_id, "silent" if silent else f"lost ({type(error).__name__})")
            attempt.lost, attempt.placed = True, bool(self._replicas.assigned(wire_id))
            self._replicas.lost(wire_id)
            if _died(error) and not silent:  # no request cuts a host off
                opened.deaths.append(time.monotonic())
            return False
        finally:
            attempt.ended = time.monotonic()
            self._replicas.left(wire_id)
        if opened.waiting is not None:
            opened.waiting.cancel()  # it has had its replica
        if wire_id in self._wire:
            await asyncio.sleep(LAST_TOKENS_S)
        return wire_id not in self._wire

    def _end(self, opened: OpenRequest, error: SatoriError) -> None:
        """End a request and its siblings (n > 1) with an error, those that have not ended otherwise."""
        if opened.request.request_id not in self._open:
            return
        for sibling in [other for other in self._open.values() if other is opened or other.group == opened.group]:
            logger.error("request %s is refused: %s", sibling.wire_id, error)
            measuring.failed(error.code, sibling.record)
            call = self._close(sibling, "failed")
            if sibling is not opened:
                call.cancel()
            self._refuse(sibling.request.request_id, error)
            failed = EngineCoreOutput(sibling.request.request_id, [], finish_reason=FinishReason.ERROR)
            self._outputs.put_nowait(EngineCoreOutputs(outputs=[failed]))


def _lost_replica(error: BaseException) -> bool:
    """Return whether a failed call tells of its replica's end rather than of the request's own fault, or of an abort of ours."""
    if isinstance(error, EngineUnavailableError):
        return True
    if isinstance(error, asyncio.CancelledError):  # so Serve tells of a call that the other side has cancelled
        task = asyncio.current_task()
        return task is not None and not task.cancelling()
    return isinstance(error, RayError | RayServeException | grpc.RpcError) and not isinstance(error, RayTaskError)


def _died(error: BaseException) -> bool:
    """Return whether a lost replica may have died of its request: it had not only refused it, or left."""
    if isinstance(error, EngineUnavailableError):
        return isinstance(error, EngineLostError)
    return not isinstance(error, asyncio.CancelledError | RequestCancelledError)


@contextmanager
def used_by_async_llm(client: EngineCoreClient) -> Iterator[None]:
    """Within this context, a new AsyncLLM takes `client` for its engine core.

    vLLM 0.32.0 has no parameter for it: AsyncLLM's constructor makes its own. Goes when it takes one.
    """
    with mock.patch.object(EngineCoreClient, "make_async_mp_client", return_value=client):
        yield
