"""The simulator beside an engine that makes every step, its books, and its reading of traces."""

from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from cluster.fleet import Fleet, _spread
from cluster.replicas import Floats, ReplicaModel
from cluster.simulation import Outcome, simulate
from cluster.workloads import WORKLOADS, load_trace, renewals
from deployments.autoscaling import Signals
from deployments.settings import AutoscalingSettings

SLO = AutoscalingSettings()
MODEL = ReplicaModel()


@dataclass
class Static:
    count: int

    def replicas(self, signals: Signals) -> int:
        return self.count


@dataclass
class Request:
    arrived_s: float
    prompt: float
    reply: float
    read: float = 0.0
    done: float = 0.0
    first_s: float = 0.0


def engine(arrivals: Floats, model: ReplicaModel) -> tuple[Floats, Floats, float]:
    """Serve `arrivals` on one replica by making every engine step. Return TTFTs, TPOTs and the time of the last token."""
    pending = deque(Request(*row) for row in arrivals)
    waiting: deque[Request] = deque()
    running: list[Request] = []
    ended: list[tuple[float, float]] = []
    now_s = 0.0
    while pending or waiting or running:
        if not waiting and not running:
            now_s = max(now_s, pending[0].arrived_s)
        while pending and pending[0].arrived_s <= now_s:
            waiting.append(pending.popleft())
        kv = sum(request.read + request.done for request in running)
        budget, decoding = model.chunk_tokens, sum(request.done > 0 for request in running)
        while waiting and len(running) < model.max_num_seqs and kv + waiting[0].prompt <= model.kv_tokens:
            kv += waiting[0].prompt
            running.append(waiting.popleft())
        read = 0.0
        for request in running:
            part = min(budget - read, request.prompt - request.read)
            request.read += part
            read += part
        now_s += float(model.step(np.float64(decoding), np.float64(kv))) + read / model.prefill_tokens_per_s
        for request in [request for request in running if request.read >= request.prompt]:
            request.done += 1
            request.first_s = request.first_s or now_s
            if request.done >= request.reply:
                running.remove(request)
                ended.append((request.first_s - request.arrived_s, (now_s - request.first_s) / max(request.reply - 1, 1)))
    ttft, tpot = np.array(ended).T
    return ttft, tpot, now_s


def fleet(arrivals: Floats, model: ReplicaModel, dt: float = 0.25) -> tuple[Floats, Floats, float]:
    """Serve `arrivals` on one replica of the simulator."""
    simulated = Fleet(model, np.random.default_rng(0))
    simulated.scale(1, 0.0, warm=True)
    parts, now_s = [], 0.0
    while simulated.ongoing or now_s <= arrivals[-1, 0]:
        due = (arrivals[:, 0] >= now_s) & (arrivals[:, 0] < now_s + dt)
        parts.append(simulated.step(now_s, dt, arrivals[due]))
        now_s += dt
    return np.concatenate([part.ttft_s for part in parts]), np.concatenate([part.tpot_s for part in parts]), now_s


def poisson(rate: float, seconds: float, seed: int = 0) -> Floats:
    rng = np.random.default_rng(seed)
    at = np.sort(rng.uniform(0, seconds, int(rate * seconds)))
    return np.column_stack([at, rng.integers(50, 400, len(at)), rng.integers(100, 900, len(at))])


def test_the_model_is_calibrated_on_a_published_measurement() -> None:
    everything = np.column_stack([np.zeros(300), np.full(300, 100), np.full(300, 539)])
    _, _, took_s = engine(everything, MODEL)
    assert took_s == pytest.approx(48.35, rel=0.05)


@pytest.mark.parametrize("rate", [0.5, 2.0, 4.0])
def test_it_agrees_with_an_engine_that_makes_every_step(rate: float) -> None:
    arrivals = poisson(rate, 300)
    for exact, ours, error in zip(engine(arrivals, MODEL), fleet(arrivals, MODEL), (0.15, 0.03, 0.02), strict=True):
        for share in (50, 95):
            print(rate, share, np.percentile(exact, share), np.percentile(ours, share))
            assert np.percentile(ours, share) == pytest.approx(np.percentile(exact, share), rel=error)
