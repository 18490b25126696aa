"""Compare the simulator to reality: the same requests on the running application, with autoscaling on, and in the simulator.

    python -m cluster.simulate.compare play --seed 1 first.json      # start the application, send a load, record the result
    python -m cluster.simulate.compare play --seed 2 second.json
    python -m cluster.simulate.compare check first.json second.json  # calibrate on the first record, simulate and compare both

A load is open-loop: Poisson arrivals at the rates of `PHASES`, and replies of random lengths. The first record calibrates the
model: the replicas' reports give the time per token by running requests and by the number of replicas that share the machine's
cores, and `/status` gives the start-up times. The model has not seen the second load.
"""

import argparse
import asyncio
import json
import re
import sys
import time
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from statistics import fmean, median
from typing import Any

import httpx
import numpy as np

from cluster.bench import load, stack
from cluster.simulate.policies import Ours
from cluster.simulate.replica_model import Floats, ReplicaModel
from cluster.simulate.simulation import BUCKETS, Outcome, simulate
from deployments import settings as settings_module
from deployments.host.signals import interrupt_by_signals
from deployments.settings import Settings

ARGUMENTS = (
    "autoscaling.enabled=true",
    "autoscaling.max_replicas=3",
    "autoscaling.downscale_hold_s=20",
    "engine.max_num_seqs=8",  # so that requests queue where there are too few replicas
    "llm.num_cpus=0.3",
    "ingress.num_cpus=0.3",
    "ui.enabled=false",
)
PHASES = ((20.0, 0.5), (100.0, 1.6), (200.0, 0.3))
"""Seconds, and arrivals a second."""
TOKENS = (400, 1200)
QUEUE = "vllm:request_queue_time_seconds"


@dataclass
class Record:
    """A load and its result. Times are in seconds since the load began.

    `requests` are rows of (sent, prompt tokens, reply tokens), and `replies` rows of (TTFT, TPOT) in the same order. `samples` are
    rows from `/status`: (time, replicas wanted, replicas up, replicas reporting, requests running, tokens a second). `queue_s` is
    the mean time that a request waited in an engine; `startup_s` are the start-up times that the policy has learned, in order.
    """

    arguments: list[str]
    duration_s: float
    requests: list[tuple[float, float, float]] = field(default_factory=list)
    replies: list[tuple[float, float]] = field(default_factory=list)
    samples: list[tuple[float, int, int, int, float, float]] = field(default_factory=list)
    startup_s: list[float] = field(default_factory=list)
    queue_s: float = 0.0


def arrivals(seed: int) -> Floats:
    """Return the load of a seed: rows of (time, prompt tokens, reply tokens)."""
    rng, rows, begin = np.random.default_rng(seed), [], 0.0
    for seconds, rate in PHASES:
        at = begin + np.sort(rng.uniform(0, seconds, rng.poisson(rate * seconds)))
        rows.append(np.column_stack([at, np.full(len(at), 30), rng.integers(*TOKENS, len(at))]))
        begin += seconds
    return np.concatenate(rows)


async def play(record: Record, rows: Floats, settings: Settings) -> None:
    """Send the requests at their times, and fill the record."""
    host, port = "127.0.0.1", settings.http.port
    began = time.monotonic()

    async def one(at_s: float, prompt: float, tokens: int) -> tuple[float, float]:
        await asyncio.sleep(began + at_s - time.monotonic())
        sample = load.Sample(1)
        _, stream = await asyncio.get_running_loop().create_connection(lambda: load.Stream(sample), host, port)
        sent = time.monotonic()
        await stream.request(load.message(host, port, settings.served_model_name, f"What is {tokens} * 6 - {prompt}?", tokens))
        return sample.ttft[0], (time.monotonic() - sent - sample.ttft[0]) / (tokens - 1)

    async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=30, trust_env=False) as http:
        before = await _queued(http)
        watching = asyncio.create_task(_watch(http, began, record))
        sending = [one(at_s, prompt, int(tokens)) for at_s, prompt, tokens in rows.tolist()]
        record.requests = [(at_s, prompt, tokens) for at_s, prompt, tokens in rows.tolist()]
        record.replies = await asyncio.gather(*sending)
        await asyncio.sleep(max(0.0, began + record.duration_s - time.monotonic()))
        watching.cancel()
        after = await _queued(http)
    record.queue_s = (after[0] - before[0]) / max(after[1] - before[1], 1)


async def _queued(http: httpx.AsyncClient) -> tuple[float, float]:
    """Return the total time that requests have waited in engines, and the number of those requests."""
    text = (await http.get("/metrics")).text
    total, count = (sum(map(float, re.findall(rf"^{QUEUE}_{name}\S* (\S+)", text, re.MULTILINE))) for name in ("sum", "count"))
    return total, count


async def _watch(http: httpx.AsyncClient, began: float, record: Record) -> None:
    """Sample `/status` every second."""
    while True:
        status: dict[str, Any] = (await http.get("/status")).raise_for_status().json()
        if (scaling := status["autoscaling"]) is not None:
            up = [replica["state"] for replica in status["replicas"]].count("RUNNING")
            signals, startup_s = scaling["signals"], scaling["startup_s"]
            load_now = (int(signals["reporting"]), signals["running"], signals["decode_tokens_per_s"])
            record.samples.append((time.monotonic() - began, scaling["desired"], up, *load_now))
            if not record.startup_s or record.startup_s[-1] != startup_s:
                record.startup_s.append(startup_s)
        await asyncio.sleep(1)


def starts(record: Record) -> list[float]:
    """Return, for each replica that was added, the seconds from when it was wanted until it was up."""
    took_s: list[float] = []
    since: dict[int, float] = {}
    for at_s, wanted, up, *_ in record.samples:
        for number in [number for number in since if number <= up]:
            took_s.append(at_s - since.pop(number))
        since = {number: since.get(number, at_s) for number in range(up + 1, wanted + 1)}
    return took_s


def calibrate(record: Record, base: ReplicaModel) -> ReplicaModel:
    """Return the model of a replica that fits the replicas' reports.

    The time per token of a single replica gives a straight line over its running requests. `sharing` is the median factor to that
    line with more replicas. Only replicas that are at least half full count: with few requests, the share of those that begin or
    end between two reports is too large.
    """
    points = [
        (reporting, running / reporting, running / per_s)
        for _, _, _, reporting, running, per_s in record.samples
        if reporting and running / reporting >= base.max_num_seqs / 2 and per_s > 0
    ]
    alone = np.array([(n, step_s) for replicas, n, step_s in points if replicas == 1])
    slope, step_s = np.polyfit(alone[:, 0], alone[:, 1], 1)
    slope = max(float(slope), 0.0)
    step_s = max(float(np.mean(alone[:, 1] - slope * alone[:, 0])), 1e-4)
    sharing = [1.0]
    for count in range(2, max(replicas for replicas, _, _ in points) + 1):
        factors = [took_s / (step_s + slope * n) for replicas, n, took_s in points if replicas == count]
        sharing.append(max(median(factors), sharing[-1]) if factors else sharing[-1])
    return ReplicaModel(
        step_s=step_s,
        step_per_request_s=slope,
        step_per_kv_token_s=0.0,
        prefill_tokens_per_s=base.prefill_tokens_per_s,
        kv_tokens=10**7,
        max_num_seqs=base.max_num_seqs,
        startup_s=fmean(starts(record) or record.startup_s[-1:]),
        startup_spread=0.1,
        sharing=tuple(sharing),
    )


def simulated(record: Record, model: ReplicaModel, settings: Settings) -> Outcome:
    """Return the outcome of a record's requests in the simulator, with the application's policy and settings."""
    scaling = settings.autoscaling.model_copy(update={"max_num_seqs": settings.engine["max_num_seqs"]})
    rows = np.array(record.requests)
    return simulate([rows], Ours(scaling), scaling, model, duration_s=record.duration_s, dt=0.1, report_s=1.0)


def sequence(samples: list[tuple[float, int]]) -> str:
    """Return the numbers of replicas that were up, in order, each with the second of the change."""
    changes = [next(of_count) for _, of_count in groupby(samples, key=lambda sample: sample[1])]
    return " -> ".join(f"{count} ({at_s:.0f} s)" for at_s, count in changes)


def report(record: Record, outcome: Outcome) -> str:
    """Return reality and simulation side by side, as a Markdown table."""
    ttft, tpot = np.array(record.replies).T
    mean_queue_s = float(outcome.queue_counts @ np.append(BUCKETS, BUCKETS[-1]) / outcome.queue_counts.sum())
    rows = [
        (
            "replicas wanted",
            *(sequence(of) for of in ([(s[0], s[1]) for s in record.samples], [(row[0], row[2]) for row in outcome.timeline])),
        ),
        (
            "replicas up",
            *(sequence(of) for of in ([(s[0], s[2]) for s in record.samples], [(row[0], row[3]) for row in outcome.timeline])),
        ),
        ("mean queue time s", f"{record.queue_s:.2f}", f"{mean_queue_s:.2f}"),
    ]
    for share in (50, 95):
        rows += [
            (
                f"TTFT p{share} s",
                f"{np.percentile(ttft, share):.2f}",
                f"{outcome.percentile(outcome.ttft_counts, share / 100):.2f}",
            ),
            (
                f"TPOT p{share} ms",
                f"{1e3 * np.percentile(tpot, share):.1f}",
                f"{1e3 * outcome.percentile(outcome.tpot_counts, share / 100):.1f}",
            ),
        ]
    lines = ["| | real | simulated |", "|---|---|---|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def main(arguments: list[str] | None = None) -> None:
    """Run `play` or `check`, as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m cluster.simulate.compare", description=(__doc__ or "").split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    playing = commands.add_parser("play")
    playing.add_argument("out", type=Path)
    playing.add_argument("--seed", type=int, default=1)
    checking = commands.add_parser("check")
    checking.add_argument("records", type=Path, nargs="+", help="the first is calibrated on")
    given = parser.parse_args(arguments)
    settings = settings_module.load(dict(word.split("=", 1) for word in ARGUMENTS))
    if given.command == "play":
        record = Record(list(ARGUMENTS), sum(seconds for seconds, _ in PHASES))
        interrupt_by_signals()
        with stack.running(stack.ours("compare", settings, ARGUMENTS)) as application:
            application.settle()
            asyncio.run(play(record, arrivals(given.seed), settings))
        given.out.write_text(json.dumps(asdict(record)))
        return
    records = [Record(**json.loads(path.read_text())) for path in given.records]
    base = ReplicaModel(
        prefill_tokens_per_s=settings.autoscaling.prefill_tokens_per_s, max_num_seqs=settings.engine["max_num_seqs"]
    )
    model = calibrate(records[0], base)
    print(f"calibrated on {given.records[0]}: {model}", file=sys.stderr)
    for path, record in zip(given.records, records, strict=True):
        print(f"\n{path}, {len(record.requests)} requests\n\n{report(record, simulated(record, model, settings))}")


if __name__ == "__main__":
    main()
