"""Turns of servers under the same load within seconds, and the ratios of their figures.

Two runs of the same server a few minutes apart differ by up to a fifth, since the machine changes. So two servers are up at once,
and one of them is paused (SIGSTOP) while the other one has its turn of some seconds. Two turns with the same requests, one of each
server, are a pair. The server that comes first changes with each pair, and only the ratios within pairs are compared.

Between pairs both servers run for a moment, so that no pause is much longer than a turn, and health checks see one slow answer.
Work in the background that falls due during a pause is done at the start of the next turn, in the second that is not measured.
"""

import contextlib
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import psutil
import uvloop

from cluster.bench import load
from cluster.bench.load import percentile
from cluster.bench.stack import PLATFORM, Stack, cpu_seconds

WARM_S, BETWEEN_S = 1.0, 1.0
"""Seconds of load at the start of a turn that are not measured, and seconds between pairs in which both servers run."""
Row = dict[str, float]
Beside = Mapping[str, Callable[[Stack], AbstractContextManager[object]]]
"""By the name of a server, what is open during its turns."""


@dataclass(frozen=True)
class Usage:
    """CPU seconds during a turn: of the server, by part (`stack.part_of`), of the load client, and of all else on the machine."""

    server: Mapping[str, float]
    client: float
    others: float

    def of(self, *parts: str) -> float:
        """Return the CPU seconds of these parts of the server; without any, of all of it."""
        return sum(seconds for part, seconds in self.server.items() if not parts or part in parts)


COLUMNS: dict[str, Callable[[load.Sample, Usage], float]] = {
    "tokens/s": lambda s, cpu: s.tokens / s.seconds,
    "chunks/s": lambda s, cpu: s.chunks / s.seconds,
    "TTFT p50 ms": lambda s, cpu: percentile(s.ttft, 50) * 1e3,
    "TTFT p95 ms": lambda s, cpu: percentile(s.ttft, 95) * 1e3,
    "ITL p50 ms": lambda s, cpu: percentile(s.itl, 50) * 1e3,
    "ITL p99 ms": lambda s, cpu: percentile(s.itl, 99) * 1e3,
    "CPU s/1k tok": lambda s, cpu: cpu.of() / s.tokens * 1e3,
    "without engine": lambda s, cpu: cpu.of(*PLATFORM) / s.tokens * 1e3,
    **{part: partial(lambda part, s, cpu: cpu.of(part) / s.tokens * 1e3, part) for part in PLATFORM},
    "CPU ms/request": lambda s, cpu: cpu.of(*PLATFORM) / len(s.ttft) * 1e3,
    "client CPU s/1k tok": lambda s, cpu: cpu.client / s.tokens * 1e3,
    "others' CPU cores": lambda s, cpu: cpu.others / s.seconds,
}
"""All figures of a turn. "Without engine" and each part of the platform are CPU seconds per 1,000 tokens. "CPU ms/request" is
without the engine, too; it says what a request costs where its answer is one token."""
RATIOS = ("tokens/s", "TTFT p50 ms", "TTFT p95 ms", "ITL p50 ms", "CPU s/1k tok", "without engine", "CPU ms/request")
"""The columns whose ratios are shown."""


@dataclass(frozen=True)
class Level:
    """A number of clients, each of which requests one answer of `tokens` tokens after another."""

    clients: int
    tokens: int

    def requests(self, tokens_s: float, seconds: float) -> int:
        """Return the number of answers that take about `seconds` at that speed: the same for each client, and at least one."""
        return self.clients * max(1, round(tokens_s * seconds / self.tokens / self.clients))


@dataclass(frozen=True)
class Turn:
    """The figures of a server's turn. Turns with the same pairing, round and level are compared with each other."""

    pairing: str
    round: int
    server: str
    level: Level
    row: Row


class Meter:
    """Puts servers under load, for about `turn_s` a turn. The first turn of a level finds out how many requests that takes."""

    def __init__(self, model: str, turn_s: float) -> None:
        self._model, self._turn_s = model, turn_s
        self._speeds: dict[Level, float] = {}

    def _load(self, stack: Stack, level: Level, requests: int, seed: int) -> load.Sample:
        host, _, port = stack.url.removeprefix("http://").partition(":")
        return uvloop.run(load.run(host, int(port), self._model, level.clients, requests, level.tokens, seed))

    def measure(self, stack: Stack, level: Level, seed: int) -> Row:
        """Return the row of a turn of the server; the same seed gives the same requests. Raises ConnectionError if one fails."""
        if (speed := self._speeds.get(level)) is None:
            sample = self._load(stack, level, max(8, 2 * level.clients), seed + 1)
            speed = self._speeds[level] = sample.tokens / sample.seconds
        self._load(stack, level, level.requests(speed, WARM_S), seed + 1)
        parts, client = stack.parts(), [psutil.Process()]

        def used() -> list[float]:
            return [*map(cpu_seconds, parts.values()), cpu_seconds(client), _machine_seconds()]

        before = used()
        sample = self._load(stack, level, level.requests(speed, self._turn_s), seed)
        *of_parts, of_client, of_all = (late - early for early, late in zip(before, used(), strict=True))
        usage = Usage(dict(zip(parts, of_parts, strict=True)), of_client, max(0.0, of_all - sum(of_parts) - of_client))
        return {name: column(sample, usage) for name, column in COLUMNS.items()}


def _machine_seconds() -> float:
    """Return the CPU seconds that all cores were busy, or taken by other guests of their host, since the machine started."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice  # guests are in user and nice already


def order(round_: int, servers: Sequence[str]) -> Sequence[str]:
    """Return the order of the servers' turns in a round: reversed in every second round."""
    return servers if round_ % 2 == 0 else servers[::-1]


def take_turns(
    meter: Meter,
    stacks: Mapping[str, Stack],
    levels: Sequence[Level],
    rounds: Iterable[int],
    pairing: str,
    beside: Beside,
) -> list[Turn]:
    """Return the turns of servers that are up at once: in each round one of each server at each level.

    All servers run again at the end, also where a turn fails.
    """
    turns = []
    try:
        for round_, level in itertools.product(rounds, levels):
            for stack in stacks.values():
                stack.pause()
            for name in order(round_, list(stacks)):
                stacks[name].resume()
                with beside.get(name, contextlib.nullcontext)(stacks[name]):
                    row = meter.measure(stacks[name], level, round_ * 1000 + level.clients)
                stacks[name].pause()
                turns.append(Turn(pairing, round_, name, level, row))
                report(turns[-1])
            for stack in stacks.values():
                stack.resume()
            time.sleep(BETWEEN_S)
    finally:
        for stack in stacks.values():
            stack.resume()
    return turns


def report(turn: Turn) -> None:
    """Print on standard error that a turn is over."""
    done = f"round {turn.round + 1}, {turn.level.clients} clients, {turn.level.tokens} tokens, {turn.server}:"
    print(done, f"{turn.row['tokens/s']:.0f} tokens/s", file=sys.stderr, flush=True)


def ratios(turns: Iterable[Turn], base: str, server: str, level: Level, column: str) -> list[float]:
    """Return the ratio of a server's figure to the base's in each of their pairs; NaN where the base's is 0."""
    figures = {(turn.pairing, turn.round, turn.server): turn.row[column] for turn in turns if turn.level == level}
    pairs = [(figure, figures[pairing, number, base]) for (pairing, number, name), figure in figures.items() if name == server]
    return [figure / of_base if of_base else math.nan for figure, of_base in pairs]


def spread(values: Sequence[float], form: str) -> str:
    """Return the median and the range of figures."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def ratio_table(turns: Sequence[Turn], base: str) -> str:
    """Return for each level and server the median of the ratios to the base, and the lowest and highest one, as Markdown."""
    lines = [f"| answer | clients | server | pairs | {' | '.join(RATIOS)} |", "|" + "---|" * (len(RATIOS) + 4)]
    for level, server in _levels_and_servers(turns):
        if server != base:
            found = {column: ratios(turns, base, server, level, column) for column in RATIOS}
            cells = [spread(all_, ".3f") for all_ in found.values()]
            count = len(found[RATIOS[0]])
            lines.append(f"| {level.tokens} | {level.clients} | {server} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def median_table(turns: Sequence[Turn]) -> str:
    """Return the medians of all figures over the rounds, as Markdown."""
    lines = [f"| answer | clients | server | {' | '.join(COLUMNS)} |", "|" + "---|" * (len(COLUMNS) + 3)]
    for level, server in _levels_and_servers(turns):
        rows = [turn.row for turn in turns if (turn.level, turn.server) == (level, server)]
        medians = {name: statistics.median(row[name] for row in rows) for name in COLUMNS}
        cells = [f"{value:.{0 if '/s' in name else 1 if name.endswith(' ms') else 3}f}" for name, value in medians.items()]
        lines.append(f"| {level.tokens} | {level.clients} | {server} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _levels_and_servers(turns: Iterable[Turn]) -> list[tuple[Level, str]]:
    """Return the levels in order, each with its servers in the order in which they came first."""
    found = dict.fromkeys((turn.level, turn.server) for turn in turns)
    names = list(dict.fromkeys(server for _, server in found))
    return sorted(found, key=lambda one: (one[0].tokens, one[0].clients, names.index(one[1])))
