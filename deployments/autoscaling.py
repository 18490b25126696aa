"""How many LLM replicas there should be: a pure function from signals to a number, its reason, and what to remember.

    requests here now            ──┐
    requests expected by the time ─┴─ the more ─> / requests a replica can hold ──┐
    that a replica started now       within both SLOs: by TPOT, KV cache,         ├─ the more ─> replicas, within bounds
    is up                            max_num_seqs                                 │
    prompts to read in a second ────> / tokens that a replica reads in half of it ┘

More replicas start at once. Fewer are kept when the load of the whole time of `downscale_hold_s` fits into fewer with a margin;
where that are only a few fewer, of twice that time.

Expected requests are by Little's law: arrivals a second times the time of a reply (its tokens times the TPOT of a full replica),
approached from those here now at the pace at which replies end. The arrivals are those of now, more by the factor by which they
rose within a start-up time in the last hour, from moments with about as many as now: by as much as `burst_share` of these moments
saw at most. So what bursts need is spared when bursts come more often than replicas start, more of it the longer a start takes,
and a load that grows is met ahead; what happened only once is taken for an accident.

Here nothing knows Ray or the clock. `cluster/simulate.py` drives this same function.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from deployments.learned import BIN_S, BINS, Costs, Memory, arrivals, learn, rise
from deployments.settings import AutoscalingSettings

REPORT_LAG_S = 5.0  # from a change of the load to a decision that knows it
FEW = 0.1  # of the replicas, or one: so many leave only after twice the time, as that much comes and goes by chance
MARGIN = 1.04  # fewer replicas are enough when they would be with this much more load
WAITING_SHARE = 0.4  # what waits at a replica stays there: another one only takes what would have come to it
PREFILL_SHARE = 0.5  # of a replica's time at most goes into prompts: beyond, they queue for long
PREEMPTED_SHARE = 0.05  # of requests: more preemptions are a sign of overload
TPOT_MARGIN = 0.9  # TPOT's 95th percentile is above its mean: requests differ, and prompts come between


class Reason(StrEnum):
    """Why a decision is what it is; a closed set, so that it can label a metric."""

    STEADY = "steady"  # as many as there are
    FIRST_REQUEST = "first_request"  # from zero
    BACKLOG = "backlog"  # more, for the requests that are here
    FORECAST = "forecast"  # more, for those expected by the time that a replica is up
    PROMPTS = "prompts"  # more, as prompts are not read fast enough for TTFT
    QUEUE_TIME = "queue_time"  # one more, although the load should fit, as requests wait for longer than TTFT allows,
    PREEMPTIONS = "preemptions"  # as KV caches overflow,
    TPOT = "tpot"  # as tokens come too slowly
    HOLD = "hold"  # fewer would do, but not for long enough
    LOWER_LOAD = "lower_load"  # fewer
    IDLE = "idle"  # none
    BLIND = "blind"  # too few replicas report: as many as there are
    MINIMUM = "minimum"  # the bounds
    MAXIMUM = "maximum"


@dataclass(frozen=True)
class Report:
    """What one replica says of itself. Rates are over the time since its report before (a second or two).

    `at_s` is when, by the clock of `Signals.now_s`. `running` and `waiting` are requests in the engine. `queued_prompt_tokens` are
    of waiting requests. `kv_cache_usage` is 0 to 1. `decode_tokens_per_s` are tokens generated, `prefill_tokens_per_s` tokens of
    prompts read. `arrivals_per_s` and `ended_per_s` are requests that came to this replica, and that left it. `queue_time_s` is
    the mean time from arrival to first scheduling of the requests that were scheduled in this time, 0 without any.
    """

    at_s: float
    running: float = 0.0
    waiting: float = 0.0
    queued_prompt_tokens: float = 0.0
    kv_cache_usage: float = 0.0
    preemptions_per_s: float = 0.0
    decode_tokens_per_s: float = 0.0
    prefill_tokens_per_s: float = 0.0
    arrivals_per_s: float = 0.0
    ended_per_s: float = 0.0
    queue_time_s: float = 0.0


@dataclass(frozen=True)
class Signals:
    """The fleet at one moment. `now_s` is any clock that goes forward.

    `target` replicas are wanted so far, `ready` can take requests, `reporting` of them have said lately how they are: the fields
    of `Report` are sums over those, `queue_time_s` is their longest. `unplaced` requests are at the ingresses, without a replica.
    `arrivals_per_s` is of requests to all ingresses, those without a replica included.
    """

    now_s: float
    target: int
    ready: int
    reporting: int = 0
    unplaced: float = 0.0
    arrivals_per_s: float = 0.0
    running: float = 0.0
    waiting: float = 0.0
    queued_prompt_tokens: float = 0.0
    kv_cache_usage: float = 0.0
    preemptions_per_s: float = 0.0
    decode_tokens_per_s: float = 0.0
    prefill_tokens_per_s: float = 0.0
    ended_per_s: float = 0.0
    queue_time_s: float = 0.0

    @property
    def ongoing(self) -> float:
        """All requests that are known of."""
        return self.running + self.waiting + self.unplaced


@dataclass(frozen=True)
class Decision:
    """`replicas` and `reason`; `inputs` are the numbers behind it, for logs; `memory` belongs into the next call."""

    replicas: int
    reason: Reason
    inputs: dict[str, float]
    memory: Memory


def gather(
    reports: Iterable[Report],
    *,
    now_s: float,
    target: int,
    ready: int,
    unplaced: float = 0.0,
    arrivals_unplaced_per_s: float = 0.0,
    stale_after_s: float = 15.0,
) -> Signals:
    """Return the signals that `reports` of single replicas make; those older than `stale_after_s` are left out."""
    fresh = [report for report in reports if now_s - report.at_s <= stale_after_s]

    def total(name: str) -> float:
        return float(sum(getattr(report, name) for report in fresh))

    return Signals(
        now_s=now_s,
        target=target,
        ready=ready,
        reporting=len(fresh),
        unplaced=unplaced,
        arrivals_per_s=total("arrivals_per_s") + arrivals_unplaced_per_s,
        running=total("running"),
        waiting=total("waiting"),
        queued_prompt_tokens=total("queued_prompt_tokens"),
        kv_cache_usage=total("kv_cache_usage"),
        preemptions_per_s=total("preemptions_per_s"),
        decode_tokens_per_s=total("decode_tokens_per_s"),
        prefill_tokens_per_s=total("prefill_tokens_per_s"),
        ended_per_s=total("ended_per_s"),
        queue_time_s=max((report.queue_time_s for report in fresh), default=0.0),
    )


def decide(signals: Signals, settings: AutoscalingSettings, memory: Memory) -> Decision:
    """Return how many replicas there should be. Call it at any interval; each report counts for the time since the call before."""
    memory = learn(memory, signals)
    needs, inputs = _needs(signals, settings, memory)
    first = max(needs, key=lambda reason: needs[reason])
    enough = math.ceil(max(needs.values()) * MARGIN - 1e-9)
    memory = replace(memory, bin_needed=max(memory.bin_needed, enough))
    symptom = _symptom(signals, settings, inputs["requests_per_replica"])
    replicas, reason = _choose(signals, settings, memory, math.ceil(needs[first] - 1e-9), first, symptom)
    if reason is symptom:  # as what was learned says otherwise: else it would be taken back at once
        memory = replace(memory, bin_needed=max(memory.bin_needed, replicas))
    if replicas > settings.max_replicas:
        replicas, reason = settings.max_replicas, Reason.MAXIMUM
    if replicas < settings.min_replicas:
        replicas, reason = settings.min_replicas, Reason.MINIMUM
    return Decision(replicas, reason, inputs, memory)


def capacity(settings: AutoscalingSettings, costs: Costs) -> float:
    """Return the running requests that a replica holds within the SLO of TPOT, its KV cache and `max_num_seqs`; at least 1.

    Where the SLO cannot be met even by a request alone, more replicas are no help: as many as take half as long again are held.
    """
    step_s = max(TPOT_MARGIN * settings.tpot_p95_s, 1.5 * costs.step_s)
    by_tpot = (step_s - costs.step_s) / costs.step_per_request_s
    by_kv_cache = settings.kv_cache_target / costs.kv_per_request if costs.kv_per_request else math.inf
    return max(1.0, min(by_tpot, by_kv_cache, settings.max_num_seqs))


def _needs(signals: Signals, settings: AutoscalingSettings, memory: Memory) -> tuple[dict[Reason, float], dict[str, float]]:
    """Return the replicas that are needed for each reason, as real numbers, and what they were computed from."""
    costs = Costs.read(memory, settings)
    held = capacity(settings, costs)
    startup_s = memory.startup_s if memory.startup_s is not None else settings.startup_s
    ahead_s = startup_s + REPORT_LAG_S
    now_per_s = arrivals(memory)
    factor = rise(memory, now_per_s, ahead_s, settings.burst_share)
    arrivals_per_s = now_per_s * (factor or 1.0)
    reply_s = costs.tokens_per_request * (costs.step_s + costs.step_per_request_s * held)
    final = arrivals_per_s * reply_s
    here = signals.running + signals.unplaced + WAITING_SHARE * signals.waiting
    expected = final + (here - final) * math.exp(-ahead_s / reply_s)
    if factor is None:
        expected += 2 * math.sqrt(expected)
    prompts = arrivals_per_s * costs.prompt_tokens_per_request / PREFILL_SHARE + signals.queued_prompt_tokens / ahead_s
    needs = {
        Reason.BACKLOG: here / held,
        Reason.FORECAST: expected / held,
        Reason.PROMPTS: prompts / settings.prefill_tokens_per_s,
    }
    inputs = {
        "ongoing": signals.ongoing,
        "expected": expected,
        "requests_per_replica": held,
        "arrivals_per_s": now_per_s,
        "rise": factor or 1.0,
        "reply_s": reply_s,
        "startup_s": startup_s,
        "queue_time_s": signals.queue_time_s,
    }
    return needs, inputs | {f"needed_for_{reason}": need for reason, need in needs.items()}


def _choose(
    signals: Signals, settings: AutoscalingSettings, memory: Memory, needed: int, first: Reason, symptom: Reason | None
) -> tuple[int, Reason]:
    """Return replicas and reason, before bounds."""
    if signals.target == 0:
        wanted = signals.ongoing > 0 or signals.arrivals_per_s > 0
        return (max(needed, 1), Reason.FIRST_REQUEST) if wanted else (0, Reason.IDLE)
    if signals.ready and signals.reporting < signals.ready / 2:
        return signals.target, Reason.BLIND
    if settings.min_replicas == 0 and not signals.ongoing and signals.now_s - memory.busy_s >= settings.idle_s:
        return 0, Reason.IDLE
    if needed > signals.target:
        return needed, first
    if symptom is not None and signals.ready >= signals.target:
        return signals.target + 1, symptom
    bins = max(1, math.ceil(settings.downscale_hold_s / BIN_S))
    enough = max(1, memory.bin_needed, *memory.needed[-bins:])
    if signals.target - enough <= max(1, FEW * signals.target):
        bins = min(2 * bins, BINS)
        enough = max(1, memory.bin_needed, *memory.needed[-bins:])
    if enough >= signals.target:
        return signals.target, Reason.STEADY if memory.bin_needed >= signals.target else Reason.HOLD
    if len(memory.needed) < bins or signals.reporting < signals.ready:  # a silent replica may be full
        return signals.target, Reason.HOLD
    return enough, Reason.LOWER_LOAD


def _symptom(signals: Signals, settings: AutoscalingSettings, held: float) -> Reason | None:
    """Return what shows that replicas are overloaded, although by what was learned they should not be.

    Slow tokens are such a sign where replicas are at least half full: of a few requests, some may just have begun.
    """
    if signals.waiting and signals.queue_time_s > settings.ttft_p95_s:
        return Reason.QUEUE_TIME
    if signals.preemptions_per_s > PREEMPTED_SHARE * signals.ended_per_s:
        return Reason.PREEMPTIONS
    full = signals.running > held * signals.reporting / 2
    if full and signals.running > settings.tpot_p95_s * signals.decode_tokens_per_s > 0:
        return Reason.TPOT
    return None
