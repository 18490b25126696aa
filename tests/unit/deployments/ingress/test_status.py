"""`/status` and what `/ready` says of LLM replicas that are not there, over what Serve's controller and the policy said last."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
from ray.experimental import internal_kv

from deployments.autoscaling import scaler
from deployments.ingress.status import Status


def status(monkeypatch: pytest.MonkeyPatch, details: dict[str, Any] | None, autoscaling: bool, loads: Any = ()) -> Status:
    async def results_async(**options: Any) -> list[Any]:
        if isinstance(loads, Exception):
            raise loads
        return list(loads)

    monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda key, namespace: f"what {key} does".encode())
    monkeypatch.setattr(scaler, "status", lambda: {"startup_s": 30.0, "decisions": []})
    llm: Any = SimpleNamespace(broadcast=lambda method: SimpleNamespace(results_async=results_async))
    replicas: Any = SimpleNamespace(of=lambda deployment: details)
    return Status(llm, replicas, autoscaling)


def replica(state: str, began_s: float = 0.0) -> dict[str, Any]:
    placed = {"node_ip": "10.0.0.1"} if state == "RUNNING" else {}
    return placed | {"replica_id": state.lower(), "state": state, "start_time_s": time.time() - began_s}


async def test_replicas_with_state_load_and_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    details = {"target_num_replicas": 2, "replicas": [replica("RUNNING"), replica("STARTING", 12)]}
    load = {"id": "running", "open": 3, "running": 2, "waiting": 1, "served": 9}
    told = await status(monkeypatch, details, True, [load, RuntimeError("gone")]).report(waiting=4, left_s={"p50": 2.5})
    up, starting = told["replicas"]
    assert (told["target"], told["waiting"], told["autoscaling"]["startup_s"]) == (2, 4, 30.0)
    assert told["left_s"] == {"p50": 2.5}
    assert (up["state"], up["load"]) == ("RUNNING", {"open": 3, "running": 2, "waiting": 1, "served": 9})
    assert (starting["state"], starting["load"], starting["starting"]["expected_s"]) == ("STARTING", None, 30.0)
    assert starting["starting"]["for_s"] >= 12
    assert starting["starting"]["doing"] == "what starting does"
    assert (up["node"], starting["node"]) == ("10.0.0.1", None)


async def test_replicas_that_do_not_answer_are_told_without_load(monkeypatch: pytest.MonkeyPatch) -> None:
    details = {"target_num_replicas": 1, "replicas": [replica("RUNNING")]}
    told = await status(monkeypatch, details, False, TimeoutError()).report(waiting=0)
    assert (told["replicas"][0]["load"], told["autoscaling"]) == (None, None)


@pytest.mark.parametrize(
    ("details", "autoscaling", "asks", "asleep", "said"),
    [
        ({"target_num_replicas": 0, "replicas": []}, True, False, True, "no LLM replica is up; a request starts one"),
        ({"target_num_replicas": 1, "replicas": []}, True, False, False, "no LLM replica is up"),
        ({"target_num_replicas": 1, "replicas": [replica("STARTING")]}, True, False, False, "1 starting, for 7 of about 30 s"),
        ({"target_num_replicas": 1, "replicas": [replica("STARTING")]}, False, True, False, "1 starting, for 7 s"),
        (None, True, False, False, "no LLM replica is up"),
        (None, False, True, False, "no LLM replica is up"),
    ],
)
async def test_what_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, details: dict[str, Any] | None, autoscaling: bool, asks: bool, asleep: bool, said: str
) -> None:
    for starting in details["replicas"] if details else ():
        starting["start_time_s"] = time.time() - 7
    made = status(monkeypatch, details, autoscaling)
    assert (made.running(), made.asleep()) == (asks, asleep)
    assert (await made.waits_for()).endswith(said)
