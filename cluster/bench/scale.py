"""Throughput of one ingress and its proxy, and the cost of Ray and Serve with many LLM replicas, which have no engine.

The application serves scripted tokens (`cluster.bench.scripted`) from growing numbers of replicas. For each number the program
prints the seconds until all were up, what the processes use when idle, and the requests and tokens a second under streaming chats,
with the CPU of each kind of process. CPU is in seconds per 1,000 tokens; of idle processes, a share of one core.

    python -m cluster.bench.scale [--replicas 1 10 60] [--clients 64 256] [--step 0.024] [--connections 500]
"""

import argparse
import contextlib
import http.client
import json
import sys
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import uvloop

from cluster.bench import load, stack
from cluster.bench.load import percentile
from cluster.bench.stack import Server, Stack, cpu_seconds
from deployments import settings as settings_module
from deployments.host.environment import SERVING
from deployments.host.run import RUN
from deployments.host.signals import interrupt_by_signals
from deployments.settings import ROOT

KINDS = {
    "ingress": "ServeReplica:default:Ingress",
    "llm": "ServeReplica:default:LLM",
    "controller": "ServeController",
    "haproxy": "haproxy",
    "gcs": "gcs_server",
    "raylet": "raylet/raylet",
}
MODEL = "nano"
UP_S = 600.0
IDLE_S = 10.0


def scripted(replicas: int, step_s: float) -> Server:
    """Return the application with that many scripted replicas; it is ready once all of them run."""
    words = [f"llm.num_replicas={replicas}", "llm.num_cpus=0.001", "ingress.num_cpus=0.01", "ui.enabled=false"]
    words += ["preset=nano-cpu", f"autoscaling.step_s={step_s}", "engine.max_num_queued_reqs=100000"]
    words += ["engine.max_num_queued_tokens=100000000"]
    command = [str(Path(sys.executable).with_name("serve")), "run", "cluster.bench.scripted:application", *words]
    settings = settings_module.load(dict(word.split("=", 1) for word in words))
    own = SERVING | {"RAY_ADDRESS": "local", RUN: uuid.uuid4().hex, "PYTHONPATH": str(ROOT)}
    url = f"http://127.0.0.1:{settings.http.port}/status"
    return Server("scale", settings, (command,), stack.environment(0) | own, lambda: _run(url) == replicas, ready_s=UP_S)


def _run(url: str) -> int:
    """Return how many replicas run, by `/status`; 0 while it does not answer."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return Counter(replica["state"] for replica in json.load(answer)["replicas"])["RUNNING"]
    except (OSError, ValueError, http.client.HTTPException):
        return 0


def processes_of(application: Stack) -> dict[str, list[psutil.Process]]:
    """Return the application's processes by kind."""
    found = [(process, stack.command_line(process)) for process in application.processes()]
    return {kind: [process for process, words in found if part in words] for kind, part in KINDS.items()}


@contextlib.contextmanager
def spent(processes: dict[str, list[psutil.Process]]) -> Iterator[dict[str, float]]:
    """Yield a mapping, filled when the block ends: the CPU seconds that each kind of process used in the block."""
    before = {kind: cpu_seconds(found) for kind, found in processes.items()}
    used: dict[str, float] = {}
    yield used
    used |= {kind: cpu_seconds(found) - before[kind] for kind, found in processes.items()}


def row(cells: list[object]) -> None:
    """Print a row of a Markdown table."""
    print("| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |", flush=True)


def heading(cells: list[str]) -> None:
    """Print the heading of a Markdown table."""
    print("\n| " + " | ".join(cells) + " |\n|" + "---|" * len(cells), flush=True)


def idle(replicas: int, up_s: float, processes: dict[str, list[psutil.Process]]) -> list[object]:
    """Return what an idle application uses: shares of a core, and MB."""
    with spent(processes) as used:
        time.sleep(IDLE_S)
    memory = {kind: sum(process.memory_info().rss for process in found) / 1e6 for kind, found in processes.items()}
    shares: list[object] = [used[kind] / IDLE_S for kind in KINDS]
    llm = memory["llm"] / max(1, len(processes["llm"]))
    return [replicas, round(up_s), *shares, round(memory["controller"]), round(memory["gcs"]), round(llm)]


def loaded(replicas: int, clients: int, tokens: int, requests: int, processes: dict[str, list[psutil.Process]]) -> list[object]:
    """Return the throughput and cost of streams of `tokens` tokens over `clients` connections."""
    uvloop.run(load.run("127.0.0.1", 8000, MODEL, clients, clients, tokens, 1))  # warm
    with spent(processes) as used:
        sample = uvloop.run(load.run("127.0.0.1", 8000, MODEL, clients, requests, tokens, 2))
    rates: list[object] = [round(requests / sample.seconds), round(sample.tokens / sample.seconds)]
    costs: list[object] = [used[kind] / sample.tokens * 1e3 for kind in ("ingress", "haproxy", "llm", "controller")]
    busy = used["ingress"] / sample.seconds
    ttft = percentile(sample.ttft, 50) * 1e3
    return [replicas, clients, tokens, *rates, *costs, busy, round(ttft)]


def connections(count: int, processes: dict[str, list[psutil.Process]]) -> list[object]:
    """Return the memory of that many streams at once, of a few slow tokens each, in kB a stream, and the seconds they took."""
    before = {kind: processes[kind][0].memory_info().rss for kind in ("ingress", "haproxy")}
    sample = uvloop.run(load.run("127.0.0.1", 8000, MODEL, count, count, 32, 3))
    grown: list[object] = [(processes[kind][0].memory_info().rss - before[kind]) / count / 1e3 for kind in before]
    return [count, *grown, sample.seconds, percentile(sample.ttft, 95)]


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
    interrupt_by_signals()
    print(stack.machine())
    quiet: list[list[object]] = []
    busy: list[list[object]] = []
    open_streams: list[list[object]] = []
    for replicas in options.replicas:
        began = time.monotonic()
        with stack.running(scripted(replicas, options.step)) as application:
            up_s = time.monotonic() - began
            time.sleep(IDLE_S)
            processes = processes_of(application)
            quiet.append(idle(replicas, up_s, processes))
            print(quiet[-1], file=sys.stderr, flush=True)
            for clients in options.clients:
                for tokens in (1, 128):
                    requests = max(2 * clients, 1000 if tokens == 1 else 300)
                    busy.append([*loaded(replicas, clients, tokens, requests, processes)])
                    print(busy[-1], file=sys.stderr, flush=True)
            open_streams.append([replicas, *connections(options.connections, processes)])
            print(open_streams[-1], file=sys.stderr, flush=True)
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
