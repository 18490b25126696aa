"""The picture of a soak: what each process holds over time, and when one was killed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D

from cluster.bench.growth import DISK, MEASURES, Series

SHOWN = ("ingress", "LLM replica", "engine", "UI", "HAProxy", "Serve controller", "Ray GCS", "raylet", "Ray agent")
"""The roles that have a colour of their own; all others are grey."""
KILLED: dict[str, Any] = {"ingress": "--", "LLM replica": ":"}


def plot(series: Sequence[Series], kills: Sequence[tuple[float, str]], path: Path) -> None:
    """Write a PNG with a panel for each measure. A line is a process or a folder; a vertical one is a kill."""
    colors = dict(zip(SHOWN, plt.get_cmap("tab10").colors, strict=False))  # type: ignore[attr-defined]
    figure, axes = plt.subplots(4, 2, figsize=(11, 11), sharex=True)
    for axis, measure in zip(axes.flat, (*MEASURES, DISK), strict=False):
        for one in series:
            if one.measure == measure:
                label = one.role if measure == DISK else None
                color = None if measure == DISK else colors.get(one.role, "0.75")
                axis.plot([t / 60 for t in one.times], one.values, linewidth=0.9, color=color, label=label)
        for at_s, part in kills:
            axis.axvline(at_s / 60, color="0.5", linewidth=0.6, linestyle=KILLED[part])
        unit = "MiB" if measure == DISK else MEASURES[measure]
        axis.set_title(measure + (f" ({unit})" if unit else ""), fontsize=10)
        if measure == "memory":
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes.flat[len(MEASURES)].legend(frameon=False, fontsize=8)
    legend = axes.flat[-1]
    legend.axis("off")
    handles = [Line2D([], [], color=color, label=name) for name, color in colors.items()]
    handles.append(Line2D([], [], color="0.75", label="other processes of Ray and Serve"))
    handles += [Line2D([], [], color="0.5", linestyle=style, label=f"{part} killed") for part, style in KILLED.items()]
    legend.legend(handles=handles, frameon=False, fontsize=9, ncols=2, loc="center")
    for axis in axes[-1]:
        axis.set_xlabel("minutes")
    axes[-2][1].tick_params(labelbottom=True)
    figure.tight_layout()
    figure.savefig(path, dpi=62)
    plt.close(figure)
