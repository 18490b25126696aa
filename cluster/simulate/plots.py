"""Plots of simulated runs, as PNG: the cost and missed SLOs of policies, and replicas over time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from cluster.simulate.jobs import Run

COLORS = {
    "ours": "#d62728",
    "requests": "#1f77b4",
    "requests_99": "#17becf",
    "queue": "#9467bd",
    "kv_cache": "#8c564b",
    "static": "#7f7f7f",
    "oracle": "#2ca02c",
}


def plot(runs: Sequence["Run"], tuned: Sequence[Mapping[str, Any]], names: Mapping[str, str], out: Path) -> None:
    """Write `cost.png`, and a plot over time for each workload."""
    workloads = list(dict.fromkeys(run.job.workload for run in runs))
    _cost(runs, tuned, names, workloads, out / "cost.png")
    for workload in workloads:
        _timeline([run for run in runs if run.job.workload == workload], names, out / f"{workload.replace(' ', '-')}.png")


def _cost(
    runs: Sequence["Run"], tuned: Sequence[Mapping[str, Any]], names: Mapping[str, str], workloads: Sequence[str], path: Path
) -> None:
    """Draw GPU-hours against missed SLOs. Small points are other parameters of the request count, on the tuning seeds."""
    columns = min(3, len(workloads))
    lines = -(-len(workloads) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.6 * columns, 3.6 * lines), squeeze=False)
    for axis, workload in zip(axes.flat, workloads, strict=False):
        others = [row for row in tuned if row["workload"] == workload and row["policy"] == "requests"]
        hours, missed = [row["gpu_hours"] for row in others], [100 * row["violations"] for row in others]
        axis.scatter(hours, missed, s=8, color=COLORS["requests"], alpha=0.35, label="request count, all tried (seeds 101 to 103)")
        for kind, name in names.items():
            of_kind = [run for run in runs if (run.job.workload, run.job.policy) == (workload, kind)]
            if of_kind:
                cost = fmean(run.numbers["gpu_hours"] for run in of_kind)
                share = 100 * fmean(run.numbers["violations"] for run in of_kind)
                axis.scatter([cost], [share], s=70, color=COLORS[kind], edgecolor="black", label=name, zorder=3)
        axis.set_title(workload)
        axis.set_yscale("symlog", linthresh=0.1)
        axis.set_ylim(-0.02, 100)
        axis.set_yticks([0, 0.1, 1, 10, 100], ["0", "0.1", "1", "10", "100"])
        axis.set_xlabel("GPU-hours")
        axis.set_ylabel("requests that missed an SLO (%)")
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(workloads) :]:
        axis.axis("off")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0.12 if lines == 1 else 0.07, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _timeline(runs: Sequence["Run"], names: Mapping[str, str], path: Path) -> None:
    """Draw the arrivals and the replicas of three policies over time, for the first seed."""
    runs = [run for run in runs if run.job.seed == runs[0].job.seed and run.job.policy in ("ours", "requests_99", "oracle")]
    figure, (above, below) = plt.subplots(2, 1, figsize=(10, 5), sharex=True, height_ratios=[1, 2])
    hours = [row[0] / 3600 for row in runs[0].timeline] if runs else []
    above.plot(hours, [row[1] for row in runs[0].timeline] if runs else [], color="black", linewidth=0.6)
    above.set_ylabel("arrivals / s")
    for run in runs:
        missed, hours_used = 100 * run.numbers["violations"], run.numbers["gpu_hours"]
        below.step(
            [row[0] / 3600 for row in run.timeline],
            [row[2] for row in run.timeline],
            where="post",
            color=COLORS[run.job.policy],
            label=f"{names[run.job.policy]}: {missed:.2f} % missed, {hours_used:.1f} GPU-hours",
        )
    below.set_ylabel("replicas wanted")
    below.set_xlabel("hours")
    below.set_ylim(bottom=0)
    below.legend(frameon=False, fontsize=9)
    for axis in (above, below):
        axis.grid(alpha=0.3)
    figure.suptitle(runs[0].job.workload if runs else "")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
