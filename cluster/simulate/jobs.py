"""One run of the simulator: the job, and its result in numbers."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cluster.simulate.policies import Hpa, Oracle, Ours, RequestCount, Static
from cluster.simulate.replica_model import Floats, ReplicaModel
from cluster.simulate.simulation import Outcome, Policy, simulate
from cluster.simulate.workloads import WORKLOADS, load_trace
from deployments.settings import AutoscalingSettings

WARMUP_S = 3600.0
POLICIES = {
    "ours": "ours",
    "requests": "request count (Ray)",
    "requests_99": "request count, 99 %",
    "queue": "queue (KEDA)",
    "kv_cache": "KV cache",
    "static": "static peak",
    "oracle": "oracle",
}
Parameters = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """The parameters of one run. The requests are those of the file `trace`, if there is one, else the workload's."""

    workload: str
    policy: str
    parameters: Parameters
    seed: int
    scale: float = 1.0
    rate: float = 1.0
    trace: str | None = None
    max_replicas: int = 60
    startup_s: float = 90.0
    dt: float = 1.0


@dataclass
class Run:
    """A job and its result in numbers."""

    job: Job
    numbers: dict[str, float]
    timeline: list[tuple[float, float, int, int, int]] = field(default_factory=list)


def requests(job: Job) -> tuple[Iterable[Floats], float]:
    """Return a job's requests and their duration in seconds."""
    if job.trace is None:
        workload = WORKLOADS[job.workload]
        return workload.requests(job.seed, job.scale), workload.duration_s
    loaded = load_trace(Path(job.trace))
    loaded[:, 0] /= job.rate
    return [loaded], float(np.ceil(loaded[-1, 0] + 1))


def policy(job: Job, settings: AutoscalingSettings, model: ReplicaModel) -> Policy:
    """Return a job's policy."""
    if job.policy == "ours":
        return Ours(settings.model_copy(update=job.parameters))
    if job.policy.startswith("requests"):
        return RequestCount(max_replicas=job.max_replicas, **job.parameters)
    if job.policy in ("queue", "kv_cache"):
        return Hpa(by=job.policy, max_replicas=job.max_replicas, **job.parameters)
    if job.policy == "static":
        return Static(**job.parameters)
    return Oracle(requests(job)[0], model, duration_s=requests(job)[1], max_replicas=job.max_replicas, **job.parameters)


def run(job: Job) -> Run:
    """Simulate one job."""
    began = time.process_time()
    settings, model = AutoscalingSettings(max_replicas=job.max_replicas), ReplicaModel(startup_s=job.startup_s)
    source, duration_s = requests(job)
    outcome = simulate(
        source,
        policy(job, settings, model),
        settings,
        model,
        duration_s=duration_s,
        warmup_s=WARMUP_S if duration_s >= 2 * WARMUP_S else 0.0,
        seed=job.seed,
        initial=job.parameters.get("count", max(1, round(12 * job.scale))),
        dt=job.dt,
    )
    return Run(
        job,
        _numbers(outcome, model) | {"cpu_s": time.process_time() - began},
        outcome.timeline[:: max(1, len(outcome.timeline) // 2000)],
    )


def _numbers(outcome: Outcome, model: ReplicaModel) -> dict[str, float]:
    counted = max(outcome.counted, 1)
    return {
        "requests": outcome.requests,
        "lost": outcome.requests - outcome.ended,
        "violations": outcome.violations,
        "ttft_met": outcome.ttft_met / counted,
        "tpot_met": outcome.tpot_met / counted,
        "good_tokens_per_s": outcome.good_tokens / outcome.duration_s,
        "gpu_hours": outcome.gpu_hours,
        "usd": outcome.gpu_hours * model.usd_per_hour,
        "starting_minutes": outcome.starting_s / 60,
        "ttft_p95_s": outcome.percentile(outcome.ttft_counts, 0.95),
        "tpot_p95_s": outcome.percentile(outcome.tpot_counts, 0.95),
        "queue_p99_s": outcome.percentile(outcome.queue_counts, 0.99),
        "changes": outcome.changes,
        "preempted": outcome.preempted,
    }
