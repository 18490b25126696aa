"""What it costs to store a stream: turns of the same chats on one application, with and without `x-satori-resume`.

Two turns with the same requests are a pair, and the kind that comes first changes with each pair.

    python -m cluster.bench.stored [--rounds 6] [--clients 64] [--tokens 256] [--turn 8] [key=value ...]
"""

import argparse
import asyncio
import statistics

from cluster.bench import load, stack
from cluster.bench.load import percentile
from deployments import settings as settings_module

HEADERS = {"plain": "", "stored": "x-satori-resume: 1"}


class Turns:
    """Puts an application under load, the same for both kinds."""

    def __init__(self, started: stack.Stack, options: argparse.Namespace) -> None:
        host, _, port = started.url.removeprefix("http://").partition(":")
        self._to, self._started, self._options = (host, int(port), "nano", options.clients), started, options
        self._requests = 2 * options.clients

    def turn(self, kind: str, seed: int) -> tuple[load.Sample, float]:
        """Return the measurements of a turn, and the CPU seconds of a token, all of the application's."""
        processes = self._started.processes()
        before = stack.cpu_seconds(processes)
        sample = asyncio.run(load.run(*self._to, self._requests, self._options.tokens, seed, HEADERS[kind]))
        return sample, (stack.cpu_seconds(processes) - before) / sample.tokens

    def warm(self) -> None:
        """Find out how many requests take a turn."""
        for kind in HEADERS:
            sample, _ = self.turn(kind, 0)
        wanted = sample.tokens / sample.seconds * self._options.turn / self._options.tokens
        self._requests = self._options.clients * max(1, round(wanted / self._options.clients))


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--turn", type=float, default=8.0, help="seconds")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_args()
    print(stack.machine(), flush=True)
    words = ["ui.enabled=false", *options.settings]
    ratios: dict[str, list[float]] = {"tokens/s": [], "CPU a token": [], "TTFT p50": [], "ITL p50": []}
    with stack.running(stack.ours("stored", settings_module.load(dict(word.split("=", 1) for word in words)), words)) as started:
        started.settle()
        turns = Turns(started, options)
        turns.warm()
        for number in range(options.rounds):
            found = {kind: turns.turn(kind, number) for kind in (list(HEADERS) if number % 2 else list(HEADERS)[::-1])}
            (plain, plain_cpu), (stored, stored_cpu) = found["plain"], found["stored"]
            ratios["tokens/s"].append(stored.tokens / stored.seconds / (plain.tokens / plain.seconds))
            ratios["CPU a token"].append(stored_cpu / plain_cpu)
            ratios["TTFT p50"].append(percentile(stored.ttft, 50) / percentile(plain.ttft, 50))
            ratios["ITL p50"].append(percentile(stored.itl, 50) / percentile(plain.itl, 50))
            print(f"pair {number + 1}: " + ", ".join(f"{name} {values[-1]:.3f}" for name, values in ratios.items()), flush=True)
    for name, values in ratios.items():
        print(
            f"{name} of stored streams by that of others: {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"
        )


if __name__ == "__main__":
    main()
