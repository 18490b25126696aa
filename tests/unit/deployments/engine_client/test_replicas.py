"""The LLM replicas behind their Serve handle: how they are called, and what the router's placement is told."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.engine_client.replicas import LLMReplicas
from deployments.observability import metrics
from deployments.routing import placement
from deployments.routing.score import Reason, Work
from deployments.transport.channel import Address

ADDRESS = Address("tcp://127.0.0.1:1", b"header", b"key")


class Handle:
    """A deployment's handle: `calls` are those that were made, `made` the options of handles made of it."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []
        self.calls: list[tuple[Any, ...]] = []

    def options(self, **options: Any) -> Any:
        self.made.append(options)

        async def remote(*arguments: Any) -> None:
            self.calls.append((options["method_name"], *arguments))

        return SimpleNamespace(remote=remote)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """What the placement is told; it knows one replica, `r1`."""
    calls: list[tuple[Any, ...]] = []
    replica = SimpleNamespace(replica_id=SimpleNamespace(unique_id="r1"))
    for name in ("expect", "assign", "progressed", "told", "measured", "ended", "lost", "left"):
        monkeypatch.setattr(placement.PLACEMENT, name, lambda *told, name=name: calls.append((name, *told)))
    monkeypatch.setattr(placement.PLACEMENT, "known", {"r1": replica})
    monkeypatch.setattr(placement.PLACEMENT, "choose", lambda group, known, request_id: known[0])
    monkeypatch.setattr(placement.PLACEMENT, "assigned", lambda request_id: 3)
    return calls


async def test_a_request_is_a_call_and_its_handle_is_made_once_and_late() -> None:
    handle = Handle()
    replicas = LLMReplicas(handle, carries=True)  # type: ignore[arg-type]
    assert handle.made == [], "a handle starts a router"
    await replicas.generate("group", "a", ADDRESS, [b"encoded"], "alice")
    await replicas.generate("group", "b", ADDRESS, [b"encoded"], None)
    await replicas.carry("r1", ADDRESS)
    assert handle.calls == [
        ("generate", "group", "a", ADDRESS, [b"encoded"], "alice"),
        ("generate", "group", "b", ADDRESS, [b"encoded"], None),
        ("carry", "r1", ADDRESS),
    ]
    assert [made["method_name"] for made in handle.made] == ["generate", "carry"]
    assert {made["request_serialization"] for made in handle.made} == {"pickle"}


def test_a_replica_is_chosen_only_where_requests_are_carried(told: list[tuple[Any, ...]]) -> None:
    assert LLMReplicas(Handle(), carries=True).choose("group", "a") == "r1"  # type: ignore[arg-type]
    assert LLMReplicas(Handle(), carries=False).choose("group", "a") is None  # type: ignore[arg-type]


def test_the_placement_is_told_of_each_request(told: list[tuple[Any, ...]]) -> None:
    replicas = LLMReplicas(Handle(), carries=True)  # type: ignore[arg-type]
    replicas.expect("a", Work(3, 4))
    replicas.assign("a", "r1", "group")
    replicas.progressed("a", 2)
    replicas.told("r1", 5, 700)
    replicas.measured("r1", 5000, 900)
    assert replicas.assigned("a") == 3
    replicas.ended("a")
    replicas.lost("b")
    replicas.left("a")
    known = placement.PLACEMENT.known["r1"].replica_id
    assert told == [
        ("expect", "a", Work(3, 4)),
        ("assign", "a", known, "group"),
        ("progressed", "a", 2),
        ("told", "r1", 5, 700),
        ("measured", "r1", 5000, 900),
        ("ended", "a"),
        ("lost", "b"),
        ("left", "a"),
    ]


def test_why_a_request_was_given_to_a_replica_is_counted() -> None:
    LLMReplicas(Handle(), carries=True)  # type: ignore[arg-type]
    counted = metrics.ROUTED.collector.labels("cached")._value
    before = counted.get()
    placement.PLACEMENT.on_assigned(Reason.CACHED, 3.0)
    assert counted.get() == before + 1
