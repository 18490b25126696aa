"""The simulator beside an engine that makes every step, its books, its policies and its reading of traces."""

import json
import random
import re
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from cluster.simulate.__main__ import main, spread
from cluster.simulate.fleet import Fleet, _spread
from cluster.simulate.policies import Hpa, Oracle, Ours, RequestCount, Static
from cluster.simulate.replica_model import Floats, ReplicaModel
from cluster.simulate.simulation import Outcome, Policy, simulate
from cluster.simulate.tuning import choose
from cluster.simulate.workloads import WORKLOADS, load_trace, renewals
from deployments.autoscaling.signals import Signals
from deployments.settings import AutoscalingSettings

SLO = AutoscalingSettings(max_replicas=30)
MODEL = ReplicaModel()


@dataclass
class Request:
    arrived_s: float
    prompt: float
    reply: float
    read: float = 0.0
    done: float = 0.0
    redone: float = 0.0
    first_s: float = 0.0


def engine(arrivals: Floats, model: ReplicaModel) -> tuple[Floats, Floats, float]:
    """Serve `arrivals` on one replica by making every engine step. Return TTFTs, TPOTs and the time of the last token."""
    pending, waiting = deque(Request(*row) for row in arrivals), deque[Request]()
    running: list[Request] = []
    ended: list[tuple[float, float]] = []
    now_s = kv = 0.0
    while pending or waiting or running:
        if not waiting and not running:
            now_s = max(now_s, pending[0].arrived_s)
        while pending and pending[0].arrived_s <= now_s:
            waiting.append(pending.popleft())
        while kv > model.kv_tokens:  # preemption: the newest starts over with what it has
            newest = running.pop()
            kv -= newest.read + newest.done - newest.redone
            newest.prompt, newest.read, newest.redone = newest.prompt + newest.done - newest.redone, 0.0, newest.done
            waiting.appendleft(newest)
        room = kv + sum(request.prompt - request.read for request in running)
        while waiting and len(running) < model.max_num_seqs and room + waiting[0].prompt <= model.kv_tokens:
            room += waiting[0].prompt
            running.append(waiting.popleft())
        decoding, read = sum(request.read >= request.prompt for request in running), 0.0
        for request in running:
            part = min(model.chunk_tokens - read, request.prompt - request.read)
            request.read += part
            read += part
        now_s += float(model.step(np.float64(decoding), np.float64(kv))) + read / model.prefill_tokens_per_s
        kv += read
        for request in [request for request in running if request.read >= request.prompt]:
            request.done += 1
            kv += 1
            request.first_s = request.first_s or now_s
            if request.done >= request.reply:
                running.remove(request)
                kv -= request.read + request.done - request.redone
                ended.append((request.first_s - request.arrived_s, (now_s - request.first_s) / max(request.reply - 1, 1)))
    ttft, tpot = np.array(ended).T
    return ttft, tpot, now_s


def one_replica(arrivals: Floats, model: ReplicaModel, dt: float) -> tuple[Floats, Floats, float]:
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


def simulated(policy: Policy, seconds: float = 1200, rate: float = 8.0, seed: int = 0, initial: int = 4) -> Outcome:
    return simulate([poisson(rate, seconds, seed)], policy, SLO, MODEL, duration_s=seconds, initial=initial, dt=1.0)


def test_the_model_is_calibrated_on_a_published_measurement() -> None:
    everything = np.column_stack([np.zeros(300), np.full(300, 100), np.full(300, 539)])
    _, _, took_s = engine(everything, MODEL)
    assert took_s == pytest.approx(48.35, rel=0.05)


@pytest.mark.parametrize("dt", [0.25, 1.0])
@pytest.mark.parametrize("rate", [0.5, 2.0, 4.0])
def test_it_agrees_with_an_engine_that_makes_every_step(rate: float, dt: float) -> None:
    arrivals = poisson(rate, 150)
    for exact, ours, error in zip(engine(arrivals, MODEL), one_replica(arrivals, MODEL, dt), (0.15, 0.03, 0.02), strict=True):
        for share in (50, 95):
            assert np.percentile(ours, share) == pytest.approx(np.percentile(exact, share), rel=error)


@pytest.mark.parametrize(("dt", "error"), [(0.25, 0.1), (1.0, 0.25)])
def test_it_agrees_in_overload_with_a_full_kv_cache(dt: float, error: float) -> None:
    small = replace(MODEL, kv_tokens=20_000)
    arrivals = poisson(3.5, 150)
    exact, ours = engine(arrivals, small), one_replica(arrivals, small, dt)
    assert ours[2] == pytest.approx(exact[2], rel=error / 2), "throughput"
    for share in (50, 95):
        assert np.percentile(ours[0], share) == pytest.approx(np.percentile(exact[0], share), rel=error)
        assert np.percentile(ours[1], share) == pytest.approx(np.percentile(exact[1], share), rel=error)


def test_every_request_ends_once_and_nothing_is_left() -> None:
    up_and_down = Fleet(MODEL, np.random.default_rng(0), rows=2)
    rng, arrived, ended = np.random.default_rng(1), 0, 0
    for second in range(2000):
        if second % 50 == 0 and second < 1000:
            up_and_down.scale(int(rng.integers(0, 6)), second)
        if second == 1000:
            up_and_down.scale(3, second)
        count = int(rng.poisson(6)) if second < 1000 else 0
        rows = np.column_stack([np.sort(second + rng.random(count)), rng.integers(50, 400, count), rng.integers(1, 900, count)])
        arrived, ended = arrived + count, ended + len(up_and_down.step(second, 1.0, rows).tokens)
    assert arrived == ended > 5000
    assert (up_and_down.ongoing, up_and_down.running.sum(), up_and_down.waiting.sum()) == (0, 0, 0)
    assert up_and_down.kv.sum() == pytest.approx(0, abs=1e-6)
    assert np.isinf(up_and_down.mark).all()


def test_gpu_hours_are_replicas_over_time() -> None:
    outcome = simulated(Static(3), seconds=1800, initial=3)
    assert outcome.gpu_hours == pytest.approx(1.5)
    assert (outcome.starting_s, outcome.changes, outcome.requests) == (0, 0, outcome.ended)
    scaled = simulated(Static(5), seconds=1800, initial=3)
    assert scaled.gpu_hours == pytest.approx(2.5), "a starting replica costs like one that is up"
    assert scaled.starting_s == pytest.approx(2 * MODEL.startup_s, rel=MODEL.startup_spread)


def test_requests_wait_while_no_replica_is_up() -> None:
    outcome = simulated(Static(4), seconds=300, initial=0)
    assert outcome.requests == outcome.ended
    assert outcome.percentile(outcome.queue_counts, 0.99) > MODEL.startup_s * 0.7


@pytest.mark.parametrize("count", [1, 3, 50])
def test_requests_go_where_the_fewest_are(count: int) -> None:
    load = np.array([5, 0, 3, 0, 9])
    filled = load + np.bincount(_spread(load, count, np.random.default_rng(0)), minlength=5)
    assert filled.sum() == load.sum() + count
    grown = filled[filled > load]
    assert grown.max() - grown.min() <= 1
    assert grown.max() <= filled[filled == load].min(initial=99) + 1


def test_ours_meets_the_slo_cheaper_than_the_peak_and_the_oracle_cheapest() -> None:
    def wave(seconds: int) -> Floats:
        late = poisson(24, seconds / 2, 1) + np.array([seconds / 2, 0, 0])
        return np.concatenate([poisson(4, seconds / 2, 0), late])

    outcomes = {}
    for name, policy in {
        "ours": Ours(SLO),
        "static": Static(8),
        "oracle": Oracle([wave(1800)], MODEL, 100, 1800, 30),
        "requests": RequestCount(80, 30),
        "queue": Hpa("queue", 4, 30),
        "kv_cache": Hpa("kv_cache", 0.6, 30),
    }.items():
        outcomes[name] = simulate([wave(1800)], policy, SLO, MODEL, duration_s=1800, initial=2, dt=2.0)
        assert outcomes[name].requests == outcomes[name].ended
    assert outcomes["oracle"].violations < 0.005
    assert all(outcomes["oracle"].violations <= outcome.violations + 1e-3 for outcome in outcomes.values())
    assert outcomes["oracle"].gpu_hours < outcomes["ours"].gpu_hours < outcomes["static"].gpu_hours
    assert outcomes["ours"].violations < outcomes["requests"].violations


def test_rays_policy_waits_for_its_delay() -> None:
    policy = RequestCount(target_ongoing_requests=10, max_replicas=9, upscale_delay_s=20)
    signals = Signals(0.0, target=1, ready=1, reporting=1, running=50)
    assert [policy.replicas(replace(signals, now_s=now_s)) for now_s in (0.0, 10.0, 20.0)] == [1, 1, 5]


def test_the_autoscaler_of_kubernetes_goes_up_at_once_and_down_after_its_window() -> None:
    policy = Hpa("queue", target=2, max_replicas=20)
    assert policy.replicas(Signals(0.0, target=4, ready=4, reporting=4, waiting=30)) == 8, "at most double"
    assert policy.replicas(Signals(15.0, target=8, ready=8, reporting=8)) == 8
    assert policy.replicas(Signals(400.0, target=8, ready=8, reporting=8)) == 1


def test_arrivals_have_the_rate_and_variation_asked_for() -> None:
    seconds = np.arange(10_001.0)
    for variation in (1.0, 4.0):
        gaps = np.diff(renewals(np.random.default_rng(0), seconds, np.full(10_001, 5.0), variation))
        assert gaps.mean() == pytest.approx(0.2, rel=0.1)
        assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.1)


def test_a_mean_has_its_interval() -> None:
    assert spread([0.5], ".2f") == "0.50"
    assert spread([2.0, 2.0, 2.0], ".1f") == "2.0 (2.0 to 2.0)"
    rng = random.Random(1)
    inside = 0
    for _ in range(200):
        mean, low, high = map(float, re.findall(r"[\d.]+", spread([rng.gauss(10, 3) for _ in range(20)], ".4f")))
        assert low < mean < high
        inside += low < 10 < high
    assert 175 <= inside <= 198, "95 %, and somewhat less with few values"


@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads_are_in_order_and_repeatable(name: str) -> None:
    first = next(iter(WORKLOADS[name].requests(1)))
    assert np.array_equal(first, next(iter(WORKLOADS[name].requests(1))))
    assert not np.array_equal(first[:50], next(iter(WORKLOADS[name].requests(2)))[:50])
    assert (np.diff(first[:, 0]) >= 0).all()
    assert first[:, 1:].min() >= 2
    assert (first[:, 1] + first[:, 2]).max() < 8192


@pytest.mark.parametrize(
    "text",
    [
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:05.4799600,100,20\n",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:01.500000+00:00,100,20\n2024-05-10 00:00:00+00:00,4808,10\n",
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,4808,10,4818,Conversation log\n"
        "6,GPT-4,9,0,9,API log\n6.5,ChatGPT,100,20,120,API log\n",
        '{"timestamp": 3000, "input_length": 4808, "output_length": 10, "hash_ids": [0, 1]}\n'
        '{"timestamp": 4500, "input_length": 100, "output_length": 20, "hash_ids": [0]}\n',
    ],
    ids=["azure 2023", "azure 2024", "burstgpt", "mooncake"],
)
def test_published_traces_are_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "trace").write_text(text)
    assert load_trace(tmp_path / "trace").tolist() == [[0.0, 4808, 10], [pytest.approx(1.5), 100, 20]]


def test_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trace").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="known: the Azure, BurstGPT and Mooncake formats"):
        load_trace(tmp_path / "trace")


def test_a_trace_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps({"timestamp": 200 * at, "input_length": 100, "output_length": 50}) for at in range(300)]
    (tmp_path / "small.jsonl").write_text("\n".join(lines))
    main(["--trace", str(tmp_path / "small.jsonl"), "--policies", "ours", "oracle", "--out", str(tmp_path / "out")])
    assert "| small | ours |" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cost.png", "runs.jsonl", "small.png", "table.md"]


def test_a_larger_fleet_gets_more_of_the_same() -> None:
    small, large = (next(iter(WORKLOADS["gamma"].requests(1, scale))) for scale in (1.0, 20.0))
    assert len(large) == pytest.approx(20 * len(small), rel=0.05)
    assert large[:, 1:].mean(axis=0) == pytest.approx(small[:, 1:].mean(axis=0), rel=0.05)


def test_the_strongest_opponents_are_chosen() -> None:
    def row(policy: str, hours: float, violations: float, mark: int) -> dict[str, object]:
        return {
            "workload": "w",
            "policy": policy,
            "parameters": {"mark": mark},
            "seeds": 3,
            "gpu_hours": hours,
            "violations": violations,
        }

    rows = [row("ours", 10, 0.01, 0)] + [
        row(kind, hours, missed, mark)
        for kind in ("requests", "queue", "kv_cache", "static", "oracle")
        for mark, (hours, missed) in enumerate([(9, 0.05), (10.1, 0.008), (12, 0.0)])
    ]
    chosen = choose(rows, "w")
    assert {kind: parameters.get("mark") for kind, parameters in chosen.items()} == {
        "ours": None,
        "requests": 1,
        "requests_99": 1,
        "queue": 1,
        "kv_cache": 1,
        "static": 1,
        "oracle": 1,
    }
