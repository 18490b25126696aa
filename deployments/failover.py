"""Fail-over in mid-stream: what another replica is asked, so that a request goes on after the last token delivered.

Most requests go on from prompt and tokens so far: one prefill. Where the engine has state that a prompt cannot give back (a
grammar in mid-JSON, penalties on what was written, a seeded generator), it is asked to write the same tokens again, each forced by
`deployments.steering`, and what was delivered before is left out: as many decode steps, the same state.
"""

import asyncio
import copy
import re
from dataclasses import dataclass, field
from typing import Any

import msgspec
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreEvent, EngineCoreEventType, EngineCoreOutput, EngineCoreRequest

from deployments.measuring import Record
from deployments.steering import ARGUMENT, REPEAT

STATELESS = frozenset(
    """
    n temperature top_p top_k min_p logit_bias allowed_token_ids repetition_penalty max_tokens min_tokens logprobs prompt_logprobs
    logprob_token_ids flat_logprobs stop stop_token_ids ignore_eos include_stop_str_in_output detokenize skip_special_tokens
    spaces_between_special_tokens output_kind stream_interval skip_clone skip_reading_prefix_cache output_text_buffer_length
    _eos_token_id _all_stop_token_ids extra_args
    """.split()
)
"""Sampling parameters that mean the same with some of the output in the prompt. (`repetition_penalty` is on prompt and output.)"""

_SAMPLE = re.compile(r"^\d+_")


@dataclass(slots=True)
class Attempt:
    """A request's time on one replica (`engine` is its rank), of the monotonic clock: from the call to its end.

    `lost` tells that it ended with the replica, `placed` that there was one, rather than a call that failed before.
    `ahead` is by how much its engine's clock is ahead of that of the engine on which the request began, None until it is known.
    `limit` is around the call, and ends it when it is rescheduled.
    """

    began: float
    ended: float = 0.0
    engine: int = -1
    lost: bool = False
    placed: bool = True
    ahead: float | None = None
    limit: asyncio.Timeout = field(default_factory=lambda: asyncio.Timeout(None))


@dataclass
class OpenRequest:
    """A request that has not ended: as vLLM's frontend gave it, whose it is, what came of it, and where it is now.

    `began` is when it came, in seconds of the monotonic clock, and `first_here` when its first token was here, 0 before; `queue_s`
    and `prefill_s` are what passed in the engine until then, `first_step` and `last_step` the engine's own times of its tokens, of
    the first engine's clock, `last_here` when the last were here.
    `wire_id` names this attempt, so that outputs of a lost one are told apart. `deaths` are the times, of the same clock, at which
    replicas died with it since its last token. `again` is how many of the coming tokens were delivered before; `settled` is set
    when the new replica has sent something. `waiting` bounds its time without a replica. `quiet` counts the looks since the replica
    has told of it, or it was given to one (`times` so far).
    """

    request: EngineCoreRequest
    tokens: list[int] = field(default_factory=list)
    attempt: int = 0
    deaths: list[float] = field(default_factory=list)
    again: int = 0
    settled: asyncio.Event | None = None
    waiting: asyncio.TimerHandle | None = None
    quiet: int = 0
    times: int = 0
    client: str = ""
    began: float = 0.0
    record: Record | None = None
    attempts: list[Attempt] = field(default_factory=list)
    first_here: float = 0.0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    first_step: float = 0.0
    last_step: float = 0.0
    last_here: float = 0.0

    @property
    def wire_id(self) -> str:
        """The request's id in this attempt."""
        return f"{self.request.request_id}#{self.attempt}" if self.attempt else self.request.request_id

    @property
    def group(self) -> str:
        """What the samples of one request (n > 1) have in common: the id to which vLLM (0.32.0) put the sample's number.

        Not `external_req_id`, which clients choose: two of them could choose the same.
        """
        return _SAMPLE.sub("", self.request.request_id)

    @property
    def first_sample(self) -> bool:
        """Whether it is its group's only request, or the first of them."""
        sample = _SAMPLE.match(self.request.request_id)
        return sample is None or sample[0] == "0_"

    def killed_two(self, coincidence_s: float) -> bool:
        """Return whether two replicas died with it; two that died within `coincidence_s` count as one, once."""
        together = len(self.deaths) >= 2 and self.deaths[1] - self.deaths[0] <= coincidence_s
        return len(self.deaths) - together >= 2

    def next_attempt(self) -> EngineCoreRequest:
        """Return the request to send to another replica."""
        self.attempt += 1
        self.again = self.quiet = self.times = 0
        self.settled = asyncio.Event()
        request: EngineCoreRequest = msgspec.structs.replace(self.request, request_id=self.wire_id)
        if not self.tokens:
            return request
        if not goes_on_from_prompt(request):
            self.again = len(self.tokens)
            request.sampling_params = _with_arguments(request.sampling_params, {REPEAT: {"tokens": self.tokens}})
            return request
        request.prompt_token_ids = [*(request.prompt_token_ids or ()), *self.tokens]
        request.sampling_params = _remaining(request.sampling_params, self.tokens)
        return request

    def started(self, events: list[EngineCoreEvent] | None, step: float, now: float) -> None:
        """Take the times of the first token: `step` of the engine's clock, `now` of ours."""
        times = {event.type: event.timestamp for event in reversed(events or ())}
        scheduled = times.get(EngineCoreEventType.SCHEDULED, step)
        self.queue_s = scheduled - times.get(EngineCoreEventType.QUEUED, scheduled)
        self.prefill_s = step - scheduled
        self.first_step, self.first_here = step, now

    def passed(self, step: float, now: float) -> float:
        """Take the time of an output, as `started` does; return it as the clock of the engine would give it on which it began.

        Monotonic clocks of two hosts have nothing in common, and vLLM takes differences: gaps between tokens of days.
        """
        if self.attempt:
            attempt = self.attempts[-1]
            if attempt.ahead is None:
                attempt.ahead = step - self.last_step - (now - self.last_here) if self.last_step else 0.0
            step -= attempt.ahead
        self.last_step, self.last_here = step, now
        return step

    def take(self, output: EngineCoreOutput) -> bool:
        """Take an output of this attempt; return whether there is anything new in it, which is then under the request's own id.

        Raises ValueError when tokens that should come again do not.
        """
        output.request_id = self.request.request_id
        tokens = output.new_token_ids
        if not tokens:
            return True
        if self.again:
            start = len(self.tokens) - self.again
            if tokens != self.tokens[start : start + len(tokens)] or output.finish_reason is not None:
                raise ValueError(f"token {start} of request {self.request.request_id} came out differently the second time")
            self.again -= len(tokens)
            return False
        if self.deaths:
            self.deaths.clear()
        if self.attempt and self.tokens:
            output.events = None  # it was queued and scheduled before, and counts with that
        self.tokens += tokens
        return True


def goes_on_from_prompt(request: EngineCoreRequest) -> bool:
    """Return whether a request's output so far may stand in its prompt: no parameter but stateless ones is set."""
    params = request.sampling_params
    if params is None or request.prompt_token_ids is None or request.prompt_embeds is not None:
        return False
    if (params.extra_args or {}).keys() - {ARGUMENT}:
        return False
    usual = SamplingParams()
    return all(name in STATELESS or getattr(params, name) == getattr(usual, name) for name in params.__struct_fields__)


def _remaining(params: SamplingParams, tokens: list[int]) -> SamplingParams:
    """Return the parameters for what is left after `tokens`."""
    left = _with_arguments(params, {})
    if left.max_tokens is not None:
        left.max_tokens -= len(tokens)
    left.min_tokens = max(0, left.min_tokens - len(tokens))
    left.prompt_logprobs = None  # delivered with the first token
    if isinstance(limits := left.extra_args.get(ARGUMENT), dict):
        left.extra_args[ARGUMENT] = limits | {"before": tokens}
    return left


def _with_arguments(params: SamplingParams, arguments: dict[str, Any]) -> Any:
    changed = copy.copy(params)
    changed.extra_args = (params.extra_args or {}) | arguments
    return changed
