"""What an application holds over time, and whether it grows: memory, descriptors, threads, tasks, series, states, files."""

import contextlib
import json
import os
import statistics
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from cluster.bench.stack import Stack, command_line, is_engine
from deployments.settings import ROOT

MIB = 2**20
ROLES = {
    "ServeReplica:default:Ingress": "ingress",
    "ServeReplica:default:LLM": "LLM replica",
    "ServeReplica:default:UI": "UI",
    "haproxy -": "HAProxy",
    "ServeController": "Serve controller",
    "HAProxyManager": "HAProxy manager",
    "ProxyActor": "Serve proxy",
    "gcs_server": "Ray GCS",
    "raylet/raylet": "raylet",
    "DashboardAgent": "Ray agent",
    "RuntimeEnvAgent": "Ray runtime agent",
    "ray-dashboard-": "Ray dashboard modules",
    "dashboard/dashboard.py": "Ray dashboard",
    "log_monitor.py": "Ray log monitor",
    "monitor.py": "Ray monitor",
    "deployments.launch.driver": "serve run",
    "deployments.launch": "launcher",
}
"""Part of a command line -> what the process is. The first one counts."""
MEASURES = {"memory": "MiB", "descriptors": "", "threads": "", "tasks": "", "series": "", "states": ""}
"""What is measured of a process, and its unit. Memory is what would be free without the process (USS)."""
DISK = "disk"
LIMITS = {"memory": 80.0, "descriptors": 40.0, "threads": 6.0, "tasks": 60.0, "series": 60.0, "states": 12.0, DISK: 200.0}
"""By how much each may grow in an hour: of a process, and of a folder in MiB.

An engine's memory still settles then. Ray's log monitor keeps the files of ended processes open, 200 at most: two for each replica
that was killed. Tasks and states come and go with requests. Logs are rotated, but not within the first hour.
"""
SETTLED_S, JUDGED_S = 600.0, 900.0
"""A process has settled so long after its start, and its growth is judged over at least so long after that."""
PROBE_S = 20.0


@dataclass(frozen=True)
class Series:
    """A measure of one process (or folder) over time: seconds since the beginning, and values."""

    role: str
    pid: int
    measure: str
    times: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def settled(self) -> tuple[list[float], list[float]]:
        """Return the times and values from `SETTLED_S` after the first one on."""
        pairs = [(t, v) for t, v in zip(self.times, self.values, strict=True) if t - self.times[0] >= SETTLED_S]
        return [t for t, _ in pairs], [v for _, v in pairs]

    @property
    def per_hour(self) -> float | None:
        """Its growth in an hour: the median of the slopes between all pairs (Theil-Sen). None where it was seen for too short."""
        times, values = self.settled()
        if not times or times[-1] - times[0] < JUDGED_S:
            return None
        slopes = [
            (values[j] - values[i]) / (times[j] - times[i]) for i in range(len(times)) for j in range(i) if times[j] != times[i]
        ]
        return 3600 * statistics.median(slopes)

    @property
    def grows(self) -> bool:
        """Whether it grows by more than `LIMITS` allows."""
        return (slope := self.per_hour) is not None and slope > LIMITS[self.measure]


def role(process: psutil.Process) -> str:
    """Return what a process of an application is."""
    words = command_line(process)
    return "engine" if is_engine(process) else next((name for part, name in ROLES.items() if part in words), "others")


class Watch:
    """Samples of a running application. `folders` are those that it and its libraries write into."""

    def __init__(self, stack: Stack, folders: Sequence[Path]) -> None:
        self._stack, self._folders = stack, folders
        self._began = time.monotonic()
        self._series: dict[tuple[str, int, str], Series] = {}

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    @property
    def series(self) -> list[Series]:
        """All that was measured."""
        return list(self._series.values())

    def sample(self) -> None:
        """Measure all processes and folders once."""
        for process in self._stack.processes():
            with contextlib.suppress(psutil.Error):
                kind = role(process)
                self._add(kind, process.pid, "memory", process.memory_full_info().uss / MIB)
                self._add(kind, process.pid, "descriptors", process.num_fds())
                self._add(kind, process.pid, "threads", process.num_threads())
        for kind, pid, text in self._exposed():
            lines = [line for line in text.splitlines() if line and not line.startswith("#")]
            self._add(kind, pid, "series", len(lines))
            for line in lines:
                if line.startswith("satori_asyncio_tasks "):
                    self._add(kind, pid, "tasks", float(line.split()[1]))
        if (state := _json(self._stack.url + "/ready")) is not None:
            self._add("ingress", _number(state["ingress"]["id"]), "states", state["ingress"]["states"])
        for folder in self._folders:
            self._add(str(folder).removeprefix(f"{ROOT}/"), 0, DISK, size(folder) / MIB)

    def _exposed(self) -> Iterator[tuple[str, int, str]]:
        """Give each replica's role, number and metrics."""
        names = {"Ingress": "ingress", "LLM": "LLM replica", "ServeController": "Serve controller"}
        for target in _json(self._stack.url + "/metrics/targets") or ():
            labels = target["labels"]
            if (text := _get(f"http://{target['targets'][0]}/metrics")) is not None:
                yield names.get(labels["deployment"], labels["deployment"]), _number(labels["replica"]), text

    def _add(self, kind: str, pid: int, measure: str, value: float) -> None:
        series = self._series.setdefault((kind, pid, measure), Series(kind, pid, measure))
        series.times.append(self.seconds)
        series.values.append(value)


def _number(replica: str) -> int:
    """Return a number for a replica, which is not its process's id."""
    return int.from_bytes(replica.encode()[:7])


def _get(url: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=PROBE_S) as response:
            return str(response.read().decode())
    except (urllib.error.URLError, OSError):
        return None


def _json(url: str) -> Any:
    return None if (text := _get(url)) is None else json.loads(text)


def size(folder: Path) -> int:
    """Return the bytes that the files below a folder take on the disk."""
    total = 0
    for path, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += Path(path, name).lstat().st_blocks * 512
    return total


def longest(series: Iterable[Series]) -> dict[tuple[str, str], Series]:
    """Return for each role and measure the series of the process that was seen longest."""
    found: dict[tuple[str, str], Series] = {}
    for one in series:
        key = one.role, one.measure
        if key not in found or one.times[-1] - one.times[0] > found[key].times[-1] - found[key].times[0]:
            found[key] = one
    return found


def table(series: Sequence[Series]) -> str:
    """Return a table: for each role, its processes, and each measure of the one that was seen longest: first, last, slope."""
    pids: dict[str, set[int]] = defaultdict(set)
    for one in series:
        if one.measure in ("memory", DISK):
            pids[one.role].add(one.pid)
    lasting = longest(series)
    lines = [
        "| of | processes | " + " | ".join(f"{name}{unit and ', '}{unit}" for name, unit in MEASURES.items()) + " | disk, MiB |"
    ]
    lines.append("|---" * (len(MEASURES) + 3) + "|")
    for of in sorted(pids):
        cells = [_cell(lasting.get((of, measure))) for measure in (*MEASURES, DISK)]
        lines.append(f"| {of} | {len(pids[of])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(series: Series | None) -> str:
    if series is None:
        return ""
    slope = series.per_hour
    return f"{series.values[0]:.0f} → {series.values[-1]:.0f}" + ("" if slope is None else f" ({round(slope, 1) + 0.0:+.1f}/h)")
