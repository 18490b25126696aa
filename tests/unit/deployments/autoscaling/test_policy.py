"""The autoscaling policy on a small model of a fleet: what it does, why, and what it never does."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.autoscaling.memory import Costs, Memory, arrivals
from deployments.autoscaling.policy import Decision, Reason, capacity, decide
from deployments.autoscaling.signals import Signals
from deployments.settings import AutoscalingSettings

SETTINGS = AutoscalingSettings(max_replicas=100)
TOKENS = 1000.0
STEP_S = 0.030
REPLY_S = TOKENS * STEP_S


class Fleet:
    """A fluid of requests: `rate(t)` arrive a second, each runs for REPLY_S, and replicas take `startup_s`."""

    def __init__(self, rate: Callable[[float], float], settings: AutoscalingSettings = SETTINGS, startup_s: float = 60.0) -> None:
        self.rate, self.settings, self.startup_s = rate, settings, startup_s
        self.now_s, self.ongoing, self.memory = 0.0, 0.0, Memory()
        self.target, self.ready, self.starting = 1, 1, list[float]()
        self.decisions: list[Decision] = []

    def run(self, seconds: float, step_s: float = 1.0) -> "Fleet":
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += step_s
            arrived = self.rate(self.now_s)
            ended = self.ongoing / REPLY_S if self.ready else 0.0
            self.ongoing = max(self.ongoing + (arrived - ended) * step_s, 0.0)
            self.ready += sum(at_s <= self.now_s for at_s in self.starting)
            self.starting = [at_s for at_s in self.starting if at_s > self.now_s]
            signals = Signals(
                now_s=self.now_s,
                target=self.target,
                ready=self.ready,
                reporting=self.ready,
                unplaced=0.0 if self.ready else self.ongoing,
                arrivals_per_s=arrived,
                running=self.ongoing if self.ready else 0.0,
                kv_cache_usage=self.ongoing / 110 if self.ready else 0.0,
                decode_tokens_per_s=self.ongoing / STEP_S if self.ready else 0.0,
                ended_per_s=ended,
            )
            decision = decide(signals, self.settings, self.memory)
            self.memory = decision.memory
            self.decisions.append(decision)
            if decision.replicas > self.target:
                self.starting += [self.now_s + self.startup_s] * (decision.replicas - self.target)
            elif decision.replicas < self.target:
                self.starting = self.starting[: max(decision.replicas - self.ready, 0)]
                self.ready = min(self.ready, decision.replicas)
            self.target = decision.replicas
        return self

    def reasons(self) -> set[Reason]:
        return {decision.reason for decision in self.decisions}


def noisy(rate: float, seed: int = 0) -> Callable[[float], float]:
    """Return Poisson arrivals, normal as there are many, around `rate`."""
    source = random.Random(seed)
    return lambda _: max(0.0, rate + source.gauss(0, math.sqrt(rate)))


def steady(**changes: float) -> Signals:
    """Return the signals of 4 replicas with 40 requests each."""
    signals = Signals(
        now_s=0.0, target=4, ready=4, reporting=4, arrivals_per_s=4.0, running=160, decode_tokens_per_s=160 / STEP_S, ended_per_s=4
    )
    return replace(signals, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rate", [2.0, 9.5, 60.0])
def test_a_constant_noisy_load_does_not_flap(rate: float, seed: int) -> None:
    fleet = Fleet(noisy(rate, seed)).run(900)
    settled = len(fleet.decisions)
    fleet.run(3600)
    counts = [decision.replicas for decision in fleet.decisions[settled:]]
    changes = sum(after != before for before, after in pairwise(counts))
    assert changes <= 4, "an hour of a constant load: up and back twice"
    assert max(counts) - min(counts) <= max(1, 0.1 * max(counts))
    assert min(counts) * 110 * 0.85 > rate * REPLY_S, "and there is room for it"


def test_it_scales_from_zero_at_the_first_request() -> None:
    settings = AutoscalingSettings(min_replicas=0)
    idle = decide(Signals(0.0, target=0, ready=0), settings, Memory())
    assert (idle.replicas, idle.reason) == (0, Reason.IDLE)
    first = decide(Signals(1.0, target=0, ready=0, unplaced=1), settings, idle.memory)
    assert (first.replicas, first.reason) == (1, Reason.FIRST_REQUEST)
    many = decide(Signals(1.0, target=0, ready=0, unplaced=500), settings, idle.memory)
    assert 3 <= many.replicas <= 8, "as many as the requests need, at once"


def test_it_scales_to_zero_after_idle_s_and_not_before() -> None:
    fleet = Fleet(lambda now_s: 1.0 if now_s < 60 else 0.0, AutoscalingSettings(min_replicas=0, idle_s=300, downscale_hold_s=60))
    fleet.run(60)
    fleet.rate, fleet.ongoing = (lambda _: 0.0), 0.0
    fleet.run(290)
    assert fleet.target == 1
    fleet.run(20)
    assert (fleet.target, fleet.decisions[-1].reason) == (0, Reason.IDLE)
    assert Fleet(lambda _: 0.0, AutoscalingSettings(min_replicas=1)).run(2000).target == 1, "unless there is a minimum"


def test_an_idle_fleet_goes_whatever_was_expected() -> None:
    """Serve stops all but one replica first; that one then goes too, rather than call back the others."""
    settings = AutoscalingSettings(min_replicas=0, idle_s=5, tpot_p95_s=0.025)
    busy = Signals(0.0, target=3, ready=3, reporting=3, arrivals_per_s=60, running=300, decode_tokens_per_s=20_000, ended_per_s=60)
    memory = decide(busy, settings, Memory()).memory
    for second in range(1, 60):
        memory = decide(replace(busy, now_s=float(second)), settings, memory).memory
    quiet = Signals(66.0, target=3, ready=3, reporting=3)
    memory = decide(replace(quiet, now_s=60.0), settings, memory).memory
    first = decide(quiet, settings, memory)
    assert first.inputs["needed_for_forecast"] > 1
    assert (first.replicas, first.reason) == (0, Reason.IDLE)
    second = decide(replace(quiet, now_s=66.5, target=1, ready=1, reporting=1), settings, first.memory)
    assert (second.replicas, second.reason) == (0, Reason.IDLE)


@pytest.mark.parametrize(("bound", "replicas"), [(1, 4), (7, 7), (50, 12)])
def test_lines_of_batches_start_no_more_replicas_than_they_may_have(bound: int, replicas: int) -> None:
    """Lines that need 12 replicas, beside nobody, on 4."""
    settings = AutoscalingSettings(max_replicas=100, batch_replicas=bound)
    lines = steady(running=400, waiting=4000, deferred_running=400, deferred_waiting=4000, arrivals_per_s=0.0)
    decided = decide(lines, settings, Memory())
    assert decided.replicas == replicas
    assert decided.reason is (Reason.BATCHES if bound > 4 else Reason.HOLD)


def test_lines_of_batches_change_nothing_for_others() -> None:
    """They run, wait long, make tokens slow and are preempted: as many replicas as without them, for the same reason."""
    for load in (160.0, 420.0, 1000.0):
        alone = decide(steady(running=load, decode_tokens_per_s=load / STEP_S), SETTINGS, Memory())
        lines = {"running": load + 1200, "waiting": 500.0, "deferred_running": 1200.0, "deferred_waiting": 500.0}
        beside = decide(steady(**lines, queue_time_s=0.1, preemptions_per_s=5.0, decode_tokens_per_s=9000.0), SETTINGS, Memory())
        assert (beside.replicas, beside.reason) == (alone.replicas, alone.reason)


def test_replicas_go_while_a_batch_runs_down_to_those_that_it_may_have() -> None:
    settings, memory, target = AutoscalingSettings(max_replicas=100, batch_replicas=2), Memory(), 6
    reasons = set()
    for second in range(600):
        lines = Signals(
            float(second), target, target, target, running=600.0, deferred_running=600.0, decode_tokens_per_s=600 / STEP_S
        )
        decided = decide(lines, settings, memory)
        memory, target = decided.memory, decided.replicas
        reasons.add(decided.reason)
    assert target == 2
    assert reasons <= {Reason.HOLD, Reason.LOWER_LOAD, Reason.STEADY}


def test_the_first_line_of_a_batch_starts_a_replica() -> None:
    settings = AutoscalingSettings(min_replicas=0)
    first = decide(Signals(1.0, target=0, ready=0, unplaced=1), settings, Memory())
    alone = Signals(2.0, target=1, ready=1, reporting=1, running=64, deferred_running=64, waiting=9, deferred_waiting=9)
    after = decide(alone, settings, first.memory)
    assert (first.replicas, after.replicas) == (1, 1)


def test_it_starts_replicas_before_a_growing_load_needs_them() -> None:
    fleet = Fleet(lambda now_s: 5 + now_s / 60, startup_s=120).run(1200)
    short = 0
    for _ in range(1800):
        fleet.run(1)
        short += fleet.ongoing > fleet.ready * 110
    assert short == 0
    assert Reason.FORECAST in fleet.reasons()


def test_a_longer_start_up_looks_farther_ahead() -> None:
    def rise(startup_s: float) -> float:
        return Fleet(lambda now_s: 20 + now_s / 60, startup_s=startup_s).run(2400).decisions[-1].inputs["rise"]

    assert 1 < rise(20) < rise(120) < rise(300) < 1.2


def test_it_learns_the_start_up_time() -> None:
    fleet = Fleet(lambda now_s: 2 if now_s < 100 else 20, startup_s=37).run(400)
    assert fleet.memory.startup_s == pytest.approx(37, abs=2)
    assert fleet.decisions[-1].inputs["startup_s"] == fleet.memory.startup_s


def test_starts_that_are_taken_back_are_not_measured() -> None:
    memory = decide(steady(target=6), SETTINGS, Memory()).memory
    assert memory.launches == ((0.0, 2),)
    memory = decide(steady(now_s=10.0, target=5), SETTINGS, memory).memory
    assert memory.launches == ((0.0, 1),)
    memory = decide(steady(now_s=20.0, target=5, ready=5, reporting=5), SETTINGS, memory).memory
    assert (memory.launches, memory.startup_s) == ((), 20.0)


def test_a_replica_that_died_and_its_successor_are_a_start_too() -> None:
    memory = decide(steady(), SETTINGS, Memory()).memory
    memory = decide(steady(now_s=1.0, ready=3, reporting=3), SETTINGS, memory).memory
    memory = decide(steady(now_s=2.0, ready=3, reporting=3), SETTINGS, memory).memory
    memory = decide(steady(now_s=31.0), SETTINGS, memory).memory
    assert memory.launches == ()
    assert memory.startup_s == pytest.approx(30, abs=1)


def test_it_learns_what_a_replica_holds_from_its_speed() -> None:
    slow = decide(steady(), SETTINGS, Memory()).memory
    for second in range(1, 3000):
        n = 30 + 20 * math.sin(second / 100)
        step_s = 0.020 + 0.0005 * n
        slow = decide(steady(now_s=float(second), running=4 * n, decode_tokens_per_s=4 * n / step_s), SETTINGS, slow).memory
    costs = Costs.read(slow, SETTINGS)
    assert costs.step_s == pytest.approx(0.020, rel=0.1)
    assert costs.step_per_request_s == pytest.approx(0.0005, rel=0.1)
    assert capacity(SETTINGS, costs) == pytest.approx((0.9 * 0.05 - 0.020) / 0.0005, rel=0.1)


def test_what_a_replica_holds_is_bounded_by_each_of_its_three_limits() -> None:
    costs = Costs(0.02, 1e-4, tokens_per_request=1000, prompt_tokens_per_request=100, kv_per_request=0.0)
    assert capacity(SETTINGS, costs) == pytest.approx(250)
    assert capacity(SETTINGS.model_copy(update={"max_num_seqs": 64}), costs) == 64
    full = replace(costs, kv_per_request=0.01)
    assert capacity(SETTINGS, full) == pytest.approx(85)
    slow = replace(costs, step_s=1.0, step_per_request_s=0.02)
    assert capacity(SETTINGS, slow) == pytest.approx(25), "a model that is too slow for the SLO does not get all replicas"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"unplaced": 900}, Reason.BACKLOG),
        ({"arrivals_per_s": 60}, Reason.FORECAST),
        ({"prefill_tokens_per_s": 40_000}, Reason.PROMPTS),
        ({"queue_time_s": 3.0, "waiting": 2}, Reason.QUEUE_TIME),
        ({"preemptions_per_s": 1.0}, Reason.PREEMPTIONS),
        (
            {"running": 200, "kv_cache_usage": 2.4, "decode_tokens_per_s": 200 / 0.07, "arrivals_per_s": 0.5, "ended_per_s": 0.5},
            Reason.TPOT,
        ),
        ({"running": 2, "decode_tokens_per_s": 2 / 0.07, "arrivals_per_s": 0.1, "ended_per_s": 0.1}, Reason.HOLD),
        ({}, Reason.HOLD),
        ({"running": 700, "decode_tokens_per_s": 700 / STEP_S, "arrivals_per_s": 18.0, "ended_per_s": 18.0}, Reason.STEADY),
        ({"reporting": 1, "running": 40}, Reason.BLIND),
        ({"target": 101, "ready": 101, "reporting": 101}, Reason.MAXIMUM),
    ],
)
def test_reasons(changes: dict[str, float], reason: Reason) -> None:
    memory = Memory()
    for second in range(50):
        memory = decide(steady(now_s=float(second), **changes), SETTINGS, memory).memory
    signals = steady(now_s=50.0, **changes)
    decision = decide(signals, SETTINGS, memory)
    assert decision.reason is reason, decision.inputs
    assert decision == decide(signals, SETTINGS, memory), "pure"


def test_a_replica_for_what_was_not_foreseen_is_not_taken_back_at_once() -> None:
    memory = Memory()
    for second in range(300):
        memory = decide(steady(now_s=float(second)), SETTINGS, memory).memory
    grown = decide(steady(now_s=300.0, queue_time_s=3.0, waiting=2), SETTINGS, memory)
    assert (grown.replicas, grown.reason) == (5, Reason.QUEUE_TIME)
    memory = grown.memory
    for second in range(301, 301 + int(SETTINGS.downscale_hold_s)):
        decision = decide(steady(now_s=float(second), target=5), SETTINGS, memory)
        assert (decision.replicas, decision.reason in (Reason.STEADY, Reason.HOLD)) == (5, True), second
        memory = decision.memory


def test_the_minimum_is_kept() -> None:
    decision = decide(
        steady(target=1, ready=1, reporting=1, running=0, arrivals_per_s=0), AutoscalingSettings(min_replicas=2), Memory()
    )
    assert (decision.replicas, decision.reason) == (2, Reason.MINIMUM)


def test_fewer_replicas_only_after_the_hold() -> None:
    fleet = Fleet(lambda now_s: 20 if now_s < 1000 else 4).run(1000)
    before = fleet.target
    fleet.run(SETTINGS.downscale_hold_s - 10)
    assert fleet.target >= before
    fleet.run(400)
    assert fleet.target < before / 2
    assert {Reason.HOLD, Reason.LOWER_LOAD} <= fleet.reasons()


@pytest.mark.parametrize("hold_s", [0, 1200])
def test_the_hold_may_be_nothing_or_twenty_minutes(hold_s: float) -> None:
    fleet = Fleet(lambda now_s: 20 if now_s < 300 else 4, AutoscalingSettings(max_replicas=50, downscale_hold_s=hold_s)).run(1490)
    assert (fleet.target < 4) == (hold_s == 0)
    assert fleet.run(200).target < 4


def test_a_silent_replica_keeps_what_there_is() -> None:
    memory = Memory()
    for second in range(1000):
        decision = decide(steady(now_s=float(second), running=0, arrivals_per_s=0, reporting=3), SETTINGS, memory)
        memory = decision.memory
        assert decision.replicas == 4, "a silent replica may be full"


@pytest.mark.parametrize("step_s", [0.1, 7.0])
def test_the_interval_between_calls_does_not_matter(step_s: float) -> None:
    fleet = Fleet(lambda now_s: 5 + now_s / 60).run(1500, step_s)
    assert fleet.target == pytest.approx(Fleet(lambda now_s: 5 + now_s / 60).run(1500, 1.0).target, abs=1)
    assert sum(fleet.memory.arrived) == pytest.approx(sum(5 + (at + 300) / 60 for at in range(1200)), rel=0.05)


def test_a_long_pause_or_a_clock_that_goes_back_does_no_harm() -> None:
    fleet = Fleet(lambda _: 10.0).run(600)
    later = decide(steady(now_s=100_000.0), SETTINGS, fleet.memory)
    assert len(later.memory.arrived) <= 12
    assert decide(steady(now_s=0.0), SETTINGS, later.memory).replicas >= 4


def test_headroom_is_what_arrivals_rose_by_before() -> None:
    def factor(rate: Callable[[float], float]) -> float:
        return Fleet(rate, startup_s=90).run(3600).decisions[-1].inputs["rise"]

    assert factor(noisy(16)) < 1.4
    assert factor(lambda now_s: 40.0 if now_s // 60 % 10 == 0 else 10.0) > 2, "now it is calm, and it was before each burst"
    assert factor(lambda now_s: 40.0 if now_s < 600 else 10.0) == 1, "one fall is no rise"


def test_a_burst_that_comes_again_finds_enough_replicas() -> None:
    fleet = Fleet(lambda now_s: 40.0 if now_s // 60 % 10 == 9 else 10.0, startup_s=90).run(3600)
    assert fleet.ready * 110 > 40 * REPLY_S * 0.85


def test_arrivals_follow_a_jump_within_seconds() -> None:
    fleet = Fleet(noisy(10)).run(600)
    fleet.rate = lambda _: 100.0
    fleet.run(8)
    assert arrivals(fleet.memory) > 60


amounts = st.floats(0, 1e5)


@given(
    waiting=amounts, unplaced=amounts, rate=st.floats(0, 1e3), more=amounts, field=st.sampled_from(["waiting", "unplaced", "rate"])
)
def test_more_load_never_asks_for_fewer_replicas(waiting: float, unplaced: float, rate: float, more: float, field: str) -> None:
    load = {"waiting": waiting, "unplaced": unplaced, "arrivals_per_s": rate}
    heavier = load | {"arrivals_per_s" if field == "rate" else field: {**load, "rate": rate}[field] + more}
    memory = Fleet(lambda _: 4.0).run(10).memory
    counts = [decide(steady(now_s=11.0, **signals), SETTINGS, memory).replicas for signals in (load, heavier)]
    assert counts[0] <= counts[1]


@given(
    low=st.integers(0, 20),
    high=st.integers(1, 50),
    target=st.integers(0, 60),
    ready=st.integers(0, 60),
    reporting=st.integers(0, 60),
    numbers=st.lists(amounts, min_size=11, max_size=11),
    startup_s=st.floats(0.1, 1e4),
)
def test_replicas_are_always_within_bounds(
    low: int, high: int, target: int, ready: int, reporting: int, numbers: list[float], startup_s: float
) -> None:
    settings = AutoscalingSettings(min_replicas=min(low, high), max_replicas=high, startup_s=startup_s)
    memory = Memory()
    for now_s in (1.0, 2.0, 400.0):
        decision = decide(Signals(now_s, target, ready, reporting, *numbers), settings, memory)
        memory = decision.memory
        assert settings.min_replicas <= decision.replicas <= high
        assert all(math.isfinite(number) for number in decision.inputs.values())
