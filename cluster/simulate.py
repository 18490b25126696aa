"""Compare autoscaling policies on a simulated fleet: `python -m cluster.simulate [WORKLOAD ...]`.

Prints a table (Markdown) and writes it, the runs as JSON lines and plots into `--out`. Workloads are synthetic ones
(`cluster.workloads`) or a published trace (`--trace FILE`: Azure, BurstGPT or Mooncake format; `--rate` plays it faster). `--scale`
multiplies a synthetic workload's requests, so that the fleet is larger: with 600 it is up to some 10,000 replicas.

Every policy but ours has parameters that suit one workload and not another. `--tune` searches them for each workload on a seed of
its own and writes `cluster/tuned.json`; a comparison picks from there, for each workload
- of the request-count, queue and KV-cache policies, what missed the SLOs least often at no more GPU-hours than ours (and 2 %),
- of the request-count policy again, the fixed numbers and the oracle, the cheapest that missed them for at most 1 % of requests.
Ours runs with the settings' defaults everywhere. The first hour of a run is not counted.
"""

import argparse
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from cluster.policies import Hpa, Oracle, Ours, RequestCount, Static
from cluster.replicas import Floats, ReplicaModel
from cluster.simulation import Outcome, Policy, simulate
from cluster.workloads import WORKLOADS, load_trace
from deployments.settings import AutoscalingSettings

TUNED = Path(__file__).parent / "tuned.json"
TUNING_SEEDS = (101,)
REPORT_SEEDS = (1, 2, 3)
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
UNTUNED: dict[str, Parameters] = {
    "ours": {},
    "requests": {"target_ongoing_requests": 40, "upscale_delay_s": 0, "downscale_delay_s": 180},
    "requests_99": {"target_ongoing_requests": 30, "upscale_delay_s": 0, "downscale_delay_s": 180},
    "queue": {"target": 1},
    "kv_cache": {"target": 0.3},
    "static": {"count": 16},
    "oracle": {"per_replica": 90},
}


@dataclass(frozen=True)
class Job:
    """One run. `trace` is a file in place of the workload's requests."""

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
    """A job and what came of it, in numbers."""

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


def candidates() -> Iterator[tuple[str, Parameters]]:
    """Yield the policies and parameters that a search tries: of the request count's 120 combinations a half."""
    names = ("target_ongoing_requests", "upscale_delay_s", "downscale_delay_s", "upscaling_factor")
    grid = product((15, 20, 25, 30, 35, 40, 50, 60, 70, 80), (0, 20), (60, 180, 600), (1, 1.5))
    combinations = [dict(zip(names, values, strict=True)) for values in grid]
    yield "ours", {}
    for parameters in random.Random(7).sample(combinations, 60):
        yield "requests", parameters
    yield "queue", {"target": 1}
    for share in (0.15, 0.3):
        yield "kv_cache", {"target": share}
    for count in (10, 13, 16, 20, 25):
        yield "static", {"count": count}
    for per_replica in (80, 85):
        yield "oracle", {"per_replica": per_replica}


def tune(name: str, policies: list[str], processes: int) -> list[Run]:
    """Run the candidates on the tuning seeds."""
    wanted = [(kind, parameters) for kind, parameters in candidates() if kind in policies]
    jobs = [Job(name, kind, parameters, seed) for kind, parameters in wanted for seed in TUNING_SEEDS]
    with ProcessPoolExecutor(processes) as pool:
        return list(_progress(pool.map(run, jobs), len(jobs)))


def choose(tuned: list[dict[str, Any]], workload: str) -> dict[str, Parameters]:
    """Return each policy's parameters for a workload, from a search's rows; see the module's docstring. Without rows, UNTUNED."""
    rows = [row for row in tuned if row["workload"] == workload]
    if not any(row["policy"] == "ours" for row in rows):
        return UNTUNED
    chosen = dict(UNTUNED)
    budget = 1.02 * fmean(row["gpu_hours"] for row in rows if row["policy"] == "ours")
    for kind in POLICIES:
        of_kind = [row for row in rows if row["policy"] == kind.removesuffix("_99")]
        if not of_kind:
            continue
        if kind in ("requests", "queue", "kv_cache"):
            affordable = [row for row in of_kind if row["gpu_hours"] <= budget] or [min(of_kind, key=lambda row: row["gpu_hours"])]
            chosen[kind] = min(affordable, key=lambda row: (row["violations"], row["gpu_hours"]))["parameters"]
        elif kind != "ours":
            good = [row for row in of_kind if row["violations"] <= 0.01] or [min(of_kind, key=lambda row: row["violations"])]
            chosen[kind] = min(good, key=lambda row: row["gpu_hours"])["parameters"]
    return chosen


def table(runs: list[Run]) -> str:
    """Return means over seeds as Markdown."""
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for one in runs:
        groups[one.job.workload, one.job.policy].append(one)
    lines = [
        "| workload | policy | missed % | TTFT met % | TPOT met % | good tokens/s | GPU-hours | USD | p99 queue s | start-up min |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (workload, kind), of_group in groups.items():
        mean = {name: fmean(one.numbers[name] for one in of_group) for name in of_group[0].numbers}
        lines.append(
            f"| {workload} | {POLICIES[kind]} | {100 * mean['violations']:.2f} | {100 * mean['ttft_met']:.2f}"
            f" | {100 * mean['tpot_met']:.2f} | {mean['good_tokens_per_s']:,.0f} | {mean['gpu_hours']:.1f} | {mean['usd']:.2f}"
            f" | {mean['queue_p99_s']:.2f} | {mean['starting_minutes']:.0f} |"
        )
    return "\n".join(lines)


def _progress(runs: Iterable[Run], count: int) -> Iterator[Run]:
    for index, one in enumerate(runs, 1):
        job, numbers = one.job, one.numbers
        print(
            f"{index}/{count} {job.workload}, {POLICIES[job.policy]} {job.parameters or ''} seed {job.seed}: missed"
            f" {100 * numbers['violations']:.2f} %, {numbers['gpu_hours']:.1f} GPU-hours, {numbers['cpu_s']:.0f} s of CPU",
            file=sys.stderr,
            flush=True,
        )
        yield one


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m cluster.simulate", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)}; all but the day by default")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(REPORT_SEEDS))
    parser.add_argument("--trace", help="a published trace's file, in place of a workload")
    parser.add_argument("--rate", type=float, default=1.0, help="how much faster to play the trace")
    parser.add_argument("--scale", type=float, default=1.0, help="how many times the requests of a synthetic workload")
    parser.add_argument("--startup-s", type=float, default=90.0)
    parser.add_argument("--dt", type=float, default=1.0, help="the simulation's step in seconds")
    parser.add_argument("--tune", action="store_true", help="search parameters and write them")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("simulation"))
    given = parser.parse_args(arguments)
    if unknown := set(given.workloads) - set(WORKLOADS):
        parser.error(f"no such workload: {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}")
    names = given.workloads or [name for name in WORKLOADS if name != "diurnal"]
    if given.tune:
        for name in names:
            rows = json.loads(TUNED.read_text()) if TUNED.exists() else []
            rows = [row for row in rows if row["workload"] != name or row["policy"] not in given.policies]
            rows += [rounded(one) for one in tune(name, given.policies, given.processes)]
            TUNED.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
        return
    tuned = json.loads(TUNED.read_text()) if TUNED.exists() else []
    jobs = [
        Job(
            Path(given.trace).stem if given.trace else name,
            kind,
            _scaled(choose(tuned, Path(given.trace).stem if given.trace else name)[kind], given.scale),
            seed,
            given.scale,
            given.rate,
            given.trace,
            max_replicas=max(1, round(60 * given.scale)),
            startup_s=given.startup_s,
            dt=given.dt,
        )
        for name in (names[:1] if given.trace else names)
        for kind in given.policies
        for seed in (given.seeds[:1] if given.trace else given.seeds)
    ]
    given.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(given.processes) as pool:
        runs = list(_progress(pool.map(run, jobs), len(jobs)))
    written = table(runs)
    (given.out / "table.md").write_text(written + "\n")
    (given.out / "runs.jsonl").write_text("".join(json.dumps(asdict(one.job) | one.numbers) + "\n" for one in runs))
    from cluster.plots import plot  # matplotlib takes a second

    plot(runs, tuned, POLICIES, given.out)
    print(written)


def rounded(one: Run) -> dict[str, Any]:
    """Return what a search keeps of a run."""
    kept = ("violations", "gpu_hours", "ttft_met", "tpot_met")
    job = one.job
    return {"workload": job.workload, "policy": job.policy, "parameters": job.parameters, "seed": job.seed} | {
        name: round(one.numbers[name], 5) for name in kept
    }


def _scaled(parameters: Parameters, scale: float) -> Parameters:
    return {**parameters, "count": max(1, round(parameters["count"] * scale))} if "count" in parameters else parameters


if __name__ == "__main__":
    main()
