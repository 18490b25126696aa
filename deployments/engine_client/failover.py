"""Fail-over: when a replica is lost, how its requests move to other replicas, what those are asked, and when to give up.

A request continues after the last token delivered. Most requests continue from a prompt that holds the tokens so far, which costs
one prefill. Sometimes the engine has state that a prompt cannot restore: a grammar in mid-JSON, penalties on what was written, a
seeded generator (but Model Runner V2's noise depends on seed and position alone). The new replica then generates the same tokens
again, each forced by `deployments.reasoning.limits`. This costs as many decode steps as there were tokens and leads to the same
state; tokens that were delivered before are left out.

A replica is lost when its call fails, or when it reports nothing for `BEATS` polls about a request that it has. A request with
which two replicas died is refused. A request that moved is on probation until the new replica has sent something for it. Only one
request is on probation at a time, so that it is known which request a replica died of.
"""

import asyncio
import contextvars
import copy
import time
from collections.abc import Callable
from typing import Any

import grpc
import msgspec
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException, RequestCancelledError
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from deployments.engine_client.carrier import Carriers
from deployments.engine_client.replicas import LLMReplicas
from deployments.engine_client.request import Attempt, OpenRequest, OpenRequests
from deployments.errors import EngineLostError, EngineUnavailableError, PoisonError, SatoriError
from deployments.observability import logs, metrics
from deployments.reasoning.limits import ARGUMENT, REPEAT
from deployments.routing.score import Work
from deployments.settings import BEATS

logger = logs.logger("ingress")

LAST_TOKENS_S = 5.0
"""How long after the call's return the last tokens may arrive: they travel separately."""
COINCIDENCE_S = 1.0
"""Two replicas that die within this time of each other may have one cause (a host, a deploy): they count as one death, once."""
AGAIN_S = 0.1
"""The pause before repeating a call that never reached a replica: it may fail at once again."""
ROUNDS = 10
"""In how many parts a wait is measured. A pause of this process is one of them at most."""
STATELESS = frozenset(
    """
    n temperature top_p top_k min_p logit_bias allowed_token_ids repetition_penalty max_tokens min_tokens logprobs prompt_logprobs
    logprob_token_ids flat_logprobs stop stop_token_ids ignore_eos include_stop_str_in_output detokenize skip_special_tokens
    spaces_between_special_tokens output_kind stream_interval skip_clone skip_reading_prefix_cache output_text_buffer_length
    _eos_token_id _all_stop_token_ids extra_args
    """.split()
)
"""Sampling parameters that mean the same with part of the output in the prompt. (`repetition_penalty` covers prompt and output.)"""


class Failover:
    """Keeps requests on replicas.

    A request that gets no replica within `wait_s` is refused. A poll every `beat_s` finds replicas that have fallen silent.
    `encode` returns a request's frames, `work` what it is expected to cost from here on; `fail` ends a request with an error.
    """

    def __init__(
        self,
        requests: OpenRequests,
        replicas: LLMReplicas,
        carriers: Carriers,
        *,
        wait_s: float,
        beat_s: float,
        encode: Callable[[EngineCoreRequest], list[bytes]],
        work: Callable[[OpenRequest], Work],
        fail: Callable[[OpenRequest, SatoriError], None],
    ) -> None:
        self._requests, self._replicas, self._carriers = requests, replicas, carriers
        self._wait_s, self._beat_s = wait_s, beat_s
        self._encode, self._work, self._fail = encode, work, fail
        self._probation = asyncio.Lock()
        self.seeded_by_position = False
        """Whether a seeded request's tokens depend on nothing but its seed and what is before them, as the replicas say."""
        self._polling = asyncio.get_running_loop().call_later(beat_s, self._poll)

    def close(self) -> None:
        """Stop polling."""
        self._polling.cancel()

    async def keep(self, opened: OpenRequest, encoded: list[bytes]) -> None:
        """Keep a request on a replica until it ends. Raises SatoriError when it cannot go on."""
        self._bound_wait(opened)
        while not await self._attempt(opened, encoded):
            if opened not in self._requests:
                return  # the request had ended before its replica was lost
            del self._requests.by_wire_id[opened.attempt.wire_id]
            if killed_two(opened.deaths):
                raise PoisonError(f"{len(opened.deaths)} replicas died with this request")
            placed = opened.attempt.placed
            encoded = self._encode(next_attempt(opened, self.seeded_by_position))
            self._requests.by_wire_id[opened.attempt.wire_id] = opened
            if placed:
                self._bound_wait(opened)
            else:
                await asyncio.sleep(AGAIN_S)
            metrics.FAILOVER_REQUESTS.labels().inc()
            metrics.FAILOVER_TOKENS.labels().inc(len(opened.tokens))
            logger.warning("request %s moves on after %d tokens", opened.attempt.wire_id, len(opened.tokens))

    def _bound_wait(self, opened: OpenRequest, rounds: int = ROUNDS) -> None:
        """Bound the time that a request waits for a replica, in rounds: a pause of this process is one of them at most."""
        if opened.waiting is not None:
            opened.waiting.cancel()
        opened.waiting = asyncio.get_running_loop().call_later(self._wait_s / ROUNDS, self._on_round_over, opened, rounds - 1)

    def _on_round_over(self, opened: OpenRequest, rounds: int) -> None:
        if rounds:
            self._bound_wait(opened, rounds)
            return
        if self._replicas.assigned(opened.attempt.wire_id):
            self._bound_wait(opened)  # Serve's router may still take it back, from a replica that it cannot reach
            return
        call = opened.call
        self._fail(opened, EngineUnavailableError(f"no LLM replica could take the request for {self._wait_s:g} s"))
        if call is not None:
            call.cancel()

    def _poll(self) -> None:
        """Give up replicas that have been silent for too long about a request that they have.

        It counts polls rather than seconds: after this process itself has stalled, it first reads what arrived meanwhile.
        """
        self._polling = asyncio.get_running_loop().call_later(self._beat_s, self._poll)
        for wire_id, opened in self._requests.by_wire_id.items():
            attempt, times = opened.attempt, self._replicas.assigned(wire_id)
            attempt.silent = attempt.silent + 1 if times and times == attempt.assignments else 0
            attempt.assignments = times
            if attempt.silent > BEATS and not attempt.limit.expired():
                attempt.limit.reschedule(0)

    async def _attempt(self, opened: OpenRequest, encoded: list[bytes]) -> bool:
        """Run a request on one replica, on probation if it has moved; return whether it ended there."""
        if opened.attempt.settled is None:
            return await self._visit(opened, encoded)
        async with self._probation:
            visit = asyncio.create_task(self._visit(opened, encoded), context=contextvars.Context())
            settled = asyncio.create_task(opened.attempt.settled.wait())
            try:
                await asyncio.wait((visit, settled), return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                visit.cancel()
                raise
            finally:
                settled.cancel()
        try:
            return await visit
        finally:
            visit.cancel()

    async def _visit(self, opened: OpenRequest, encoded: list[bytes]) -> bool:
        """Hold the call to one replica; return whether the request ended there."""
        attempt = opened.attempt
        wire_id, visit = attempt.wire_id, attempt.visit
        visit.began = time.monotonic()
        opened.timeline.visits.append(visit)
        try:
            client = None if opened.tokens else opened.client
            self._replicas.expect(wire_id, self._work(opened))
            async with attempt.limit:
                await self._carriers.generate(opened.group, wire_id, encoded, client)
        except DeploymentUnavailableError as error:
            raise EngineUnavailableError("the LLM deployment has failed or is deleted") from error
        except (Exception, asyncio.CancelledError) as error:
            silent = attempt.limit.expired()
            if not silent and not lost_replica(error):
                raise
            logger.warning("the replica of request %s is %s", wire_id, "silent" if silent else f"lost ({type(error).__name__})")
            visit.lost, attempt.placed = True, bool(self._replicas.assigned(wire_id))
            self._replicas.lost(wire_id)
            if not silent and may_have_died(error):  # silence is not held against a request: none can cut a host off
                opened.deaths.append(time.monotonic())
            return False
        finally:
            visit.ended = time.monotonic()
            self._replicas.left(wire_id)
        if opened.waiting is not None:
            opened.waiting.cancel()  # the request has had its replica
        for _ in range(ROUNDS):
            if wire_id not in self._requests.by_wire_id:
                break
            await asyncio.sleep(LAST_TOKENS_S / ROUNDS)
        return wire_id not in self._requests.by_wire_id


def lost_replica(error: BaseException) -> bool:
    """Return whether a call failed because its replica is gone, rather than by the request's own fault or an abort of ours."""
    if isinstance(error, EngineUnavailableError):
        return True
    if isinstance(error, asyncio.CancelledError):  # this is how Serve reports a call that the other side has cancelled
        task = asyncio.current_task()
        return task is not None and not task.cancelling()
    return isinstance(error, RayError | RayServeException | grpc.RpcError) and not isinstance(error, RayTaskError)


def may_have_died(error: BaseException) -> bool:
    """Return whether a lost replica may have died of its request, rather than refused it or stopped."""
    if isinstance(error, EngineUnavailableError):
        return isinstance(error, EngineLostError)
    return not isinstance(error, asyncio.CancelledError | RequestCancelledError)


def killed_two(deaths: list[float]) -> bool:
    """Return whether two replicas died with a request, at these times. The first two count as one if they died together."""
    together = len(deaths) >= 2 and deaths[1] - deaths[0] <= COINCIDENCE_S
    return len(deaths) - together >= 2


def next_attempt(opened: OpenRequest, seeded_by_position: bool = False) -> EngineCoreRequest:
    """Return what to send to the next replica, after beginning another attempt at a request."""
    number = opened.attempt.number + 1
    attempt = opened.attempt = Attempt(f"{opened.request.request_id}#{number}", number, settled=asyncio.Event())
    request: EngineCoreRequest = msgspec.structs.replace(opened.request, request_id=attempt.wire_id)
    if not opened.tokens:
        return request
    if not goes_on_from_prompt(request, seeded_by_position):
        attempt.repeated = len(opened.tokens)
        request.sampling_params = _with_arguments(request.sampling_params, {REPEAT: {"tokens": opened.tokens}})
        return request
    request.prompt_token_ids = [*(request.prompt_token_ids or ()), *opened.tokens]
    request.sampling_params = _remaining(request.sampling_params, opened.tokens)
    return request


def goes_on_from_prompt(request: EngineCoreRequest, seeded_by_position: bool = False) -> bool:
    """Return whether a request can continue with its output so far in its prompt: only stateless parameters are set.

    A seed is one of them where its noise depends on the position.
    """
    params = request.sampling_params
    if params is None or request.prompt_token_ids is None or request.prompt_embeds is not None:
        return False
    if (params.extra_args or {}).keys() - {ARGUMENT}:
        return False
    defaults = SamplingParams()
    stateless = STATELESS | {"seed"} if seeded_by_position else STATELESS
    stateful = {name for name in params.__struct_fields__ if getattr(params, name) != getattr(defaults, name)} - stateless
    # vLLM's frontend (0.32.0) has written False where the default, None, was.
    return stateful <= ({"watermarking"} if not params.watermarking else set())


def _remaining(params: SamplingParams, tokens: list[int]) -> SamplingParams:
    """Return the parameters for the rest of a request, after `tokens`."""
    left = _with_arguments(params, {})
    if left.max_tokens is not None:
        left.max_tokens -= len(tokens)
    left.min_tokens = max(0, left.min_tokens - len(tokens))
    left.prompt_logprobs = None  # these were delivered with the first token
    if isinstance(limits := left.extra_args.get(ARGUMENT), dict):
        left.extra_args[ARGUMENT] = limits | {"before": tokens}
    return left


def _with_arguments(params: SamplingParams, arguments: dict[str, Any]) -> Any:
    changed = copy.copy(params)
    changed.extra_args = (params.extra_args or {}) | arguments
    return changed
