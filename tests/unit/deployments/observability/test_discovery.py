"""The replicas as Serve's controller knows them: the list of processes to scrape, and their states as metrics."""

import json
import time
from typing import Any

import pytest
from prometheus_client import REGISTRY
from ray.experimental import internal_kv

from deployments.observability import discovery, metrics
from deployments.observability.discovery import FORGET_S, Replicas

STORE = "_internal_kv_"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Ray's key-value store, empty."""
    kept: dict[str, str] = {}
    monkeypatch.setattr(internal_kv, STORE + "list", lambda prefix, namespace: [key.encode() for key in kept])
    monkeypatch.setattr(internal_kv, STORE + "get", lambda key, namespace: kept[key.decode()])
    monkeypatch.setattr(internal_kv, STORE + "del", lambda key, namespace: kept.pop(key.decode()))
    return kept


def entry(port: int, age_s: float = 0.0) -> str:
    labels = {"deployment": "LLM", "replica": f"r{port}"}
    return json.dumps({"targets": [f"127.0.0.1:{port}"], "labels": labels, "since": time.time() - age_s})


def details(*replicas: tuple[str, str], target: int = 2) -> dict[str, Any]:
    llm = {"replicas": [{"replica_id": name, "state": state} for name, state in replicas], "target_num_replicas": target}
    return {"applications": {"default": {"deployments": {"LLM": llm}}}}


def found(replicas: Replicas) -> list[str]:
    return [target["targets"][0] for target in replicas.targets()]


def test_targets_are_the_processes_that_serve_knows(store: dict[str, str]) -> None:
    replicas = Replicas()
    store |= {"a": entry(1), "b": entry(2), "dead": entry(3), metrics.CONTROLLER: entry(4)}
    replicas.update(details(("a", "RUNNING"), ("b", "STARTING"), ("not yet told", "STARTING")))
    assert found(replicas) == ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:4"]
    replicas.update(details(("b", "RUNNING")))
    assert found(replicas) == ["127.0.0.1:2", "127.0.0.1:4"]
    assert "since" not in replicas.targets()[0], "Prometheus refuses what it does not know"


def test_who_is_long_gone_is_forgotten_and_who_has_just_come_is_not(store: dict[str, str]) -> None:
    replicas = Replicas()
    store |= {"a": entry(1), "old": entry(2, 2 * FORGET_S), "new": entry(3)}
    assert found(replicas) == []
    assert set(store) == {"a", "old", "new"}, "before the controller has said anything nobody is gone"
    replicas.update(details(("a", "RUNNING")))
    assert found(replicas) == ["127.0.0.1:1"]
    assert set(store) == {"a", "new"}


def test_states_that_no_replica_is_in_are_zero() -> None:
    metrics.keep(metrics.INGRESS)
    replicas = Replicas()
    replicas.update(details(("a", "RUNNING"), ("b", "STARTING")))
    replicas.update(details(("a", "RUNNING"), ("b", "RUNNING"), target=3))
    values = {
        state: REGISTRY.get_sample_value("satori_replicas", {"deployment": "LLM", "state": state}) for state in discovery.STATES
    }
    assert values == {"STARTING": 0, "RUNNING": 2, "UPDATING": 0, "RECOVERING": 0, "STOPPING": 0}
    assert REGISTRY.get_sample_value("satori_replicas_target", {"deployment": "LLM"}) == 3
