"""How long the application takes to its first answer, beside bare vLLM's own server, and what it costs while nobody uses it.

Each round starts both servers, one after the other and in turn first, and ends each before the next one starts. The first answer is
a completion of one token, which a client asks for again and again until it gets it. When our application has settled, its
processes' CPU time is counted for a while without any request, and then their memory: PSS, in which memory that several processes
share is counted once.

    python -m cluster.bench.start [--rounds 5] [--idle 30] [--only ours] [--processes] [key=value ...]

The ratios are within rounds: median (lowest to highest). Nothing else may run meanwhile.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import psutil

from cluster.bench import pairs, peers, stack
from cluster.bench.pairs import spread
from cluster.bench.stack import Server, Stack
from deployments import settings as settings_module
from deployments.host.signals import interrupt_by_signals
from deployments.settings import ROOT

POLL_S = 0.05
KINDS = ("bare", "ours")


@dataclass(frozen=True)
class Idle:
    """What an idle server takes: cores of CPU, bytes of memory (PSS), processes."""

    cores: float
    memory_bytes: int
    processes: int


@dataclass(frozen=True)
class Start:
    """A server's start: seconds to the first answer, CPU seconds of all its processes until then, and what it takes afterwards."""

    first_answer_s: float
    cpu_s: float
    idle: Idle | None


def start(server: Server, idle_s: float, processes: bool) -> Start:
    """Start a server, measure, and end it. `processes` prints what each of its processes takes."""
    began = time.monotonic()
    with stack.running(replace(server, ready=partial(stack.completes, server.settings), poll_s=POLL_S)) as up:
        first_answer_s = time.monotonic() - began
        used = {process: stack.cpu_seconds([process]) for process in up.processes()}
        cpu_s = sum(used.values())
        if processes:
            for process, seconds in sorted(used.items(), key=lambda item: -item[1]):
                print(f"    {seconds:6.2f} s of CPU  {stack.command_line(process)[:110]}")
        idle = None
        if idle_s:
            up.settle()
            idle = watch(up, idle_s, processes)
    return Start(first_answer_s, cpu_s, idle)


def watch(up: Stack, seconds: float, processes: bool) -> Idle:
    """Return what a server takes, watched for some seconds."""
    before = {process: stack.cpu_seconds([process]) for process in up.processes()}
    began = time.monotonic()
    time.sleep(seconds)
    rows = []
    for process in up.processes():
        cores = (stack.cpu_seconds([process]) - before.get(process, 0.0)) / (time.monotonic() - began)
        with contextlib.suppress(psutil.Error):
            rows.append((cores, process.memory_full_info().pss, stack.command_line(process)))
    if processes:
        for cores, memory_bytes, command in sorted(rows, reverse=True):
            print(f"    {cores:7.2%} of a core {memory_bytes / 2**20:6.0f} MiB  {command[:110]}")
    return Idle(sum(row[0] for row in rows), sum(row[1] for row in rows), len(rows))


def options_of(words: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of a command line. Exits the program where one makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="starts of each server")
    parser.add_argument("--only", choices=KINDS, help="one server by itself")
    parser.add_argument("--idle", type=float, default=30.0, help="how many seconds ours is watched while idle; 0 for not at all")
    parser.add_argument("--processes", action="store_true", help="print what each process of ours takes")
    parser.add_argument("arguments", nargs="*", metavar="key=value", help="settings")
    options = parser.parse_intermixed_args(words)
    if options.rounds < 1:
        parser.error(f"argument --rounds: {options.rounds}: allowed: 1 and more")
    if options.idle < 0:
        parser.error(f"argument --idle: {options.idle:g}: allowed: 0 and more")
    if strange := [word for word in options.arguments if "=" not in word]:
        parser.error(f"{strange[0]!r}: allowed: key=value")
    return options


def table(starts: Mapping[str, Sequence[Start]]) -> str:
    """Return the figures of all rounds as lines: of each server, the ratios within rounds, and what the idle server took."""
    lines = []
    for name, found in starts.items():
        seconds, cpu_s = [one.first_answer_s for one in found], [one.cpu_s for one in found]
        lines.append(f"{name}: first answer after {spread(seconds, '.1f')} s, {spread(cpu_s, '.1f')} s of CPU")
    if starts.keys() >= set(KINDS):
        bare, ours = (starts[kind] for kind in KINDS)
        seconds = [after.first_answer_s / before.first_answer_s for before, after in zip(bare, ours, strict=True)]
        cpu_s = [after.cpu_s / before.cpu_s for before, after in zip(bare, ours, strict=True)]
        lines.append(f"ours / bare: first answer {spread(seconds, '.2f')}, CPU {spread(cpu_s, '.2f')}")
    for name, found in starts.items():
        if idle := [one.idle for one in found if one.idle is not None]:
            cores, memory = spread([one.cores for one in idle], ".1%"), spread([one.memory_bytes / 2**30 for one in idle], ".2f")
            lines.append(f"{name}, idle: {cores} of a core, {memory} GiB (PSS), {idle[-1].processes} processes")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """Run the rounds and print the figures."""
    options = options_of(words)
    interrupt_by_signals()
    settings = settings_module.load(dict(word.split("=", 1) for word in options.arguments))
    make = {"bare": lambda: peers.bare(settings), "ours": lambda: stack.ours("ours", settings, options.arguments)}
    servers = {name: make[name]() for name in ([options.only] if options.only else KINDS)}
    starts: dict[str, list[Start]] = {name: [] for name in servers}
    print(f"{stack.machine()}; {settings.served_model_name}\n", flush=True)
    for round_ in range(options.rounds):
        for name in pairs.order(round_, list(servers)):
            one = start(servers[name], options.idle if name == "ours" else 0.0, options.processes and name == "ours")
            print(f"  {name}: first answer after {one.first_answer_s:.1f} s, {one.cpu_s:.1f} s of CPU", flush=True)
            starts[name].append(one)
    print("\n" + table(starts))
    found = {name: [asdict(one) for one in each] for name, each in starts.items()}
    (ROOT / ".run" / "bench-start.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
