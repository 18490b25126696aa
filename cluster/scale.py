"""What an ingress and a proxy can do, and what the platform costs beside many LLM replicas that have no engine.

Serves scripted tokens (`cluster.scripted`) from growing numbers of replicas, and prints for each number: how long it took until all
were up, what the processes do while nothing is asked for, and, under streaming chats, requests and tokens a second and the CPU
that each kind of process spends. CPU is in seconds per 1,000 tokens; of idle processes, a share of one core.

    python -m cluster.scale [--replicas 1 10 60] [--clients 64 256] [--step 0.024] [--connections 500]
"""

import argparse
import contextlib
import http.client
import json
import os
import platform
import subprocess
import sys
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import psutil
import uvloop

from cluster import bench, load
from deployments.draining import RUN
from deployments.environment import SERVING
from deployments.settings import ROOT

KINDS = {
    "ingress": "ServeReplica:default:Ingress",
    "llm": "ServeReplica:default:LLM",
    "controller": "ServeController",
    "haproxy": "haproxy",
    "gcs": "gcs_server",
    "raylet": "raylet/raylet",
}
URL = "http://127.0.0.1:8000"
MODEL = "nano"
UP_S = 600.0
IDLE_S = 10.0


class Stack:
    """A running application with scripted replicas."""

    def __init__(self, replicas: int, step_s: float) -> None:
        self._environment = dict(os.environ) | SERVING | {"RAY_ADDRESS": "local", RUN: uuid.uuid4().hex, "PYTHONPATH": str(ROOT)}
        words = [f"llm.num_replicas={replicas}", "llm.num_cpus=0.001", "ingress.num_cpus=0.01", "ui.enabled=false"]
        words += ["preset=nano-cpu", f"autoscaling.step_s={step_s}", "engine.max_num_queued_reqs=100000"]
        words += ["engine.max_num_queued_tokens=100000000"]
        log = ROOT / ".run" / "scale.log"
        log.parent.mkdir(exist_ok=True)
        command = [str(Path(sys.executable).with_name("serve")), "run", "cluster.scripted:application", *words]
        self._began = time.monotonic()
        with log.open("w") as out:
            self._process = subprocess.Popen(command, cwd=ROOT, env=self._environment, stdout=out, stderr=subprocess.STDOUT)
        self._replicas = replicas

    def wait_up(self) -> float:
        """Return the seconds until all replicas ran. Ends the program when they do not."""
        while True:
            if self._process.poll() is not None or time.monotonic() - self._began > UP_S:
                sys.exit("the application did not start; see .run/scale.log")
            with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
                with urllib.request.urlopen(URL + "/status", timeout=10) as answer:
                    states = Counter(replica["state"] for replica in json.load(answer)["replicas"])
                if states["RUNNING"] == self._replicas:
                    return time.monotonic() - self._began
            time.sleep(0.5)

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Return the application's processes by kind."""
        found: dict[str, list[psutil.Process]] = {kind: [] for kind in KINDS}
        descendants = {process.pid for process in psutil.Process(self._process.pid).children(recursive=True)}
        for process in psutil.process_iter():
            if process.pid in descendants or bench.mark(process) == self._environment[RUN]:
                with contextlib.suppress(psutil.Error):
                    words = " ".join(process.cmdline())
                    for kind, part in KINDS.items():
                        if part in words:
                            found[kind].append(process)
        return found

    def stop(self) -> None:
        """End all its processes."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        bench.end(self._environment[RUN])


@contextlib.contextmanager
def spent(processes: dict[str, list[psutil.Process]]) -> Iterator[dict[str, float]]:
    """Yield what will be filled with the CPU seconds that each kind of process spent in the block."""
    before = {kind: bench.cpu_seconds(found) for kind, found in processes.items()}
    used: dict[str, float] = {}
    yield used
    used |= {kind: bench.cpu_seconds(found) - before[kind] for kind, found in processes.items()}


def row(cells: list[object]) -> None:
    """Print a row of a Markdown table."""
    print("| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |", flush=True)


def heading(cells: list[str]) -> None:
    """Print the head of a Markdown table."""
    print("\n| " + " | ".join(cells) + " |\n|" + "---|" * len(cells), flush=True)


def idle(replicas: int, up_s: float, processes: dict[str, list[psutil.Process]]) -> list[object]:
    """Return what an application does that nobody uses: shares of a core, and MB."""
    with spent(processes) as used:
        time.sleep(IDLE_S)
    memory = {kind: sum(process.memory_info().rss for process in found) / 1e6 for kind, found in processes.items()}
    shares: list[object] = [used[kind] / IDLE_S for kind in KINDS]
    llm = memory["llm"] / max(1, len(processes["llm"]))
    return [replicas, round(up_s), *shares, round(memory["controller"]), round(memory["gcs"]), round(llm)]


def loaded(replicas: int, clients: int, tokens: int, requests: int, processes: dict[str, list[psutil.Process]]) -> list[object]:
    """Return what streams of `tokens` tokens over `clients` connections got and cost."""
    uvloop.run(load.run("127.0.0.1", 8000, MODEL, clients, clients, tokens, 1))  # warm
    with spent(processes) as used:
        sample = uvloop.run(load.run("127.0.0.1", 8000, MODEL, clients, requests, tokens, 2))
    rates: list[object] = [round(requests / sample.seconds), round(sample.tokens / sample.seconds)]
    costs: list[object] = [used[kind] / sample.tokens * 1e3 for kind in ("ingress", "haproxy", "llm", "controller")]
    busy = used["ingress"] / sample.seconds
    ttft = bench.percentile(sample.ttft, 50) * 1e3
    return [replicas, clients, tokens, *rates, *costs, busy, round(ttft)]


def connections(count: int, processes: dict[str, list[psutil.Process]]) -> list[object]:
    """Return what so many streams at once, of a few slow tokens, take of memory, in kB each, and how long they took, in s."""
    before = {kind: processes[kind][0].memory_info().rss for kind in ("ingress", "haproxy")}
    sample = uvloop.run(load.run("127.0.0.1", 8000, MODEL, count, count, 32, 3))
    grown: list[object] = [(processes[kind][0].memory_info().rss - before[kind]) / count / 1e3 for kind in before]
    return [count, *grown, sample.seconds, bench.percentile(sample.ttft, 95)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 10, 60])
    parser.add_argument("--clients", type=int, nargs="+", default=[64, 256])
    parser.add_argument(
        "--step", type=float, default=0.024, help="seconds of an engine step; 0.024 is of a 7B model on an RTX 4090"
    )
    parser.add_argument("--connections", type=int, default=500)
    options = parser.parse_args()
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {os.cpu_count()} cores, Python {platform.python_version()}, ray {version('ray')}")
    quiet: list[list[object]] = []
    busy: list[list[object]] = []
    open_streams: list[list[object]] = []
    for replicas in options.replicas:
        stack = Stack(replicas, options.step)
        try:
            up_s = stack.wait_up()
            time.sleep(IDLE_S)
            processes = stack.processes()
            quiet.append(idle(replicas, up_s, processes))
            print(quiet[-1], file=sys.stderr, flush=True)
            for clients in options.clients:
                for tokens in (1, 128):
                    requests = max(2 * clients, 1000 if tokens == 1 else 300)
                    busy.append([*loaded(replicas, clients, tokens, requests, processes)])
                    print(busy[-1], file=sys.stderr, flush=True)
            open_streams.append([replicas, *connections(options.connections, processes)])
            print(open_streams[-1], file=sys.stderr, flush=True)
        finally:
            stack.stop()
    memory = ["controller MB", "GCS MB", "MB a replica"]
    heading(["replicas", "all up, s", *(f"{kind}, idle" for kind in KINDS), *memory])
    for cells in quiet:
        row(cells)
    costs = ["ingress", "haproxy", "LLM", "controller"]
    heading(["replicas", "clients", "tokens", "requests/s", "tokens/s", *costs, "ingress' core", "TTFT p50, ms"])
    for cells in busy:
        row(cells)
    heading(["replicas", "streams at once", "kB each in the ingress", "in HAProxy", "s for all", "TTFT p95, s"])
    for cells in open_streams:
        row(cells)


if __name__ == "__main__":
    main()
