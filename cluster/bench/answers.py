"""Equality of answers: how often it is right, what it costs, and whether streams notice it.

    python -m cluster.bench.answers TABLE [--pairs 10] [--turn 4] [--streams 64] [--step 0.024]

TABLE has pairs of answers with the right verdict (tests/unit/deployments/reasoning/answers/pairs.tsv). First, the share of them
that this application and math-verify alone decide rightly, and the time of a comparison: of answers seen for the first time, and
again.

Then streams: an event loop writes a chunk to each of `--streams` sockets in every step of `--step` seconds, as an ingress does, and
another process reads them. In turns of `--turn` seconds, nothing else happens (quiet), answers of votes get their keys from the
process with limits, one after the other without a pause (process), or a thread of the same process computes them, as was done
before (thread). The three turns are a round; the ratios of the 99th percentile of the gaps between two chunks of a stream (ITL) are
within rounds.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from cluster.bench import stack
from cluster.bench.load import percentile
from cluster.bench.pairs import spread
from deployments.reasoning import equality
from deployments.reasoning.answers.comparer import Comparer

READER = "import os, select, sys\nfds = list(map(int, sys.argv[1:]))\nwhile fds:\n    for fd in select.select(fds, [], [])[0]:\n"
READER += "        if not os.read(fd, 65536):\n            fds.remove(fd)\n"
CHUNK = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"reasoning": " 4"}}]}


class Pair(NamedTuple):
    """Two answers, and whether they are equal."""

    equal: bool
    first: str
    second: str


def table(path: Path) -> list[Pair]:
    """Return the pairs of a table."""
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("# ")]
    return [Pair(sign == "=", first, second) for sign, first, second in lines]


def by_math_verify(first: str, second: str) -> bool:
    """Return what math-verify alone finds."""
    import math_verify

    return first == second or bool(math_verify.verify(_parsed(first), _parsed(second)))


@cache
def _parsed(answer: str) -> Any:
    import math_verify

    return math_verify.parse(f"\\boxed{{{answer}}}")


def verdicts(pairs: list[Pair], same: Callable[[str, str], bool]) -> tuple[int, int, int, float]:
    """Return how many equal and unequal pairs are decided rightly, how many verdicts change with the order, and the median time."""
    equal = unequal = changing = 0
    times = []
    for pair in pairs:
        began = time.perf_counter()
        found = same(pair.first, pair.second)
        times.append(time.perf_counter() - began)
        changing += found != same(pair.second, pair.first)
        equal += pair.equal and found
        unequal += not pair.equal and not found
    return equal, unequal, changing, statistics.median(times)


def compare(pairs: list[Pair]) -> None:
    """Print who decides how many pairs rightly, and how fast."""
    equality.load()
    equal = sum(pair.equal for pair in pairs)
    print(f"\n| | right | of {equal} equal | of {len(pairs) - equal} unequal | other verdict in the other order | median, ms |")
    print("|---|---|---|---|---|---|")
    for name, same in {"equality": equality.same, "equality, again": equality.same, "math-verify alone": by_math_verify}.items():
        found = verdicts(pairs, same)
        share = (found[0] + found[1]) / len(pairs)
        print(f"| {name} | {share:.1%} | {found[0]} | {found[1]} | {found[2]} | {found[3] * 1e3:.3f} |", flush=True)


@contextlib.asynccontextmanager
async def sockets(count: int) -> AsyncIterator[list[socket.socket]]:
    """Yield sockets that another process reads."""
    ends = [socket.socketpair() for _ in range(count)]
    theirs = [other.fileno() for _, other in ends]
    reader = await asyncio.create_subprocess_exec(sys.executable, "-c", READER, *map(str, theirs), pass_fds=theirs)
    for _, other in ends:
        other.close()
    try:
        yield [mine for mine, _ in ends]
    finally:
        for mine, _ in ends:
            mine.close()
        await reader.wait()


async def stream(to: list[socket.socket], step_s: float, seconds: float) -> list[float]:
    """Write a chunk to each socket in every step; return the gaps between two chunks of a stream."""
    gaps, last = [], [0.0] * len(to)
    due = time.monotonic()
    end = due + seconds
    while due < end:
        due = max(due + step_s, time.monotonic())
        await asyncio.sleep(due - time.monotonic())
        for number, one in enumerate(to):
            one.send(f"data: {json.dumps(CHUNK)}\n\n".encode())
            now = time.monotonic()
            if last[number]:
                gaps.append(now - last[number])
            last[number] = now
    return gaps


async def voting(key: Callable[[str], Any], answers: Iterator[str]) -> None:
    """Ask for the keys of answers, one after the other, until cancelled."""
    for answer in answers:
        await key(answer)


async def turns(pairs: list[Pair], options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the ITL p99 of each kind of turn, in seconds, in the order of the rounds."""
    texts = [answer for pair in pairs for answer in (pair.first, pair.second)]
    numbers = itertools.count(2)
    # Each answer is new: neither side remembers it.
    fresh = (f"{text} + {next(numbers)}" for text in itertools.cycle(texts))
    comparer = Comparer()
    await comparer.key("1")  # started
    ways: dict[str, Callable[[str], Any] | None] = {
        "quiet": None,
        "process": comparer.key,
        "thread": lambda answer: asyncio.to_thread(equality.key, answer),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    async with sockets(options.streams) as to:
        for round_ in range(options.pairs):
            for name in list(ways)[:: 1 if round_ % 2 else -1]:
                way = ways[name]
                votes = asyncio.create_task(voting(way, fresh)) if way else None
                found[name].append(percentile(await stream(to, options.step, options.turn), 99))
                if votes:
                    votes.cancel()
                    await asyncio.gather(votes, return_exceptions=True)
    comparer.close()
    return found


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, metavar="TABLE")
    parser.add_argument("--pairs", type=int, default=10, help="rounds of the three kinds of turns")
    parser.add_argument("--turn", type=float, default=4.0)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--step", type=float, default=0.024)
    options = parser.parse_args()
    print(stack.machine())
    pairs = table(options.table)
    compare(pairs)
    found = asyncio.run(turns(pairs, options))
    print(f"\n{options.streams} streams, a chunk each in {options.step * 1e3:g} ms\n")
    print("| votes | ITL p99, ms, median | ratio to quiet: median (lowest to highest) |\n|---|---|---|")
    for name, figures in found.items():
        ratios = [figure / quiet for figure, quiet in zip(figures, found["quiet"], strict=True)]
        print(f"| {name} | {statistics.median(figures) * 1e3:.1f} | {spread(ratios, '.3f')} |")


if __name__ == "__main__":
    main()
