"""Compare autoscaling policies on a simulated fleet: `python -m cluster.simulate [WORKLOAD ...]`.

Prints a Markdown table, and writes it, the runs (JSON lines) and plots into `--out`. Workloads are synthetic
(`cluster.simulate.workloads`) or a published trace (`--trace FILE`, in the format of Azure, BurstGPT or Mooncake; `--rate` plays it
faster). `--scale` multiplies the requests of a synthetic workload, and with them the fleet: 600 gives up to some 10,000 replicas.

Every policy but ours has parameters that suit one workload and not another. `--tune` searches parameters for each workload, on
other seeds (`cluster.simulate.tuning`), and a comparison picks from the results. Ours runs with the settings' defaults everywhere.
The first hour of a run is not counted.

`python -m cluster.simulate routing` compares ways to choose a replica instead (`cluster.simulate.routing.report`).
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

import numpy as np

from cluster.simulate import tuning
from cluster.simulate.jobs import POLICIES, Job, Parameters, Run, run
from cluster.simulate.workloads import WORKLOADS

REPORT_SEEDS = (1, 2, 3)
RESAMPLED = 10_000


def table(runs: list[Run]) -> str:
    """Return means over seeds as Markdown, with their intervals of what is missed and what it takes."""
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
            f"| {workload} | {POLICIES[kind]} | {spread([100 * one.numbers['violations'] for one in of_group], '.2f')}"
            f" | {100 * mean['ttft_met']:.2f} | {100 * mean['tpot_met']:.2f} | {mean['good_tokens_per_s']:,.0f}"
            f" | {spread([one.numbers['gpu_hours'] for one in of_group], '.1f')} | {mean['usd']:.2f}"
            f" | {mean['queue_p99_s']:.2f} | {mean['starting_minutes']:.0f} |"
        )
    return "\n".join(lines)


def spread(values: Sequence[float], form: str) -> str:
    """Return a mean as text, and its 95 % interval where there are several values: that of the means of `RESAMPLED` draws of them.

    That is Efron's percentile bootstrap (1979), as what is missed is far from normally distributed.
    """
    mean = format(fmean(values), form)
    if len(values) == 1:
        return mean
    drawn = np.random.default_rng(0).choice(values, (RESAMPLED, len(values))).mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return f"{mean} ({low:{form}} to {high:{form}})"


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
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["routing"]:
        from cluster.simulate.routing import report

        report.main(arguments[1:])
        return
    parser = argparse.ArgumentParser(prog="python -m cluster.simulate", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)}; all but the day by default")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(REPORT_SEEDS))
    parser.add_argument("--trace", help="the file of a published trace, in place of a workload")
    parser.add_argument("--rate", type=float, default=1.0, help="how much faster to play the trace")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the requests of a synthetic workload")
    parser.add_argument("--startup-s", type=float, default=90.0)
    parser.add_argument("--dt", type=float, default=1.0, help="the simulation's step in seconds")
    parser.add_argument("--tune", action="store_true", help="search parameters, and write them to tuned.json")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("simulation"))
    given = parser.parse_args(arguments)
    if unknown := set(given.workloads) - set(WORKLOADS):
        parser.error(f"no such workload: {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}")
    names = given.workloads or [name for name in WORKLOADS if name != "diurnal"]
    tuned = tuning.read()
    if given.tune:
        with ProcessPoolExecutor(given.processes) as pool:
            for name in names:
                tuned = [row for row in tuned if row["workload"] != name or row["policy"] not in given.policies]
                tuned += tuning.tune(name, given.policies, lambda jobs: _progress(pool.map(run, jobs), len(jobs)))
                tuning.write(tuned)
        return
    jobs = [
        Job(
            Path(given.trace).stem if given.trace else name,
            kind,
            _scaled(tuning.choose(tuned, Path(given.trace).stem if given.trace else name)[kind], given.scale),
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
    from cluster.simulate.plots import plot

    plot(runs, tuned, POLICIES, given.out)
    print(written)


def _scaled(parameters: Parameters, scale: float) -> Parameters:
    return {**parameters, "count": max(1, round(parameters["count"] * scale))} if "count" in parameters else parameters


if __name__ == "__main__":
    main()
