"""The list of processes to scrape, and what a scrape gets."""

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from prometheus_client import REGISTRY, Counter

from deployments import exposition, metrics
from deployments.exposition import FORGET_S, Replicas

STORE = "_internal_kv_"
OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Ray's key-value store, empty."""
    kept: dict[str, str] = {}
    monkeypatch.setattr(exposition.internal_kv, STORE + "list", lambda prefix, namespace: [key.encode() for key in kept])
    monkeypatch.setattr(exposition.internal_kv, STORE + "get", lambda key, namespace: kept[key.decode()])
    monkeypatch.setattr(exposition.internal_kv, STORE + "del", lambda key, namespace: kept.pop(key.decode()))
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
    replicas.take(details(("a", "RUNNING"), ("b", "STARTING"), ("not yet told", "STARTING")))
    assert found(replicas) == ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:4"]
    replicas.take(details(("b", "RUNNING")))
    assert found(replicas) == ["127.0.0.1:2", "127.0.0.1:4"]
    assert "since" not in replicas.targets()[0], "Prometheus refuses what it does not know"


def test_who_is_long_gone_is_forgotten_and_who_has_just_come_is_not(store: dict[str, str]) -> None:
    replicas = Replicas()
    store |= {"a": entry(1), "old": entry(2, 2 * FORGET_S), "new": entry(3)}
    assert found(replicas) == []
    assert set(store) == {"a", "old", "new"}, "before the controller has said anything nobody is gone"
    replicas.take(details(("a", "RUNNING")))
    assert found(replicas) == ["127.0.0.1:1"]
    assert set(store) == {"a", "new"}


def test_states_that_no_replica_is_in_are_zero() -> None:
    metrics.keep(metrics.INGRESS)
    replicas = Replicas()
    replicas.take(details(("a", "RUNNING"), ("b", "STARTING")))
    replicas.take(details(("a", "RUNNING"), ("b", "RUNNING"), target=3))
    values = {
        state: REGISTRY.get_sample_value("satori_replicas", {"deployment": "LLM", "state": state}) for state in exposition.STATES
    }
    assert values == {"STARTING": 0, "RUNNING": 2, "UPDATING": 0, "RECOVERING": 0, "STOPPING": 0}
    assert REGISTRY.get_sample_value("satori_replicas_target", {"deployment": "LLM"}) == 3


@pytest.fixture
def counter() -> Iterator[str]:
    made = Counter("vllm:of_this_test", "With a colon, as vLLM's have.")
    yield "vllm:of_this_test_total"
    REGISTRY.unregister(made)


def test_names_keep_their_colons_in_whatever_format_is_asked_for(counter: str) -> None:
    server = exposition._serve("127.0.0.1", range(49152, 65536))
    try:
        request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}/metrics", headers={"accept": OPENMETRICS})
        with urllib.request.urlopen(request) as response:
            text = response.read().decode()
    finally:
        server.shutdown()
        server.server_close()
    assert f"\n{counter} 0.0\n" in text


def test_the_share_of_cpu_time_is_that_since_the_last_look_whoever_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    times = psutil.cpu_times()._replace(
        user=10, nice=0, system=0, idle=90, iowait=0, irq=0, softirq=0, steal=0, guest=5, guest_nice=0
    )
    monkeypatch.setattr(exposition.psutil, "cpu_times", lambda: times)
    share = exposition.CpuShare()
    assert share() == 0.0
    times = times._replace(user=13, idle=90.5, iowait=0.5, guest=6)
    shares: list[float] = []
    thread = threading.Thread(target=lambda: shares.append(share()))
    thread.start()
    thread.join()
    assert shares == [0.75]
    assert share() == 0.75, "no time has passed"
