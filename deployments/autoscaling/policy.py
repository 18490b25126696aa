"""How many LLM replicas there should be: a pure function from signals to a number, its reason, and what to remember.

    requests now ──────────────────┐
    requests expected when a ──────┴─ larger ─> / requests a replica can hold ─┐
    replica started now is ready      within both SLOs: by TPOT, KV cache,     ├─ larger ─> replicas, within bounds
                                      max_num_seqs                             │
    prompt tokens to read per second ─> / tokens a replica reads in half of it ┘

More replicas start at once. Replicas are removed when the load of the whole last `downscale_hold_s` fits into fewer, with a margin;
if only a few would go, the load of twice that time counts.

The expected requests follow Little's law: arrivals per second times the time of a reply (its tokens times the TPOT of a full
replica). The number of requests moves from the current one towards that, at the pace at which replies end. The arrivals are the
current ones times a factor: how much they rose within one start-up time in the last hour, from moments with about as many as now.
`burst_share` of these moments saw no higher factor. So if bursts come more often than replicas start, spare replicas are kept for
them, more of them the longer a start takes. A growing load is met ahead of time. A rise that happened only once is taken for an
accident.

Lines of batches take what is idle. They keep, and start, at most `batch_replicas`; beyond those, only other requests count.

Nothing here knows Ray or the clock. `cluster/simulate` drives this same function.
"""

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from deployments.autoscaling.memory import BIN_S, BINS, Costs, Memory, arrivals, learn, rise
from deployments.autoscaling.signals import Signals
from deployments.settings import AutoscalingSettings

REPORT_LAG_S = 5.0  # from a change of the load to a decision that has seen it
FEW = 0.1  # of the replicas, or one: so few are removed only after twice the time, because the load varies as much by chance
MARGIN = 1.04  # fewer replicas are enough only if they would be with this much more load
WAITING_SHARE = 0.4  # requests that wait at a replica stay there: a new one takes only those that would have arrived there
PREFILL_SHARE = 0.5  # the largest share of a replica's time for prompts: beyond it, they queue for long
PREEMPTED_SHARE = 0.05  # of requests: more preemptions are a sign of overload
TPOT_MARGIN = 0.9  # TPOT's 95th percentile is above its mean: requests differ, and prefills come in between


class Reason(StrEnum):
    """Why a decision is what it is; a closed set, so that it can label a metric."""

    STEADY = "steady"  # as many as there are
    FIRST_REQUEST = "first_request"  # from zero
    BACKLOG = "backlog"  # more, for the current requests
    FORECAST = "forecast"  # more, for the requests expected when a new replica is ready
    PROMPTS = "prompts"  # more, because prompts are not read fast enough for TTFT
    QUEUE_TIME = "queue_time"  # one more, although the load should fit: requests wait for longer than TTFT allows
    PREEMPTIONS = "preemptions"  # one more, although the load should fit: KV caches overflow
    TPOT = "tpot"  # one more, although the load should fit: tokens come too slowly
    BATCHES = "batches"  # more, for lines of batches
    HOLD = "hold"  # fewer would do, but have not for long enough
    LOWER_LOAD = "lower_load"  # fewer
    IDLE = "idle"  # none
    BLIND = "blind"  # too few replicas report: as many as there are
    MINIMUM = "minimum"  # the bounds
    MAXIMUM = "maximum"


@dataclass(frozen=True)
class Decision:
    """How many replicas, and why. `inputs` are the numbers behind the decision, for logs; `memory` goes into the next call."""

    replicas: int
    reason: Reason
    inputs: dict[str, float]
    memory: Memory


def decide(signals: Signals, settings: AutoscalingSettings, memory: Memory) -> Decision:
    """Return how many replicas there should be. Call it at any interval; a report counts for the time since the previous call."""
    memory = learn(memory, signals)
    needs, inputs = _needs(signals, settings, memory)
    leading = max(needs, key=lambda reason: needs[reason])
    batches = min(math.ceil(needs[Reason.BATCHES] * MARGIN - 1e-9), settings.batch_replicas)
    enough = max(batches, *(math.ceil(need * MARGIN - 1e-9) for reason, need in needs.items() if reason is not Reason.BATCHES))
    memory = replace(memory, bin_needed=max(memory.bin_needed, enough))
    symptom = _symptom(signals, settings, inputs["requests_per_replica"])
    replicas, reason = _choose(signals, settings, memory, math.ceil(needs[leading] - 1e-9), leading, symptom)
    if reason is symptom:  # the learned costs say otherwise: they would remove it at once
        memory = replace(memory, bin_needed=max(memory.bin_needed, replicas))
    if replicas > settings.max_replicas:
        replicas, reason = settings.max_replicas, Reason.MAXIMUM
    if replicas < settings.min_replicas:
        replicas, reason = settings.min_replicas, Reason.MINIMUM
    return Decision(replicas, reason, inputs, memory)


def capacity(settings: AutoscalingSettings, costs: Costs) -> float:
    """Return the running requests that a replica can hold within the TPOT SLO, its KV cache and `max_num_seqs`; at least 1.

    If not even a single request can meet the SLO, more replicas do not help. The replica then holds as many requests as lengthen
    its step by half.
    """
    step_s = max(TPOT_MARGIN * settings.tpot_p95_s, 1.5 * costs.step_s)
    by_tpot = (step_s - costs.step_s) / costs.step_per_request_s
    by_kv_cache = settings.kv_cache_target / costs.kv_per_request if costs.kv_per_request else math.inf
    return max(1.0, min(by_tpot, by_kv_cache, settings.max_num_seqs))


def _needs(signals: Signals, settings: AutoscalingSettings, memory: Memory) -> tuple[dict[Reason, float], dict[str, float]]:
    """Return the replicas that are needed for each reason, as real numbers, and the numbers that they were computed from."""
    costs = Costs.read(memory, settings)
    per_replica = capacity(settings, costs)
    startup_s = memory.startup_s if memory.startup_s is not None else settings.startup_s
    ahead_s = startup_s + REPORT_LAG_S
    now_per_s = arrivals(memory)
    factor = rise(memory, now_per_s, ahead_s, settings.burst_share)
    arrivals_per_s = now_per_s * (factor or 1.0)
    reply_s = costs.tokens_per_request * (costs.step_s + costs.step_per_request_s * per_replica)
    final = arrivals_per_s * reply_s
    deferred = signals.deferred_running + WAITING_SHARE * signals.deferred_waiting
    with_batches = signals.running + signals.unplaced + WAITING_SHARE * signals.waiting
    current = max(with_batches - deferred, 0.0)
    expected = final + (current - final) * math.exp(-ahead_s / reply_s)
    if factor is None:
        expected += 2 * math.sqrt(expected)
    prompts = arrivals_per_s * costs.prompt_tokens_per_request / PREFILL_SHARE + signals.queued_prompt_tokens / ahead_s
    needs = {
        Reason.BACKLOG: current / per_replica,
        Reason.FORECAST: expected / per_replica,
        Reason.PROMPTS: prompts / settings.prefill_tokens_per_s,
        Reason.BATCHES: min(with_batches / per_replica, settings.batch_replicas) if deferred else 0.0,
    }
    inputs = {
        "ongoing": signals.ongoing,
        "expected": expected,
        "requests_per_replica": per_replica,
        "arrivals_per_s": now_per_s,
        "rise": factor or 1.0,
        "reply_s": reply_s,
        "startup_s": startup_s,
        "queue_time_s": signals.queue_time_s,
    }
    return needs, inputs | {f"needed_for_{reason}": need for reason, need in needs.items()}


def _choose(
    signals: Signals, settings: AutoscalingSettings, memory: Memory, needed: int, leading: Reason, symptom: Reason | None
) -> tuple[int, Reason]:
    """Return the number of replicas and its reason, before the bounds apply."""
    if signals.target == 0:
        wanted = signals.ongoing > 0 or signals.arrivals_per_s > 0
        return (max(needed, 1), Reason.FIRST_REQUEST) if wanted else (0, Reason.IDLE)
    if signals.ready and signals.reporting < signals.ready / 2:
        return signals.target, Reason.BLIND
    if settings.min_replicas == 0 and not signals.ongoing and signals.now_s - memory.busy_s >= settings.idle_s:
        return 0, Reason.IDLE
    if needed > signals.target:
        return needed, leading
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


def _symptom(signals: Signals, settings: AutoscalingSettings, per_replica: float) -> Reason | None:
    """Return the sign that replicas are overloaded although the learned costs say that they are not; None without one.

    Slow tokens are a sign only if replicas are at least half full: of a few requests, some may just have begun. Where most of the
    running requests are lines of batches, there is room as soon as they step back.
    """
    if signals.waiting > signals.deferred_waiting and signals.queue_time_s > settings.ttft_p95_s:
        return Reason.QUEUE_TIME
    if signals.deferred_running > signals.running / 2:
        return None
    if signals.preemptions_per_s > PREEMPTED_SHARE * signals.ended_per_s:
        return Reason.PREEMPTIONS
    full = signals.running > per_replica * signals.reporting / 2
    if full and signals.running > settings.tpot_p95_s * signals.decode_tokens_per_s > 0:
        return Reason.TPOT
    return None
