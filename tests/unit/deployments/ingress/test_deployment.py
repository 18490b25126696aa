"""The ingress itself: where it receives tokens, and what it says of its state."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import ray
from ray import serve

from deployments.host.run import FOLDER, RUN, marker
from deployments.ingress.deployment import Ingress, channel_host
from deployments.settings import load

MINE = {"id": "i1", "open": 2, "carriers": 1, "states": 3, "strays": 0, "requests": 4, "direct_chunks": 5}


def test_tokens_come_on_the_clusters_interface_and_on_loopback_where_the_machine_is_the_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.1.2.3")
    monkeypatch.delenv(RUN, raising=False)
    assert channel_host() == "10.1.2.3"
    monkeypatch.setenv(RUN, "run")
    assert channel_host() == "127.0.0.1"


@pytest.fixture
def ingress(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ingress:
    """An ingress with requests, whose LLM replica answers."""
    monkeypatch.setenv(FOLDER, str(tmp_path))
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="i1"))
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)
    llm = mock.MagicMock()
    llm.state.remote = mock.AsyncMock(return_value={"id": "r1"})
    made = Ingress(load({"preset": "nano-cpu"}), llm, None, None)
    made._server = SimpleNamespace(  # type: ignore[assignment]
        client=SimpleNamespace(open_requests=["a", "b"], carriers=1),
        engine=SimpleNamespace(get_num_unfinished_requests=lambda: 3),
        ongoing=SimpleNamespace(count=4),
        strays=lambda: 0,
        direct_chunks=5,
    )
    return made


def body(response: Any) -> Any:
    return json.loads(response.body)


async def test_it_is_ready_when_a_replica_answers(ingress: Ingress) -> None:
    response = await ingress.ready()
    assert (response.status_code, body(response)) == (200, {"ready": True, "replica": {"id": "r1"}, "ingress": MINE})


async def test_it_is_not_ready_while_it_drains(ingress: Ingress) -> None:
    marker(os.environ).touch()
    response = await ingress.ready()
    assert (response.status_code, body(response)) == (503, {"ready": False, "reason": "draining", "ingress": MINE})


async def test_it_is_not_ready_when_no_replica_answers(ingress: Ingress, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    ingress._llm.state.remote.side_effect = TimeoutError()
    response = await ingress.ready()
    assert response.status_code == 503
    assert body(response) == {"ready": False, "reason": "no LLM replica is up", "asleep": False, "ingress": MINE}
