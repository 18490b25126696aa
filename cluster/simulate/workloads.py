"""Synthetic workloads and published traces, as arrays of rows (time in s, prompt tokens, reply tokens).

A synthetic workload has a rate over time, and gaps between arrivals with a Gamma distribution. A coefficient of variation of 1 is
Poisson; more is bursty, as production traffic is (BurstGPT, arXiv 2401.17644; ServeGen, arXiv 2505.09999). The lengths of reasoning
replies have two modes, short chains and long ones (ServeGen).
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from cluster.simulate.replica_model import Floats

CHUNK_S = 600
LONGEST_REPLY = 4000.0  # of the 4,096 tokens of Satori's context


@dataclass(frozen=True)
class Workload:
    """Arrivals at `rate`, a function that returns requests a second for each second; `variation` is that of the gaps."""

    name: str
    duration_s: float
    rate: Callable[[np.random.Generator, Floats], Floats]
    variation: float = 1.0
    reasoning: bool = True
    bursty: bool = True

    def requests(self, seed: int, scale: float = 1.0) -> Iterator[Floats]:
        """Yield the requests of one ten-minute period after another, `scale` times as many."""
        rng = np.random.default_rng(seed)
        seconds: Floats = np.arange(self.duration_s + 1, dtype=np.float64)
        rate: Floats = self.rate(rng, seconds) * scale
        for begin in range(0, int(self.duration_s), CHUNK_S):
            part = (seconds >= begin) & (seconds <= begin + CHUNK_S)
            arrived = renewals(rng, seconds[part], rate[part], self.variation)
            yield np.column_stack([arrived, prompts(rng, len(arrived)), replies(rng, len(arrived), self.reasoning)])


def renewals(rng: np.random.Generator, seconds: Floats, rate: Floats, variation: float) -> Floats:
    """Return arrival times at a rate that changes, with Gamma gaps of this coefficient of variation."""
    total = np.concatenate([[0.0], np.cumsum((rate[1:] + rate[:-1]) / 2)])
    shape = 1 / variation**2
    count = int(total[-1] + 10 * variation * np.sqrt(total[-1] + 1) + 10)
    at = np.cumsum(rng.gamma(shape, 1 / shape, count)) - rng.random() * variation
    return np.asarray(np.interp(at[(at > 0) & (at < total[-1])], total, seconds), np.float64)


def prompts(rng: np.random.Generator, count: int) -> Floats:
    """Return prompt lengths: log-normal around 150 tokens, a mathematical problem."""
    return np.clip(np.round(rng.lognormal(np.log(130), 0.5, count)), 16, 2000)


def replies(rng: np.random.Generator, count: int, reasoning: bool) -> Floats:
    """Return reply lengths: around 450 tokens, or in two modes around 350 and 1,800 (35 %)."""
    short = rng.lognormal(np.log(350 if reasoning else 400), 0.5, count)
    long = rng.lognormal(np.log(1700), 0.35, count)
    lengths = np.where(rng.random(count) < 0.35, long, short) if reasoning else short
    return np.clip(np.round(lengths), 2, LONGEST_REPLY)


def steady(rng: np.random.Generator, seconds: Floats) -> Floats:
    """A constant rate."""
    return np.full_like(seconds, 30.0)


def bursts(rng: np.random.Generator, seconds: Floats) -> Floats:
    """Three times the rate for about two minutes, every ten minutes on average, without a pattern."""
    rate, at = np.full_like(seconds, 15.0), rng.exponential(480)
    while at < seconds[-1]:
        length = rng.exponential(120)
        rate[(seconds >= at) & (seconds < at + length)] = 45.0
        at += length + rng.exponential(480)
    return rate


def wandering(rng: np.random.Generator, seconds: Floats) -> Floats:
    """A rate whose logarithm drifts around its mean within ten minutes; its standard deviation is a factor of 1.6."""
    noise, at, pull = 0.47 * np.sqrt(2 / 600) * rng.standard_normal(len(seconds)), 0.0, 1 / 600
    path = np.empty(len(seconds))
    for index, jolt in enumerate(noise):
        at += jolt - pull * at
        path[index] = at
    return np.asarray(20 * np.exp(path))


def flash_crowd(rng: np.random.Generator, seconds: Floats) -> Floats:
    """Ten times the rate within half a minute, at a random time; after ten minutes it halves every four."""
    begin = rng.uniform(0.45, 0.55) * seconds[-1]
    rising = np.clip((seconds - begin) / 30, 0, 1)
    falling = 0.5 ** (np.maximum(seconds - begin - 600, 0) / 240)
    return np.asarray(6 + 54 * rising * falling)


def diurnal(rng: np.random.Generator, seconds: Floats) -> Floats:
    """A day: five times the night's rate in the afternoon, a second peak in the evening, and a little noise."""
    hour = seconds / 3600
    day = np.exp(-(((hour - 14.5) / 3.5) ** 2)) + 0.6 * np.exp(-(((hour - 20.5) / 1.8) ** 2))
    knots = np.arange(0, seconds[-1] + 601, 600)
    noise = np.interp(seconds, knots, rng.normal(1, 0.05, len(knots)))
    return np.asarray((10 + 40 * day) * noise)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("gamma", 7200, steady, variation=4),
        Workload("bursts", 9000, bursts, variation=2),
        Workload("wandering", 9000, wandering, variation=2),
        Workload("flash crowd", 9000, flash_crowd),
        Workload("chat bursts", 9000, lambda rng, seconds: 2.0 * bursts(rng, seconds), variation=2, reasoning=False),
        Workload("diurnal", 86400, diurnal, bursty=False),
    )
}


def load_trace(path: Path) -> Floats:
    """Return the requests of a published trace, in order, the first one at 0 s. The first line tells the format:

    - Azure LLM inference trace, 2023 and 2024: CSV, `TIMESTAMP,ContextTokens,GeneratedTokens`
      (https://github.com/Azure/AzurePublicDataset);
    - BurstGPT: CSV, `Timestamp,Model,Request tokens,Response tokens,...`, in seconds; failures (no reply) are left out
      (https://github.com/HPMLL/BurstGPT);
    - Mooncake: JSON lines, `timestamp` in ms, `input_length`, `output_length` (https://github.com/kvcache-ai/Mooncake).

    Raises ValueError for anything else.
    """
    with path.open(newline="") as file:
        first = file.readline()
        file.seek(0)
        if first.startswith("{"):
            rows = [_mooncake(json.loads(line)) for line in file if line.strip()]
        else:
            names = set(csv.DictReader([first]).fieldnames or ())
            if {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= names:
                rows = [_azure(row) for row in csv.DictReader(file)]
            elif {"Timestamp", "Request tokens", "Response tokens"} <= names:
                rows = [_burstgpt(row) for row in csv.DictReader(file)]
            else:
                raise ValueError(f"{path}: begins with {first[:80]!r}; known: the Azure, BurstGPT and Mooncake formats")
    requests = np.array([row for row in rows if row[2] > 0]).reshape(-1, 3)
    requests = requests[np.argsort(requests[:, 0], kind="stable")]
    if len(requests):
        requests[:, 0] -= requests[0, 0]
    return requests


def _azure(row: dict[str, str]) -> tuple[float, float, float]:
    day, _, clock = row["TIMESTAMP"].partition(" ")
    clock, _, fraction = clock.partition(".")  # 7 digits in 2023, 6 and a time zone in 2024: more than datetime reads
    digits = fraction.split("+")[0]
    seconds = datetime.fromisoformat(f"{day} {clock.split('+')[0]}+00:00").timestamp() + (float(f"0.{digits}") if digits else 0.0)
    return seconds, float(row["ContextTokens"]), float(row["GeneratedTokens"])


def _burstgpt(row: dict[str, str]) -> tuple[float, float, float]:
    return float(row["Timestamp"]), float(row["Request tokens"]), float(row["Response tokens"])


def _mooncake(row: dict[str, float]) -> tuple[float, float, float]:
    return row["timestamp"] / 1000, float(row["input_length"]), float(row["output_length"])
