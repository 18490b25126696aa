"""One simulated run: a workload on a fleet that a policy scales, and its outcome."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from cluster.simulate.fleet import DRAINING, STARTING, UP, Fleet, Period
from cluster.simulate.replica_model import Floats, ReplicaModel
from deployments.autoscaling.signals import Signals
from deployments.settings import AutoscalingSettings

BUCKETS = np.geomspace(0.01, 10_000, 1000)  # upper bounds of seconds, for percentiles; 1.4 % apart


class Policy(Protocol):
    """Decides how many replicas there should be."""

    def replicas(self, signals: Signals) -> int:
        """Return the number of replicas there should be, from signals that are one report old."""


@dataclass
class Outcome:
    """The counts and times of a run, in seconds. `timeline` has rows of (time, arrivals a second, target, up, ongoing)."""

    requests: int = 0
    ended: int = 0
    counted: int = 0
    ttft_met: int = 0
    tpot_met: int = 0
    good: int = 0
    good_tokens: float = 0.0
    preempted: int = 0
    duration_s: float = 0.0
    replica_s: float = 0.0
    starting_s: float = 0.0
    changes: int = 0
    queue_counts: Floats = field(default_factory=lambda: np.zeros(len(BUCKETS) + 1))
    ttft_counts: Floats = field(default_factory=lambda: np.zeros(len(BUCKETS) + 1))
    tpot_counts: Floats = field(default_factory=lambda: np.zeros(len(BUCKETS) + 1))
    timeline: list[tuple[float, float, int, int, int]] = field(default_factory=list)

    @property
    def violations(self) -> float:
        """The share of requests that missed the SLO of TTFT or of TPOT."""
        return 1 - self.good / max(self.counted, 1)

    @property
    def gpu_hours(self) -> float:
        """Replicas times hours, counted from a replica's start to its end."""
        return self.replica_s / 3600

    def percentile(self, counts: Floats, share: float) -> float:
        """Return the value that `share` of the values counted in BUCKETS do not exceed."""
        return float(np.append(BUCKETS, np.inf)[np.searchsorted(np.cumsum(counts), share * counts.sum())]) if counts.any() else 0.0


def simulate(
    workload: Iterable[Floats],
    policy: Policy,
    slo: AutoscalingSettings,
    model: ReplicaModel,
    *,
    duration_s: float,
    warmup_s: float = 0.0,
    seed: int = 0,
    initial: int = 1,
    dt: float = 0.25,
    report_s: float = 2.0,
    max_ongoing_requests: int = 10_000,
) -> Outcome:
    """Return the outcome of `workload`: arrays of rows (time, prompt tokens, reply tokens), in order.

    The policy decides every `report_s`. GPU time counts from `warmup_s` to `duration_s`. Requests count if they end after
    `warmup_s`; the run goes on after `duration_s` until all have ended.
    """
    fleet = Fleet(model, np.random.default_rng(seed), max_ongoing_requests=max_ongoing_requests)
    fleet.scale(initial, 0.0, warm=True)
    outcome, target, signals = Outcome(duration_s=duration_s), initial, None
    source, steps_a_report = _slices(workload, dt), round(report_s / dt)
    for step in range(10**9):
        now_s = step * dt
        if now_s >= duration_s and (not fleet.ongoing or now_s > 3 * duration_s + 7200):
            break
        if step % steps_a_report == 0:
            before, signals = signals, _signals(fleet, target, now_s, report_s)
            # Reports are one interval old. The controller's own numbers are not.
            wanted = policy.replicas(replace(before or signals, now_s=now_s, target=target, ready=signals.ready))
            if now_s >= duration_s:
                wanted = max(wanted, 1)  # for the requests that are left
            outcome.changes += wanted != target and warmup_s <= now_s < duration_s
            target = wanted
            fleet.scale(target, now_s)
            outcome.preempted += round(signals.preemptions_per_s * report_s)
            outcome.timeline.append((now_s, signals.arrivals_per_s, target, fleet.count(UP), fleet.ongoing))
        arrivals = next(source) if now_s < duration_s else np.empty((0, 3))
        ended = fleet.step(now_s, dt, arrivals)
        outcome.requests += len(arrivals)
        outcome.ended += len(ended.tokens)
        if now_s >= warmup_s and len(ended.tokens):
            _count(outcome, ended.ttft_s, ended.tpot_s, ended.tokens, slo)
        if warmup_s <= now_s < duration_s:
            outcome.replica_s += dt * fleet.count(STARTING, UP, DRAINING)
            outcome.starting_s += dt * fleet.count(STARTING)
        for times in fleet.queue_times if now_s >= warmup_s else ():
            outcome.queue_counts += _histogram(times)
        fleet.queue_times.clear()
    return outcome


def _count(outcome: Outcome, ttft_s: Floats, tpot_s: Floats, tokens: Floats, slo: AutoscalingSettings) -> None:
    first, rest = ttft_s <= slo.ttft_p95_s, tpot_s <= slo.tpot_p95_s
    outcome.counted += len(tokens)
    outcome.ttft_met += int(first.sum())
    outcome.tpot_met += int(rest.sum())
    outcome.good += int((first & rest).sum())
    outcome.good_tokens += float(tokens[first & rest].sum())
    outcome.ttft_counts += _histogram(ttft_s)
    outcome.tpot_counts += _histogram(tpot_s)


def _histogram(times: Floats) -> Floats:
    """Return the counts in BUCKETS and above the last. A logarithm finds the bucket, in a fifth of the time of a search."""
    steps = np.log(np.maximum(times, BUCKETS[0]) / BUCKETS[0]) * ((len(BUCKETS) - 1) / np.log(BUCKETS[-1] / BUCKETS[0]))
    return np.bincount(np.minimum(np.ceil(steps - 1e-9).astype(np.int64), len(BUCKETS)), minlength=len(BUCKETS) + 1).astype(float)


def _slices(workload: Iterable[Floats], dt: float) -> Iterator[Floats]:
    """Yield the arrivals of each step of `dt`; empty arrays after the last."""
    end_s, rest = dt, np.empty((0, 3))
    for chunk in workload:
        rest = np.concatenate([rest, chunk])
        if not len(rest):
            continue
        edges = np.arange(end_s, rest[-1, 0], dt)  # the ends of complete steps, which lie before the last arrival
        ends = np.searchsorted(rest[:, 0], edges)
        begin = 0
        for end in ends:
            yield rest[begin:end]
            begin = int(end)
        rest, end_s = rest[begin:], end_s + dt * len(edges)
    yield rest
    while True:
        yield np.empty((0, 3))


def _signals(fleet: Fleet, target: int, now_s: float, report_s: float) -> Signals:
    """Return the replicas' and ingresses' report on the period since the last one, and begin the next period."""
    period, fleet.period = fleet.period, Period()
    up = fleet.state == UP
    ready = int(up.sum())
    return Signals(
        now_s=now_s,
        target=target,
        ready=ready,
        reporting=ready,
        unplaced=len(fleet.unplaced),
        arrivals_per_s=period.arrived / report_s,
        running=float(fleet.running[up].sum()),
        waiting=float(fleet.waiting[up].sum()),
        queued_prompt_tokens=float(fleet.queue[:, 1].sum()),
        kv_cache_usage=float(fleet.kv[up].sum()) / fleet.model.kv_tokens,
        preemptions_per_s=period.preempted / report_s,
        decode_tokens_per_s=period.generated / report_s,
        prefill_tokens_per_s=period.prefilled / report_s,
        ended_per_s=period.ended / report_s,
        queue_time_s=period.queue_s / period.started if period.started else 0.0,
    )
