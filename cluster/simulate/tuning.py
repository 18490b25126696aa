"""The search for the other policies' parameters, on separate seeds: `python -m cluster.simulate --tune` writes `tuned.json`.

All candidates run on the first seed. A candidate also runs on the other seeds if at most `DOMINATED` others were both cheaper and
better on the first. A comparison picks among those by their means over all seeds (`choose`).
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from cluster.simulate.jobs import POLICIES, Job, Parameters, Run

TUNED = Path(__file__).parent / "tuned.json"
TUNING_SEEDS = (101, 102, 103)
DOMINATED = 2
UNTUNED: dict[str, Parameters] = {
    "ours": {},
    "requests": {"target_ongoing_requests": 40, "upscale_delay_s": 0, "downscale_delay_s": 180},
    "requests_99": {"target_ongoing_requests": 30, "upscale_delay_s": 0, "downscale_delay_s": 180},
    "queue": {"target": 1},
    "kv_cache": {"target": 0.3},
    "static": {"count": 16},
    "oracle": {"per_replica": 90},
}
Row = dict[str, Any]


def candidates() -> Iterator[tuple[str, Parameters]]:
    """Yield the policies and parameters that a search tries; of the request count's 120 combinations, half."""
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


def read() -> list[Row]:
    """Return the rows of the last search; none if there was none."""
    rows: list[Row] = json.loads(TUNED.read_text()) if TUNED.exists() else []
    return rows


def write(rows: list[Row]) -> None:
    """Write the rows to `tuned.json`, one a line."""
    TUNED.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def tune(workload: str, policies: list[str], run: Callable[[list[Job]], Iterable[Run]]) -> list[Row]:
    """Return a row for each candidate of these policies, from jobs that `run` runs."""
    wanted = [(kind, parameters) for kind, parameters in candidates() if kind in policies]
    rows = [_row([one]) for one in run([Job(workload, kind, parameters, TUNING_SEEDS[0]) for kind, parameters in wanted])]
    for row in front(rows):
        seeds = TUNING_SEEDS[1:]
        more = list(run([Job(workload, row["policy"], row["parameters"], seed) for seed in seeds]))
        for name in ("violations", "gpu_hours"):
            row[name] = round(fmean([row[name], *(one.numbers[name] for one in more)]), 5)
        row["seeds"] = len(TUNING_SEEDS)
    return rows


def _row(runs: list[Run]) -> Row:
    means = {name: round(fmean(one.numbers[name] for one in runs), 5) for name in ("violations", "gpu_hours")}
    job = runs[0].job
    return {"workload": job.workload, "policy": job.policy, "parameters": job.parameters, "seeds": len(runs)} | means


def front(rows: list[Row]) -> list[Row]:
    """Return the rows that at most DOMINATED others of the same policy beat in both GPU-hours and missed SLOs."""

    def beaten_by(row: Row) -> int:
        return sum(
            other is not row and other["gpu_hours"] <= row["gpu_hours"] and other["violations"] <= row["violations"]
            for other in rows
            if other["policy"] == row["policy"]
        )

    return [row for row in rows if beaten_by(row) <= DOMINATED]


def choose(tuned: list[Row], workload: str) -> dict[str, Parameters]:
    """Return each policy's parameters for a workload; UNTUNED where there are no rows of a search.

    For the request count, the queue and the KV cache: the parameters that missed the SLOs least often at up to 1.02 times our
    GPU-hours, or the cheapest if all cost more. For the request count once more (`requests_99`), the fixed number and the oracle:
    the cheapest that missed them for at most 1 % of the requests. Only rows with as many seeds as any other of their policy count.
    """
    rows = [row for row in tuned if row["workload"] == workload]
    if not any(row["policy"] == "ours" for row in rows):
        return UNTUNED
    chosen = dict(UNTUNED)
    budget = 1.02 * fmean(row["gpu_hours"] for row in rows if row["policy"] == "ours")
    for kind in POLICIES:
        of_kind = [row for row in rows if row["policy"] == kind.removesuffix("_99")]
        of_kind = [row for row in of_kind if row["seeds"] == max(other["seeds"] for other in of_kind)]
        if not of_kind:
            continue
        if kind in ("requests", "queue", "kv_cache"):
            affordable = [row for row in of_kind if row["gpu_hours"] <= budget] or [min(of_kind, key=lambda row: row["gpu_hours"])]
            chosen[kind] = min(affordable, key=lambda row: (row["violations"], row["gpu_hours"]))["parameters"]
        elif kind != "ours":
            good = [row for row in of_kind if row["violations"] <= 0.01] or [min(of_kind, key=lambda row: row["violations"])]
            chosen[kind] = min(good, key=lambda row: row["gpu_hours"])["parameters"]
    return chosen
