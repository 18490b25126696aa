"""The check of a host with NVIDIA cards, in one command: `make gpu-check`. It is made for ten minutes, and downloads no model.

It starts the application with nano, and with random weights in Satori-7B's shape in both presets. It compares greedy replies with
those of transformers, replies with the limits that they were asked with, streams whose engine is killed with undisturbed ones, card
memory before and after, the KV cache with the planner's arithmetic, and speed with bare vLLM's. With two cards it also splits nano
over both. It prints a line for each part, and writes a report to send, .run/gpu-check.md, which also says what was not run and why.
The exit status is 1 if a part failed.

    python -m cluster.check [--dry] [--only PART ...]

`--dry` does the same on a machine without a card, on the CPU and with a small model: it checks this check.
"""

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx

from cluster.bench import load, peers, stack
from cluster.bench.load import Sample
from cluster.bench.stack import Server, Stack
from cluster.check import dummy, replies, report
from cluster.check.report import Failed, Report, Skipped
from deployments import settings as settings_module
from deployments.host import cards
from deployments.host.signals import interrupt_by_signals
from deployments.launch.serve_run import own_file
from deployments.settings import ROOT, HttpSettings, Settings

LOG = own_file("serve.log", HttpSettings().port)
OUT = ROOT / ".run" / "gpu-check.md"
DRY = "A dry run: small models on the CPU, to check the check. Nothing in this report is of a card."
PARTS = ("host", "nano", "satori-7b-4090", "satori-7b-4090-fp8", "two cards")
START_S = 480.0
FREE_S = 30.0
SPARE_MIB = 200
"""How much more memory than before the cards may hold after a stop: a driver keeps some."""
CLIENTS = (1, 32)


class Check:
    """The check of this host: on its cards, or `dry` on its CPU. Its lines go to `found`."""

    def __init__(self, dry: bool) -> None:
        self._dry = dry
        self.found = Report(DRY if dry else "")

    def host(self) -> None:
        """Check what the host has, before anything is started."""

        def lacks() -> str:
            if self._dry:
                raise Skipped("a dry run takes no card")
            problems = [line for line in (cards.unfit(1), *cards.crowded(0.92).values()) if line]
            if not cards.cards():
                problems.append("no card: no /dev/nvidia0 (without a card: make gpu-check ARGS=--dry)")
            elif not cards.cuda_build():
                problems.append("vLLM's CPU build is installed here: make gpu-check EXTRA=gpu, in a checkout of its own")
            if problems:
                raise Failed("; ".join(problems))
            return report.cards().replace("\n", "; ")

        self.found.run("host", lacks)

    def nano(self, name: str = "nano", more: Sequence[str] = ()) -> None:
        """Check replies, limits and a kill with nano."""
        words = [f"preset={'nano-cpu' if self._dry else 'nano-gpu'}", "ui.enabled=false", *more]
        settings = load_settings(words)

        def checks(stack_: Stack, http: httpx.Client) -> None:
            self.found.run(f"{name}: parity", partial(replies.parity, http, Path(settings.model), settings.served_model_name))
            self.found.run(f"{name}: limits", partial(replies.limits, http, settings.served_model_name))
            self.found.run(f"{name}: engine killed", lambda: asyncio.run(replies.killed(stack_.url, partial(kill, stack_))))

        self._session(name, stack.ours(name.replace(" ", "-"), settings, words), checks)

    def seven_billion(self, preset: str) -> None:
        """Check memory and speed with random weights in Satori-7B's shape, in one of its presets."""
        if self._dry and preset != "satori-7b-4090":
            self.found.skip(preset, "a dry run has one precision")
            return
        folder = dummy.make(ROOT / ".run" / "dummy", dummy.SMALL if self._dry else dummy.QWEN2_7B)
        words = [f"preset={'nano-cpu' if self._dry else preset}", f"model={folder}", "engine.load_format=dummy", "ui.enabled=false"]
        settings = load_settings(words)
        figures: dict[str, list[Sample]] = {}

        def checks(_: Stack, http: httpx.Client) -> None:
            self.found.run(f"{preset}: KV cache", lambda: self._kv(http, folder, settings))
            self.found.run(f"{preset}: speed", lambda: self._speed(settings, figures.setdefault("ours", [])))

        def bare(_: Stack, __: httpx.Client) -> None:
            self.found.run("bare vLLM: speed", lambda: self._speed(settings, figures.setdefault("bare", [])))

        self._session(preset, stack.ours(preset, settings, words), checks)
        if preset != "satori-7b-4090":
            self.found.skip(f"{preset}: beside bare vLLM", "ten minutes have time for one comparison")
            return
        self._session("bare vLLM", peers.bare(settings), bare)
        self.found.run(f"{preset}: beside bare vLLM", lambda: ratios(figures))

    def two(self) -> None:
        """Check nano, split over two cards."""
        if cards.cards() < 2 or self._dry:
            self.found.skip("two cards", "a dry run takes no card" if self._dry else f"this host has {cards.cards()}")
            return
        split = ("engine.tensor_parallel_size=2", "llm.num_gpus=2", "llm.env.NCCL_P2P_DISABLE=1")
        self.nano("two cards", split)

    def _session(self, name: str, server: Server, checks: Callable[[Stack, httpx.Client], None]) -> None:
        """Start a server, make the checks, stop it, and see that the cards' memory is free again."""
        used = report.used_mib()
        self.found.logs = [stack.log_of(server), *([] if server.name == "bare" else [LOG])]
        with ExitStack() as started:
            running: list[Stack] = []

            def start() -> str:
                began = time.monotonic()
                running.append(started.enter_context(stack.running(replace(server, ready_s=START_S))))
                return f"ready after {time.monotonic() - began:.0f} s"

            if not self.found.run(f"{name}: start", start):
                self.found.skip(f"{name}: all else", "it did not start")
                return
            read = LOG.stat().st_size if LOG.exists() else 0
            with httpx.Client(base_url=running[0].url, timeout=300, trust_env=False) as http:
                checks(running[0], http)
            if server.name != "bare":
                self.found.run(f"{name}: nothing compiled late", partial(compiled, read))
        self.found.run(f"{name}: memory free again", partial(self._freed, used))

    def _freed(self, before: int) -> str:
        if self._dry:
            raise Skipped("no card")
        deadline = time.monotonic() + FREE_S
        while (now := report.used_mib()) > before + SPARE_MIB:
            if time.monotonic() > deadline:
                raise Failed(f"{now} MiB in use {FREE_S:g} s after the stop, {before} before the start")
            time.sleep(0.5)
        return f"{now} MiB in use, {before} before"

    def _kv(self, http: httpx.Client, folder: Path, settings: Settings) -> str:
        has = dummy.kv_tokens(http)
        if self._dry:
            return f"{has:,} tokens"
        name, memory = report.query("name,memory.total")[0].split(", ")
        planned = dummy.planned(folder, settings, dummy.card_of(name, float(memory)))
        if not 0.8 < has / planned < 1.25:
            raise Failed(f"{has:,} tokens, the planner computes {planned:,}")
        return f"{has:,} tokens, {has / planned:.2f} of the planner's {planned:,}"

    def _speed(self, settings: Settings, into: list[Sample]) -> str:
        tokens, each = (16, 1) if self._dry else (128, 2)
        for clients in CLIENTS:
            sample = load.run("127.0.0.1", settings.http.port, settings.served_model_name, clients, clients * each, tokens, clients)
            into.append(asyncio.run(sample))
        return ", ".join(f"{one.tokens / one.seconds:,.0f} tokens/s with {one.clients}" for one in into) + " clients"


def load_settings(words: Sequence[str]) -> Settings:
    """Return the settings that the `key=value` words stand for."""
    return settings_module.load(dict(word.split("=", 1) for word in words))


async def kill(running: Stack) -> None:
    """Kill the engines of all LLM replicas. Raises Failed if there is none."""
    engines = [engine for replica in running.llm_replicas() for engine in stack.engines(replica)]
    if not engines:
        raise Failed("no engine's process was found")
    for engine in engines:
        os.kill(engine.pid, signal.SIGKILL)


def compiled(read: int) -> str:
    """See that vLLM reported no kernel that was compiled while requests ran. `read` is how much of the log is of the start."""
    if not LOG.exists():
        raise Skipped("no log")
    with LOG.open(errors="replace") as log:
        log.seek(read)
        late = [line.strip() for line in log if "during inference:" in line]
    if late:
        raise Failed(f"{len(late)} kernels, the first: {late[0][-200:]}")
    return "no kernel was compiled in service"


def ratios(figures: dict[str, list[Sample]]) -> str:
    """Return ours over bare, in tokens a second; single turns, of servers that ran one after the other.

    Raises Skipped where one of the two has not run to its end.
    """
    if not len(CLIENTS) == len(figures.get("ours", [])) == len(figures.get("bare", [])):
        raise Skipped("it takes both speeds")
    pairs = zip(figures["ours"], figures["bare"], strict=True)
    said = [f"{ours.tokens / ours.seconds / (bare.tokens / bare.seconds):.2f} with {ours.clients}" for ours, bare in pairs]
    return f"tokens/s of bare vLLM's: {', '.join(said)} clients (one turn each)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the check, print its lines and write the report; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="on the CPU, with a small model")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    options = parser.parse_args(arguments)
    interrupt_by_signals()
    check = Check(options.dry)
    parts: dict[str, Callable[[], None]] = {name: partial(check.seven_billion, name) for name in PARTS}
    parts |= {"host": check.host, "nano": check.nano, "two cards": check.two}
    left, why = list(PARTS), "interrupted"
    try:
        while left:
            if left[0] in options.only:
                parts[left[0]]()
            else:
                check.found.skip(left[0], "it was not asked for")
            if left.pop(0) == "host" and check.found.failed:
                why = "the host lacks something"
                break  # nothing would start
    finally:  # also after Ctrl-C: what was found so far is worth sending
        for name in left:
            check.found.skip(name, why)
        check.found.write(OUT)
    failed = check.found.failed
    print(("\nFAILED: " + ", ".join(failed) if failed else "\nWhat was run is well") + f". The report to send: {OUT}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
