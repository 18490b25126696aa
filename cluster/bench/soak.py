"""Soak: mixed requests for an hour or any time, an ingress and an LLM replica killed every ten minutes, and what is left of it.

    python -m cluster.bench.soak [--minutes 60] [--every 10] [--clients 8] [--pause 0.5] [--seed 1] [--out FOLDER] [key=value ...]

It writes a table (`soak.md`), a picture (`soak.png`) and all samples (`soak.json`) into the folder `.run/soak`. The exit status is
1 when something grows by more than `growth.LIMITS` allows in an hour, when a state is left after the last request, or when a
request is lost that must not be. Those may be lost whose stream had begun on an ingress that was killed; they are named.

The newest replica is killed each time, so that the other one's growth is seen over the whole time.
"""

import argparse
import asyncio
import itertools
import json
import math
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import psutil

from cluster.bench import growth
from cluster.bench.growth import Watch
from cluster.bench.mixed import Clients, Outcome
from cluster.bench.stack import Stack, engines, machine, ours, running
from deployments import settings as settings_module
from deployments.host.signals import interrupt_by_signals
from deployments.settings import ROOT

TOOLS = ("api.tool_call_parser=hermes", "api.enable_auto_tool_choice=true")
ARGUMENTS = ("llm.num_replicas=2", "llm.num_cpus=0.3", "ingress.num_replicas=2", "ingress.num_cpus=0.3", "ui.num_cpus=0.1", *TOOLS)
FOLDERS = (Path("/tmp"), ROOT / ".run", Path("/dev/shm"))
SAMPLES = 240
"""How often everything is measured in the whole time, but at most every `CLOSEST_S`."""
CLOSEST_S, READY_S, WHOLE_S, EMPTY_S = 5.0, 900.0, 300.0, 60.0
NOTICED_S = 20.0
"""Within this time of an ingress' end its clients know that they have lost it."""


@dataclass
class Kill:
    """A process that was killed: seconds after the beginning, and by the monotonic clock. All was whole again after `whole_s`.

    It is None where the run ended before that, and infinite where it took longer than `WHOLE_S`.
    """

    part: str
    at_s: float
    when: float
    whole_s: float | None = None

    def __str__(self) -> str:
        after = "not before the end" if self.whole_s is None else f"after {self.whole_s:.0f} s"
        return f"{self.part} after {self.at_s:.0f} s (whole {after})"


@dataclass
class Soak:
    """What a run has found."""

    watch: Watch
    clients: Clients
    kills: list[Kill] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def may_be_lost(self, outcome: Outcome) -> bool:
        """Return whether a request was a stream, under way when an ingress was killed, and was broken by that."""
        ingresses = [kill.when for kill in self.kills if kill.part == "ingress"]
        return outcome.broken and outcome.streams and any(outcome.began < at < outcome.ended < at + NOTICED_S for at in ingresses)

    @property
    def lost(self) -> tuple[list[Outcome], list[Outcome]]:
        """The requests with which something was wrong: those that may be lost, and the others."""
        wrong = [outcome for outcome in self.clients.outcomes if outcome.wrong]
        allowed = [outcome for outcome in wrong if self.may_be_lost(outcome)]
        return allowed, [outcome for outcome in wrong if outcome not in allowed]

    @property
    def failures(self) -> list[str]:
        """Why the run has failed; nothing if it has not."""
        lost = Counter(f"lost: {outcome.kind}: {outcome.wrong}" for outcome in self.lost[1])
        found = [f"{count} times {what}" for what, count in lost.items()]
        found += [f"{s.role} {s.pid}: {s.measure} grows by {s.per_hour:.1f} an hour" for s in self.watch.series if s.grows]
        found += [f"not replaced: {one}" for one in self.kills if one.whole_s == math.inf]
        return found + self.left


async def kill(stack: Stack, soak: Soak, http: httpx.AsyncClient, part: str, rng: random.Random) -> None:
    """Kill the newest ingress, or the newest LLM replica or its engine, and wait until there are two of each again."""
    found = stack.named("ServeReplica:default:Ingress") if part == "ingress" else stack.llm_replicas()
    victim = max(found, key=psutil.Process.create_time)
    if part != "ingress" and rng.random() < 0.5:
        [victim] = engines(victim)
    soak.kills.append(Kill(part, soak.watch.seconds, time.monotonic()))
    victim.send_signal(signal.SIGKILL)
    try:
        async with asyncio.timeout(WHOLE_S):
            await stack.whole(http)
            while len(stack.named("ServeReplica:default:Ingress")) < 2 or len(await ingresses(http)) < 2:
                await asyncio.sleep(0.5)
        soak.kills[-1].whole_s = time.monotonic() - soak.kills[-1].when
    except TimeoutError:
        soak.kills[-1].whole_s = math.inf


async def ingresses(http: httpx.AsyncClient, times: int = 8) -> dict[str, dict[str, int]]:
    """Return what the ingresses report of themselves; each request gets any of them."""
    found = {}
    for _ in range(times):
        try:
            state = (await http.get("/ready")).json()["ingress"]
        except (httpx.HTTPError, ValueError, KeyError):
            continue
        found[state["id"]] = state
    return found


async def killing(stack: Stack, soak: Soak, every_s: float, rng: random.Random) -> None:
    """Kill an ingress in the middle of each interval, and an LLM replica at its end."""
    async with httpx.AsyncClient(base_url=stack.url, timeout=60, trust_env=False, headers={"connection": "close"}) as http:
        for number in itertools.count(1):
            await asyncio.sleep(max(0, number * every_s / 2 - soak.watch.seconds))
            await kill(stack, soak, http, "ingress" if number % 2 else "LLM replica", rng)


async def sampling(watch: Watch, every_s: float) -> None:
    """Measure everything again and again."""
    while True:
        await asyncio.to_thread(watch.sample)
        await asyncio.sleep(every_s)


async def empty(stack: Stack) -> list[str]:
    """Return what is left in the ingresses after the last request: nothing, within a minute."""
    async with httpx.AsyncClient(base_url=stack.url, timeout=60, trust_env=False, headers={"connection": "close"}) as http:
        deadline = time.monotonic() + EMPTY_S
        while True:
            found = await ingresses(http)
            left = [f"left in ingress {name}: {state}" for name, state in found.items() if state["open"] or state["states"]]
            if not left or time.monotonic() > deadline:
                return left
            await asyncio.sleep(1)


async def run(stack: Stack, clients: Clients, count: int, seconds: float, every_s: float) -> Soak:
    """Have so many clients make requests, kill, and measure."""
    soak, over = Soak(Watch(stack, FOLDERS), clients), asyncio.Event()
    load = asyncio.create_task(clients.run(count, over))
    beside = [
        asyncio.create_task(sampling(soak.watch, max(CLOSEST_S, seconds / SAMPLES))),
        asyncio.create_task(killing(stack, soak, every_s, random.Random(clients.seed))),
    ]
    try:
        await asyncio.wait([load, *beside], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in beside:
            task.cancel()
        over.set()
    await load
    for done in await asyncio.gather(*beside, return_exceptions=True):
        if isinstance(done, Exception):
            raise done
    soak.left = await empty(stack)
    soak.watch.sample()
    return soak


def report(soak: Soak, words: str) -> str:
    """Return the run as Markdown."""
    outcomes, (allowed, lost) = soak.clients.outcomes, soak.lost
    lines = [f"{soak.watch.seconds / 60:.0f} minutes, {len(outcomes)} requests; {words}", ""]
    lines += ["| requests | of these | lost with a killed ingress | lost otherwise, or wrong |", "|---|---|---|---|"]
    counts = [Counter(outcome.kind for outcome in group) for group in (outcomes, allowed, lost)]
    lines += [f"| {kind} | " + " | ".join(str(count[kind]) for count in counts) + " |" for kind in sorted(counts[0])]
    lines.append("| **all** | " + " | ".join(str(count.total()) for count in counts) + " |")
    lines += ["", "Killed: " + ("; ".join(map(str, soak.kills)) or "nothing") + ".", "", growth.table(soak.watch.series)]
    if failures := soak.failures:
        lines += ["", "**Failed**", "", *(f"- {failure}" for failure in failures[:50])]
    return "\n".join(lines) + "\n"


def write(soak: Soak, words: str, folder: Path) -> None:
    """Write the table, the picture and the samples."""
    from cluster.bench.soak_plot import plot  # matplotlib takes its time

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "soak.md").write_text(report(soak, words))
    (folder / "soak.json").write_text(json.dumps([vars(series) for series in soak.watch.series]))
    plot(soak.watch.series, [(kill.at_s, kill.part) for kill in soak.kills], folder / "soak.png")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=10, help="minutes in which one ingress and one LLM replica are killed")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--pause", type=float, default=0.5, help="mean seconds between two requests of a client")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / ".run" / "soak")
    parser.add_argument("arguments", nargs="*", help="settings, key=value")
    options = parser.parse_args(arguments)
    interrupt_by_signals()
    words = [*ARGUMENTS, *options.arguments]
    settings = settings_module.load(dict(word.split("=", 1) for word in words))
    with running(replace(ours("soak", settings, words), ready_s=READY_S)) as stack:
        stack.settle()
        clients = Clients(stack.url, settings.served_model_name, options.seed, options.pause)
        soak = asyncio.run(run(stack, clients, options.clients, 60 * options.minutes, 60 * options.every))
    write(soak, machine(), options.out)
    print((options.out / "soak.md").read_text())
    return 1 if soak.failures else 0


if __name__ == "__main__":
    sys.exit(main())
