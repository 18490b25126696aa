"""The CPU of an ingress beside that of bare vLLM's API server: for a streamed token, and for a request.

Both servers stand before one scripted engine (`cluster.bench.ingress_parts`), which sends each stream a token a step, so no engine
takes part of their time. In each round each server has a turn under the same load: streams of one token, then of `--tokens`. CPU is
the process's own, user and system (`time.process_time` of the server). A request costs what a stream of one token costs; a token's
marginal cost is the rest, divided by the other tokens.

    python -m cluster.bench.ingress [--rounds 5] [--clients 64] [--tokens 192] [--requests 128] [--step 0.024]
        [--servers bare ours ...] [--json FILE] [key=value ...]

Beside `bare` and `ours`, `queued` is ours with `ingress.direct_streams=false`. With `--idle N` each server instead holds N streams
that wait for their first token, and the bench prints the memory of one.
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import uvloop

from cluster.bench import load, stack
from cluster.bench.pairs import order, spread
from deployments.host.signals import interrupt_by_signals
from deployments.settings import ROOT

SERVERS = {"bare": ["bare"], "ours": ["ours"], "queued": ["ours", "ingress.direct_streams=false"]}
READY_S = 180.0
SHORT = 4
"""One-token streams for each long one: they are short."""
PARTS = "cluster.bench.ingress_parts"
COLUMNS = ("CPU µs/request", "CPU µs/token", "marginal CPU µs/token", "TTFT p50 ms", "ITL p50 ms", "ITL p99 ms", "chunks/token")
RATIOS = COLUMNS[:3]
NEVER_S = 86400.0
WARM = 100
BUSY_S = 0.05
"""A server that uses more CPU in a second is still at work."""

Figures = dict[str, float]


def options_of(words: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=192, help="tokens of each reply, at least 2")
    parser.add_argument("--requests", type=int, default=128, help="long streams of a turn")
    parser.add_argument("--step", type=float, default=0.024, help="seconds of an engine step")
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=["bare", "ours"])
    parser.add_argument("--idle", type=int, help="measure the memory of so many waiting streams instead")
    parser.add_argument("--json", type=Path, help="write all figures to this file, too")
    parser.add_argument("arguments", nargs="*", help="settings, key=value")
    options = parser.parse_intermixed_args(words)
    if options.tokens < 2:
        parser.error(f"argument --tokens: {options.tokens}: allowed: 2 and more")
    if strange := [word for word in options.arguments if "=" not in word]:
        parser.error(f"{strange[0]!r}: allowed: key=value")
    return options


class Server:
    """A running API server: its process, and the port that it answers on."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = process, port

    def cpu_s(self) -> float:
        """Return the CPU seconds that the process has used, as its own `time.process_time` tells them (clock_getcpuclockid(3))."""
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def rss_bytes(self) -> int:
        """Return the process's resident memory."""
        return int(psutil.Process(self.process.pid).memory_info().rss)


@contextlib.contextmanager
def running(options: argparse.Namespace) -> Iterator[dict[str, Server]]:
    """Run the engine and the servers, and end them afterwards."""
    settings = ["preset=nano-cpu", *options.arguments]
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "WARNING", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ended:

        def start(*words: object, listens: Sequence[int] = ()) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", PARTS, *map(str, words)]
            # A session of its own: Linux shares the CPU between sessions.
            process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, pass_fds=listens)
            ended.callback(process.wait)
            ended.callback(process.kill)
            return process

        start("engine", folder, NEVER_S if options.idle else options.step)
        servers = {}
        for name in options.servers:
            kind, *more = SERVERS[name]
            with socket.create_server(("127.0.0.1", 0), backlog=4096) as listening:
                number = listening.fileno()
                process = start(kind, folder, number, *settings, *more, listens=[number])
                servers[name] = Server(process, listening.getsockname()[1])
        for name, server in servers.items():
            until_ready(name, server)
        yield servers


def until_ready(name: str, server: Server) -> None:
    """Wait until a server answers. Raises RuntimeError when it has ended, or takes too long."""
    ends = time.monotonic() + READY_S
    while not stack.answers(f"http://127.0.0.1:{server.port}/v1/models"):
        if server.process.poll() is not None or time.monotonic() > ends:
            raise RuntimeError(f"{name} does not answer (exit status {server.process.poll()})")
        time.sleep(0.2)


def turn(server: Server, options: argparse.Namespace, seed: int) -> Figures:
    """Return the figures of one server under the load: first of one-token streams, then of long ones."""
    requests = options.requests
    before = server.cpu_s()
    short = asked(server, options.clients, SHORT * requests, 1, seed)
    between = server.cpu_s()
    long = asked(server, options.clients, requests, options.tokens, seed + 1)
    after = server.cpu_s()
    of_request, of_tokens = (between - before) / (SHORT * requests), after - between
    values = (
        of_request * 1e6,
        of_tokens / long.tokens * 1e6,
        (of_tokens - requests * of_request) / (long.tokens - requests) * 1e6,
        statistics.median(short.ttft) * 1e3,
        load.percentile(long.itl, 50) * 1e3,
        load.percentile(long.itl, 99) * 1e3,
        long.chunks / long.tokens,
    )
    return dict(zip(COLUMNS, values, strict=True))


def asked(server: Server, clients: int, requests: int, tokens: int, seed: int) -> load.Sample:
    """Return what clients saw of so many streams."""
    return uvloop.run(load.run("127.0.0.1", server.port, "nano", clients, requests, tokens, seed))


def rounds_of(servers: Mapping[str, Server], options: argparse.Namespace) -> dict[str, list[Figures]]:
    """Return each server's figures of all rounds; before those, each has its turn once, unmeasured."""
    figures: dict[str, list[Figures]] = {name: [] for name in servers}
    for server in servers.values():
        asked(server, options.clients, options.clients, 2, 0)
    for number in range(options.rounds):
        for name in order(number, list(servers)):
            figures[name].append(turn(servers[name], options, 1 + 2 * number))
    return figures


async def waiting_streams(server: Server, count: int) -> float:
    """Return the bytes that a server takes for each of so many streams that wait for their first token."""
    message = load.message("127.0.0.1", server.port, "nano", "1 + 1 = ?", 64)
    writers = await _opened(server, message, WARM)
    before = server.rss_bytes()
    writers += await _opened(server, message, count)
    taken = server.rss_bytes() - before
    for writer in writers:
        writer.close()
    return taken / count


async def _opened(server: Server, message: bytes, count: int) -> list[asyncio.StreamWriter]:
    """Open streams, and wait until the server rests."""
    writers = []
    for _ in range(count):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(message)
        writers.append(writer)
    used = server.cpu_s()
    await asyncio.sleep(1)
    while (now := server.cpu_s()) - used > BUSY_S:
        used = now
        await asyncio.sleep(1)
    return writers


def ratios(figures: Mapping[str, list[Figures]], base: str, name: str, column: str) -> list[float]:
    """Return a server's ratios to the base, one of each round."""
    return [ours[column] / theirs[column] for ours, theirs in zip(figures[name], figures[base], strict=True)]


def table(figures: Mapping[str, list[Figures]]) -> str:
    """Return the medians of all figures, and those of the ratios to the first server with their ranges, as Markdown."""
    base, *others = figures
    lines = [f"| server | {' | '.join(COLUMNS)} |", "|" + "---|" * (len(COLUMNS) + 1)]
    for name, rows in figures.items():
        forms = [".2f" if "/token" in column and "CPU" not in column else ".1f" for column in COLUMNS]
        cells = [spread([row[column] for row in rows], form) for column, form in zip(COLUMNS, forms, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for name in others:
        cells = [spread(ratios(figures, base, name, column), ".2f") for column in RATIOS]
        lines.append(f"| {name} of {base} | {' | '.join(cells)} |" + " |" * (len(COLUMNS) - len(RATIOS)))
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """Run the rounds and print the table."""
    options = options_of(words)
    interrupt_by_signals()
    names = ("clients", "tokens", "requests", "step", "rounds", "arguments")
    result: dict[str, Any] = {"machine": stack.machine(), "options": {name: getattr(options, name) for name in names}}
    with running(options) as servers:
        if options.idle:
            result["bytes"] = {name: asyncio.run(waiting_streams(server, options.idle)) for name, server in servers.items()}
        else:
            result["rounds"] = rounds_of(servers, options)
    print(f"{result['machine']}\n")
    if options.idle:
        print("\n".join(f"{name}: {size / 1024:.1f} KiB a waiting stream" for name, size in result["bytes"].items()))
    else:
        print(f"{options.clients} clients, {options.tokens} tokens, {options.step * 1000:g} ms a step\n\n{table(result['rounds'])}")
    if options.json:
        options.json.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
