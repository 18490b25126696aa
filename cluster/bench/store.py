"""What a store with many responses costs: writing them, finding one and those that nobody goes on with, a new start, and expiry.

Each response has a request of some 600 bytes, 300 tokens in groups of 16, and a result of some 2,000 bytes.

    python -m cluster.bench.store [--responses 10000] [--store PATH]
"""

import argparse
import asyncio
import contextlib
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from cluster.bench import stack
from deployments.store.store import Store
from deployments.store.values import COMPLETED, End, Stored

TOKENS, GROUP = 300, 16
AT_ONCE = 64
LOOKS = 200
OWNER, MODEL = "ada", "nano"
TTL_S = 3600.0


class Clock:
    """Time that can be put forward."""

    ahead_s = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return time.time() + self.ahead_s


def response(number: int, now: float) -> Stored:
    """Return a response that begins now."""
    text = f'{{"input": "{number} {"question " * 60}"}}'
    return Stored(f"resp_{number:08}", OWNER, MODEL, "queued", True, text, "[]", "{}", now, now + TTL_S)


async def write(store: Store, number: int, clock: Clock) -> None:
    """Store a whole response, as an ingress does."""
    lease = await store.create(response(number, clock()))
    rng = random.Random(number)
    appended = [
        store.append(lease, start, [rng.randrange(150_000) for _ in range(GROUP)], None) for start in range(0, TOKENS, GROUP)
    ]
    appended.append(store.append(lease, TOKENS, [], End("stop", TOKENS)))
    await asyncio.gather(*appended)
    await store.finish(lease, COMPLETED, f'{{"output": "{"answer " * 280}"}}', TOKENS)


async def times(look: Callable[[], Awaitable[object]]) -> str:
    """Return the median of what a call takes, and the most."""
    taken = []
    for _ in range(LOOKS):
        began = time.perf_counter()
        await look()
        taken.append((time.perf_counter() - began) * 1e3)
    return f"{statistics.median(taken):.1f} ms (at most {max(taken):.1f})"


def megabytes(folder: Path) -> float:
    """Return the size of all files in a folder, in MB."""
    return sum(file.stat().st_size for file in folder.iterdir()) / 1e6


async def measure(url: str, folder: Path, count: int) -> None:
    """Print what a store costs with so many responses in it."""
    clock, rng = Clock(), random.Random(1)

    def opened() -> Store:
        return Store(url, "bench", lease_s=30, max_bytes=2**34, clock=clock)

    store, numbers, began, cpu = opened(), iter(range(count)), time.perf_counter(), time.process_time()

    async def writer() -> None:
        for number in numbers:
            await write(store, number, clock)

    await asyncio.gather(*(writer() for _ in range(AT_ONCE)))
    taken, used = time.perf_counter() - began, time.process_time() - cpu
    a_token = used / count / TOKENS * 1e6
    print(f"{count} responses written in {taken:.1f} s ({a_token:.1f} µs of CPU a token), {megabytes(folder):.1f} MB")
    began = time.perf_counter()
    store.close()
    store = opened()
    await store.claimable(MODEL, 16)
    print(f"a new start and its first look: {(time.perf_counter() - began) * 1e3:.0f} ms")

    def one() -> str:
        return f"resp_{rng.randrange(count):08}"

    print("one response:", await times(lambda: store.load(one(), OWNER)))
    print("its tokens:", await times(lambda: store.progress(one(), 0)))
    print("those that nobody goes on with:", await times(lambda: store.claimable(MODEL, 16)))
    print("room for a new one, and adding it:", await times(lambda: store.create(response(count + next(added), clock()))))
    clock.ahead_s = 2 * TTL_S
    began, calls, gone, longest = time.perf_counter(), 0, 0, 0.0
    while True:
        call = time.perf_counter()
        removed = await store.expire()
        longest = max(longest, time.perf_counter() - call)
        if not removed:
            break
        calls, gone = calls + 1, gone + removed
    print(
        f"{gone} expired in {time.perf_counter() - began:.1f} s, {calls} calls, the longest {longest * 1e3:.0f} ms;"
        f" the files have {megabytes(folder):.1f} MB"
    )
    store.close()


added = iter(range(10**9))


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=int, default=10_000)
    parser.add_argument("--store", help="a path, or postgresql://...; default: in a new folder")
    options = parser.parse_args()
    print(stack.machine(), flush=True)
    with contextlib.ExitStack() as open_now:
        folder = Path(open_now.enter_context(tempfile.TemporaryDirectory()))
        asyncio.run(measure(options.store or f"{folder}/store.db", folder, options.responses))


if __name__ == "__main__":
    main()
