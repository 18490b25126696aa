"""The autoscaling policy as Serve calls it: rates from counts, decisions, and what is written down."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve import autoscaling_policy
from ray.serve._private.common import TimeStampedValue
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from deployments.autoscaling import downscaling, scaler
from deployments.autoscaling.scaler import Counts, Scaler
from deployments.observability import exposition
from deployments.replica.meter import Meter
from deployments.settings import load

Raw = dict[str, dict[str, list[TimeStampedValue]]]


def raw(at_s: float, **replicas: dict[str, float]) -> Raw:
    """Return what Serve has of replicas that reported at a time; what they do not say is 0."""
    names = {"running", "waiting", "queued_prompt_tokens", "kv_cache_usage", "deferred_running", "deferred_waiting", *vars(Meter())}
    return {
        name: {replica: [TimeStampedValue(at_s, counts.get(name, 0.0))] for replica, counts in replicas.items()} for name in names
    }


def test_rates_are_of_two_reports() -> None:
    counts = Counts()
    counts.reports(raw(100.0, a={"arrived": 10, "started": 10, "queued_s": 1.0}))
    [report] = counts.reports(raw(104.0, a={"arrived": 18, "generated": 400, "started": 14, "queued_s": 3.0, "running": 5}))
    assert (report.at_s, report.arrivals_per_s, report.decode_tokens_per_s) == (104.0, 2.0, 100.0)
    assert (report.queue_time_s, report.running) == (0.5, 5)


def test_lines_of_batches_are_told_apart() -> None:
    [report] = Counts().reports(raw(100.0, a={"running": 9, "deferred_running": 5, "waiting": 4, "deferred_waiting": 3}))
    assert (report.running, report.deferred_running, report.waiting, report.deferred_waiting) == (9, 5, 4, 3)


def test_the_same_report_again_changes_nothing() -> None:
    counts = Counts()
    counts.reports(raw(100.0, a={}))
    first = counts.reports(raw(104.0, a={"generated": 400}))
    assert counts.reports(raw(104.0, a={"generated": 400})) == first


def test_a_replica_that_has_gone_is_forgotten_and_one_that_came_counts_from_zero() -> None:
    counts = Counts()
    counts.reports(raw(100.0, a={"arrived": 1000}))
    [report] = counts.reports(raw(102.0, b={"arrived": 4}))
    assert report.arrivals_per_s == 4 / scaler.WRITE_S


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    store: dict[str, str] = {}
    name = "_get_cold_start_scale_up_replicas"
    monkeypatch.setattr(autoscaling_policy, name, getattr(autoscaling_policy, name))  # is put back afterwards
    monkeypatch.setattr(downscaling, "install", lambda load: None)
    monkeypatch.setattr(exposition, "show", lambda part, settings: None)
    monkeypatch.setattr(scaler.internal_kv, "_internal_kv_put", lambda key, value, namespace: store.update({key: value}))
    monkeypatch.setattr(scaler.internal_kv, "_internal_kv_get", lambda key, namespace: store.get(key))
    return scaler.status


def context(now_s: float, target: int, ready: int, queued: float = 0.0, metrics: Raw | None = None) -> Any:
    return SimpleNamespace(
        current_time=now_s,
        target_num_replicas=target,
        current_num_replicas=ready,
        total_queued_requests=queued,
        raw_metrics=metrics or {},
        deployment_name="LLM",
    )


def policy(**autoscaling: float) -> Scaler:
    settings = load(
        {"preset": "nano-cpu", "autoscaling.enabled": "true"} | {f"autoscaling.{k}": str(v) for k, v in autoscaling.items()}
    )
    return Scaler(json.loads(json.dumps(settings.model_dump(mode="json"))))


def test_a_load_that_is_too_much_for_one_starts_more_and_is_written_down(written: Callable[[], Any]) -> None:
    wanted = policy(tpot_p95_s=0.004, max_replicas=3)
    assert wanted(context(100.0, 1, 1, metrics=raw(100.0, a={"running": 1})))[0] == 1
    busy = {"running": 60.0, "arrived": 70.0, "generated": 5000.0, "started": 70.0}
    assert wanted(context(102.0, 1, 1, metrics=raw(102.0, a=busy)))[0] == 3
    status = written()
    assert (status["desired"], status["decisions"][-1]["from"], status["decisions"][-1]["to"]) == (3, 1, 3)
    assert status["decisions"][-1]["reason"] in ("backlog", "forecast", "maximum")
    assert status["signals"]["running"] == 60.0


def test_a_request_without_a_replica_starts_one(written: Callable[[], Any]) -> None:
    wanted = policy(min_replicas=0, idle_s=5)
    assert wanted(context(100.0, 0, 0))[0] == 0
    assert wanted(context(100.5, 0, 0, queued=1.0))[0] == 1
    assert written()["decisions"][-1]["reason"] == "first_request"


def test_serve_asks_from_zero_too(written: Callable[[], Any]) -> None:
    """Serve's own answer would be one, and the policy would not be called."""
    wanted = autoscaling_policy._apply_autoscaling_config(policy(min_replicas=0, max_replicas=9))
    asked = context(100.0, 0, 0, queued=500.0)
    asked.total_num_requests, asked.policy_state, asked.config = 500.0, {}, AutoscalingConfig(upscale_delay_s=0)
    assert wanted(asked)[0] > 1
    assert written()["decisions"][-1]["reason"] == "first_request"


def test_the_engine_tells_how_many_sequences_fit(written: Callable[[], Any]) -> None:
    settings = load(
        {"preset": "nano-cpu", "autoscaling.enabled": "true", "engine.max_num_seqs": "4", "autoscaling.max_replicas": "9"}
    )
    wanted = Scaler(settings.model_dump(mode="json"))
    busy = {"running": 4.0, "waiting": 8.0, "arrived": 12.0, "started": 4.0}
    wanted(context(100.0, 1, 1, metrics=raw(100.0, a=busy)))
    assert written()["inputs"]["requests_per_replica"] == 4


def test_serve_can_send_the_policy() -> None:
    settings = load({"preset": "nano-cpu"}).model_dump(mode="json")
    policy = AutoscalingPolicy(policy_function="deployments.autoscaling.scaler:Scaler", policy_kwargs={"settings": settings})
    assert policy.get_policy().__name__ == "Scaler"
