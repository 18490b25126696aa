"""Throughput and latency of the whole application beside bare vLLM, on one machine: `make bench`.

Bare vLLM is its own API server with the same model, engine arguments and environment. Both servers are up at once. They take short
turns under the same load, and one is paused while the other has its turn (`cluster.bench.pairs`). The load are clients that each
stream one chat after the other, with answers of a fixed length. For each number of clients the bench prints the median of the
ratios within the pairs, their range, and the medians of all figures. CPU is of the serving processes, in seconds per 1,000 tokens.

    python -m cluster.bench [--rounds 8] [--clients 1 8 32 64] [--tokens 64] [--turn 5] [key=value ...]
        [--against CHECKOUT | --measuring | --peers [NAME ...] | --only ours] [--alone]

`--against` compares this checkout with another checkout of this project, started as its `make serve` does, in place of bare vLLM.
`--measuring` compares the application with its metrics, traces and logs of requests (every request traced, metrics scraped every 5
s) to the application without them. `--peers` (all, or those named; see `cluster.bench.peers`) adds other ways to serve a model,
each paired with bare vLLM; `python dev/peers.py` installs them. `--alone` is for machines that cannot hold two servers, such as
those with one GPU: each server starts anew in each round. Minutes then lie between the turns, and the machine may change meanwhile.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from cluster.bench import pairs, peers, scraper, stack
from cluster.bench.pairs import Beside, Level, Meter, Turn
from cluster.bench.stack import Server
from deployments import settings as settings_module
from deployments.host.signals import interrupt_by_signals
from deployments.settings import ROOT, Settings

Servers = Mapping[str, Callable[[int], Server]]
"""The servers to compare, by name, and how each is made with a number. The ratios are to the figures of the first one."""

BUSY_CORES = 0.2
"""More CPU than this, used by others than server and client, distorts the figures."""


def options_of(words: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=_positive, default=8, help="pairs at each level")
    parser.add_argument("--clients", type=_positive, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--tokens", type=_positive, nargs="+", default=[64], help="tokens of each answer")
    parser.add_argument("--turn", type=float, default=5.0, help="about how many seconds a turn takes")
    parser.add_argument("--alone", action="store_true", help="never run two servers at a time")
    others = parser.add_mutually_exclusive_group()
    others.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout of this project, in place of bare vLLM")
    others.add_argument("--measuring", action="store_true", help="compare ours with and without its metrics, traces and logs")
    others.add_argument("--peers", choices=peers.KINDS, nargs="*", help="others to compare with bare vLLM; all if none is named")
    others.add_argument("--only", choices=["bare", "ours"], help="one server by itself")
    parser.add_argument("arguments", nargs="*", help="settings, key=value")
    options = parser.parse_intermixed_args(words)
    if options.peers == []:
        options.peers = list(peers.KINDS)
    if options.peers and not peers.PYTHON.exists():
        parser.error(f"no {peers.PYTHON}: python dev/peers.py makes it")
    if options.against and not (options.against / "deployments").is_dir():
        parser.error(f"argument --against: {options.against} has no deployments/")
    if strange := [word for word in options.arguments if "=" not in word]:
        parser.error(f"{strange[0]!r}: allowed: key=value")
    return options


def _positive(word: str) -> int:
    if (number := int(word)) < 1:
        raise argparse.ArgumentTypeError(f"{word}: allowed: 1 and more")
    return number


def servers_of(options: argparse.Namespace, settings: Settings, traces: str) -> Servers:
    """Return the servers that the options name. `traces` is the setting that makes the measured application send traces."""
    words = options.arguments
    ours = partial(stack.ours, "ours", settings, words)
    bare = partial(peers.bare, settings)
    if options.measuring:
        more = scraper.KINDS | {"measured": [*scraper.KINDS["measured"], traces]}
        return {kind: partial(stack.ours, kind, settings, [*words, *more[kind]]) for kind in more}
    if options.against:
        return {"before": partial(stack.ours, "before", settings, words, folder=options.against.resolve()), "ours": ours}
    if options.only:
        return {"bare": bare} if options.only == "bare" else {"ours": ours}
    return {"bare": bare, "ours": ours} | {kind: partial(peers.peer, kind, settings, words) for kind in options.peers or []}


def paired(options: argparse.Namespace, servers: Servers, meter: Meter, levels: Sequence[Level], beside: Beside) -> list[Turn]:
    """Return the turns of each server paired with the first one, of which two are up at a time.

    Exits the program if a process of theirs was lost or replaced meanwhile: a pause must change nothing.
    """
    base, *others = servers
    turns = []
    with stack.running(servers[base](0)) as first:
        for other in others:
            with stack.running(servers[other](1)) as second:
                stacks = {base: first, other: second}
                for one in stacks.values():
                    one.settle()
                before = {name: one.lasting() for name, one in stacks.items()}
                turns += pairs.take_turns(meter, stacks, levels, range(options.rounds), other, beside)
                for name, one in stacks.items():
                    if lost := before[name] - one.lasting():
                        sys.exit(f"{name} lost processes during the bench: {', '.join(str(process) for process in lost)}")
    return turns


def alone(options: argparse.Namespace, servers: Servers, meter: Meter, levels: Sequence[Level], beside: Beside) -> list[Turn]:
    """Return the turns of servers of which one is up at a time, started anew in each round."""
    turns = []
    for round_ in range(options.rounds):
        for name in pairs.order(round_, list(servers)):
            with stack.running(servers[name](0)) as only:
                only.settle()
                turns += pairs.take_turns(meter, {name: only}, levels, [round_], "", beside)
    return turns


def commit(folder: Path) -> str:
    """Return the commit of a checkout, and whether files differ from it; nothing where git does not tell."""
    done = subprocess.run(["git", "-C", str(folder), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip()


def main(words: Sequence[str] | None = None) -> None:
    """Run the rounds and print the tables."""
    options = options_of(words)
    interrupt_by_signals()
    settings = settings_module.load(dict(word.split("=", 1) for word in options.arguments))
    meter = Meter(settings.served_model_name, options.turn)
    levels = [Level(clients, tokens) for tokens in options.tokens for clients in options.clients]
    with scraper.sink() if options.measuring else contextlib.nullcontext("") as traces:
        servers = servers_of(options, settings, traces)
        run = alone if options.alone or len(servers) == 1 else paired
        turns = run(options, servers, meter, levels, {"measured": lambda one: scraper.scraped(one.url)})
    base = next(iter(servers))
    folders = {"ours": ROOT} | ({"before": options.against} if options.against else {})
    commits = ", ".join(f"{name} {commit(folder)}" for name, folder in folders.items())
    print(f"{stack.machine()}; {settings.served_model_name}; {commits}\n")
    if len(servers) > 1:
        print(f"Ratios to {base} within pairs: median (lowest to highest)\n\n{pairs.ratio_table(turns, base)}\n")
    print(f"Medians of {options.rounds} rounds\n\n{pairs.median_table(turns)}")
    others = statistics.median(turn.row["others' CPU cores"] for turn in turns)
    if others > BUSY_CORES:
        print(f"\nWARNING: other processes used {others:.2f} cores: these figures are of a busy machine")
    (ROOT / ".run" / "bench.json").write_text(json.dumps([asdict(turn) for turn in turns]))


if __name__ == "__main__":
    main()
