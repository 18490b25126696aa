"""A request that has not ended: what vLLM's frontend asked for, the output so far, and the current attempt."""

import asyncio
import re
from dataclasses import dataclass, field

from vllm.v1.engine import EngineCoreEvent, EngineCoreEventType, EngineCoreOutput, EngineCoreRequest

from deployments.observability.record import Record, Timeline, Visit
from deployments.reasoning.limits import ARGUMENT
from deployments.routing.lengths import LONGEST, Asked, Lengths
from deployments.routing.prospect import Prospect
from deployments.transport.channel import DEFERRED

_SAMPLE = re.compile(r"^\d+_")


@dataclass(slots=True)
class Attempt:
    """One attempt at a request, on one replica.

    `wire_id` names the request in this attempt, so that outputs of a lost attempt are recognised. `placed` is whether the request
    was on a replica, rather than in a call that failed before. `limit` is the call's timeout, and ends it when rescheduled.

    For a request that moved, `repeated` is how many of the coming tokens were delivered before, and `settled` is set when the new
    replica has sent something. `ahead` is how many seconds the clock of its engine is ahead of the clock of the engine on which the
    request began, or None until this is known.

    `silent` counts the polls since the replica last reported the request, or since the request was last given to a replica;
    `assignments` is how often that had happened by the last poll. `next_report` is at how many tokens the router is told of its
    progress next.
    """

    wire_id: str
    number: int = 0
    visit: Visit = field(default_factory=Visit)
    placed: bool = True
    limit: asyncio.Timeout = field(default_factory=lambda: asyncio.Timeout(None))
    repeated: int = 0
    settled: asyncio.Event | None = None
    ahead: float | None = None
    silent: int = 0
    assignments: int = 0
    next_report: int = 0


@dataclass
class OpenRequest:
    """A request that has not ended, as vLLM's frontend sent it.

    `client` is the name of its client, as replicas get it (see `DEFERRED`). `record` is the record of its API request, None where
    nothing is measured. `tokens` are those delivered so far; `last_here` is when the last of them arrived. `waiting` is the timer
    that bounds its time without a replica; `call` is the task that keeps it on one. `deaths` are the times at which replicas died
    with it since its last token. Times are on the monotonic clock.
    """

    request: EngineCoreRequest
    client: str
    record: Record | None
    timeline: Timeline
    attempt: Attempt
    tokens: list[int] = field(default_factory=list)
    last_here: float = 0.0
    deaths: list[float] = field(default_factory=list)
    waiting: asyncio.TimerHandle | None = None
    call: asyncio.Task[None] | None = None

    @classmethod
    def open(
        cls, request: EngineCoreRequest, client: str, now: float, record: Record | None = None, deferrable: bool = False
    ) -> "OpenRequest":
        """Return a request that arrives `now`, with its timeline in the record. A line of a batch is `deferrable`."""
        tokens: list[int] = []
        prompt_tokens = len(request.prompt_token_ids or ())
        timeline = Timeline(request.request_id, client, prompt_tokens, now, tokens)
        if record is not None:
            record.engine.append(timeline)
        return cls(request, DEFERRED + client if deferrable else client, record, timeline, Attempt(request.request_id), tokens)

    def expect(self, lengths: Lengths, turn_ids: frozenset[int]) -> Prospect:
        """Begin to tell what is to come of it, before its first token here."""
        self.timeline.prospect = Prospect(lengths, asked_of(self.request), self.tokens, turn_ids)
        return self.timeline.prospect

    def cancel(self) -> None:
        """Cancel the task that keeps the request on a replica."""
        if self.call is not None:
            self.call.cancel()

    @property
    def group(self) -> str:
        """The id that the samples of one request (n > 1) share: vLLM (0.32.0) puts the sample's number in front of it.

        It is not `external_req_id`: clients choose that one, and two of them could choose the same.
        """
        return _SAMPLE.sub("", self.request.request_id)

    @property
    def first_sample(self) -> bool:
        """Whether this is the first request of its group, or the only one."""
        sample = _SAMPLE.match(self.request.request_id)
        return sample is None or sample[0] == "0_"

    def started(self, events: list[EngineCoreEvent] | None, step_s: float, now: float) -> None:
        """Record the times of the first token: `step_s` on the engine's clock, `now` on ours."""
        times = {event.type: event.timestamp for event in reversed(events or ())}
        scheduled = times.get(EngineCoreEventType.SCHEDULED, step_s)
        timeline = self.timeline
        timeline.queue_s = scheduled - times.get(EngineCoreEventType.QUEUED, scheduled)
        timeline.prefill_s = step_s - scheduled
        timeline.first_step, timeline.first_here = step_s, now
        if timeline.prospect is not None:
            timeline.prospect.first_s = now

    def on_first_clock(self, step_s: float, now: float) -> float:
        """Record the time of an output (arguments as in `started`); return it on the clock of the first engine.

        The monotonic clocks of two hosts are unrelated, and vLLM subtracts such times: it would see gaps of days between tokens.
        """
        timeline, attempt = self.timeline, self.attempt
        if attempt.number:
            if attempt.ahead is None:
                attempt.ahead = step_s - timeline.last_step - (now - self.last_here) if timeline.last_step else 0.0
            step_s -= attempt.ahead
        timeline.last_step, self.last_here = step_s, now
        return step_s

    def accept(self, output: EngineCoreOutput) -> bool:
        """Add an output of this attempt and give it the request's own id; return whether it brings anything new.

        With speculation, an output may have the last repeated tokens and the first new ones; only the new ones are left in it.

        Raises ValueError when repeated tokens differ from those delivered before.
        """
        output.request_id = self.request.request_id
        if not output.new_token_ids:
            return True
        attempt = self.attempt
        if attempt.repeated:
            start, count = len(self.tokens) - attempt.repeated, len(output.new_token_ids)
            again = output.new_token_ids[: attempt.repeated]
            new = count - len(again)
            if again != self.tokens[start : start + len(again)] or (output.finish_reason is not None and not new):
                raise ValueError(f"token {start} of request {self.request.request_id} came out differently the second time")
            attempt.repeated -= len(again)
            if not new:
                return False
            output.new_token_ids = output.new_token_ids[len(again) :]
            if output.new_logprobs is not None:
                output.new_logprobs = output.new_logprobs.slice_request(len(again), new)
            if output.new_sampling_mask is not None:
                output.new_sampling_mask = output.new_sampling_mask.slice_request(len(again), new)
        tokens = output.new_token_ids
        if self.deaths:
            self.deaths.clear()
        if attempt.number and self.tokens:
            output.events = None  # vLLM has already counted how the request was queued and scheduled the first time
        self.tokens += tokens
        return True


def asked_of(request: EngineCoreRequest) -> Asked:
    """Return what a request asks for, as far as it tells how long its reply will be. Efforts are limits here."""
    params, question = request.sampling_params, len(request.prompt_token_ids or ())
    if params is None:
        return Asked(question)
    limits = (params.extra_args or {}).get(ARGUMENT, {})
    most = [limits.get(name) for name in ("max_reflections", "max_explorations")]
    marks = [str(min(limits.get("min_reflections", 0), 8)), *("-" if limit is None else str(min(limit, 1)) for limit in most)]
    marks += ["format"] * (params.structured_outputs is not None) + ["stop"] * bool(params.stop)
    longest = params.max_tokens or LONGEST
    least = longest if params.ignore_eos else params.min_tokens
    return Asked(question, longest, " ".join(marks), limits.get("max_reasoning_tokens"), least)


class OpenRequests:
    """The requests of this ingress that have not ended, by their own id (`by_id`) and by that of their attempt (`by_wire_id`).

    A request between two attempts is only in `by_id`.
    """

    def __init__(self) -> None:
        self.by_id: dict[str, OpenRequest] = {}
        self.by_wire_id: dict[str, OpenRequest] = {}

    def add(self, opened: OpenRequest) -> None:
        """Add a request that has arrived."""
        self.by_id[opened.request.request_id] = self.by_wire_id[opened.attempt.wire_id] = opened

    def remove(self, opened: OpenRequest) -> None:
        """Remove a request that has ended."""
        del self.by_id[opened.request.request_id]
        self.by_wire_id.pop(opened.attempt.wire_id, None)

    def __contains__(self, opened: OpenRequest) -> bool:
        """Return whether a request has not ended."""
        return self.by_id.get(opened.request.request_id) is opened

    def siblings(self, opened: OpenRequest) -> list[OpenRequest]:
        """Return the samples of the same request that have not ended, including this one."""
        return [other for other in self.by_id.values() if other is opened or other.group == opened.group]
