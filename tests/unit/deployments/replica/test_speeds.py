"""What a replica learns of its engine's speed."""

import random

import pytest

from deployments.replica.speeds import Speeds
from deployments.settings import AutoscalingSettings

SETTINGS = AutoscalingSettings(step_s=0.01, step_per_request_s=0.001, prefill_tokens_per_s=1000)


def after(steps: int, step_s: float, per_request_s: float, per_prompt_token_s: float, most_read: int = 1500) -> Speeds:
    """Return what is learned from so many steps with these costs; a prompt is read in two of them, and told with the last."""
    speeds, rng, now, requests = Speeds(SETTINGS), random.Random(1), 100.0, 1
    speeds.count_step(now, 1, 1, works=True)
    left = 0
    for number in range(steps):
        requests = rng.randint(1, 60) if number % 200 == 0 else requests
        generated, read = requests, left
        left = rng.randint(1, most_read) if not left and rng.random() < 0.2 else 0
        now += step_s + generated * per_request_s + (read + left) * per_prompt_token_s / 2
        speeds.count_step(now, generated, read, works=True)
    return speeds


def test_at_first_the_settings_hold() -> None:
    speeds = Speeds(SETTINGS)
    assert speeds.decode_tokens_per_s == pytest.approx(1000)
    assert speeds.prefill_tokens_per_s == pytest.approx(1000)


def test_costs_are_learned_from_steps() -> None:
    speeds = after(5000, step_s=0.02, per_request_s=0.0005, per_prompt_token_s=1 / 5000)
    assert speeds.prefill_tokens_per_s == pytest.approx(5000, rel=0.1)
    assert speeds.decode_tokens_per_s == pytest.approx(2000, rel=0.2)


def test_a_replica_that_reads_nothing_keeps_the_setting() -> None:
    speeds = after(2000, step_s=0.02, per_request_s=0.0005, per_prompt_token_s=0.0, most_read=1)
    assert speeds.prefill_tokens_per_s == pytest.approx(1000, rel=0.1)


def test_a_cost_is_never_nothing() -> None:
    speeds = after(2000, step_s=0.02, per_request_s=0.0, per_prompt_token_s=0.0)
    assert speeds.decode_tokens_per_s <= 1000 / 0.01 * 1.001
    assert speeds.prefill_tokens_per_s <= 1000 / 0.01 * 1.001


def test_time_without_requests_and_of_a_stopped_engine_is_not_counted() -> None:
    speeds = Speeds(SETTINGS)
    for now in range(0, 1000, 5):
        speeds.count_step(now, 1, 100, works=False)
    for now in range(1000, 9000, 60):
        speeds.count_step(now, 1, 100, works=True)
    assert speeds.prefill_tokens_per_s == pytest.approx(1000)
