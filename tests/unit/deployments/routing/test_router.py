"""The router: even spread of a burst, groups kept together, counts that come back to zero."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from ray.serve.config import RequestRouterConfig

from deployments.routing import placement
from deployments.routing.placement import Placement
from deployments.routing.router import LeastRequestsRouter, StickyRouter
from tests.support.clock import Clock


@pytest.fixture(autouse=True)
def placed(monkeypatch: pytest.MonkeyPatch) -> Placement:
    monkeypatch.setattr(placement, "PLACEMENT", Placement())
    return placement.PLACEMENT


def router() -> LeastRequestsRouter:
    made = LeastRequestsRouter.__new__(LeastRequestsRouter)  # without Serve's own state, which the policy does not use
    made.initialize_state()
    return made


def replicas(count: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(replica_id=f"replica-{number}") for number in range(count)]


def pending(number: int, group: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(
        metadata=SimpleNamespace(internal_request_id=f"id-{number}", call_method="generate"),
        args=[group or f"group-{number}", f"request-{number}"],
        future=asyncio.get_running_loop().create_future(),
        routing_context=SimpleNamespace(should_backoff=False),
    )


async def choose(made: LeastRequestsRouter, candidates: list[SimpleNamespace], request: SimpleNamespace) -> str:
    [[chosen]] = await made.choose_replicas(candidates, request)  # type: ignore[arg-type]
    return str(chosen.replica_id)


async def test_a_burst_is_spread_evenly() -> None:
    made, candidates = router(), replicas(2)
    for count in (32, 64, 96):
        burst = [pending(number) for number in range(count - 32, count)]
        chosen = Counter([await choose(made, candidates, request) for request in burst])
        assert set(chosen.values()) == {16}


async def test_requests_go_where_others_ended() -> None:
    made, candidates = router(), replicas(2)
    chosen = {f"id-{number}": await choose(made, candidates, pending(number)) for number in range(10)}
    for request_id, replica in chosen.items():
        if replica == "replica-0":
            made.on_request_completed("replica-0", request_id)  # type: ignore[arg-type]
    assert [await choose(made, candidates, pending(number)) for number in range(10, 15)] == ["replica-0"] * 5


async def test_a_group_stays_together() -> None:
    made, candidates = router(), replicas(4)
    assert len({await choose(made, candidates, pending(number, "samples")) for number in range(8)}) == 1


async def test_a_group_moves_when_its_replica_is_gone() -> None:
    made, candidates = router(), replicas(2)
    first = await choose(made, candidates, pending(0, "samples"))
    left = [replica for replica in candidates if replica.replica_id != first]
    assert await choose(made, left, pending(1, "samples")) == left[0].replica_id


async def test_asked_again_or_cancelled_counts_once(placed: Placement) -> None:
    made, candidates = router(), replicas(2)
    request = pending(0)
    for _ in range(5):
        await choose(made, candidates, request)
    assert sum(placed.of(replica.replica_id) for replica in candidates) == 1
    request.future.cancel()
    await asyncio.sleep(0)
    assert sum(placed.of(replica.replica_id) for replica in candidates) == 0
    assert not made._requests


async def test_a_request_ends_with_its_last_token_and_once(placed: Placement) -> None:
    made, [only] = router(), replicas(1)
    await choose(made, [only], pending(0))
    await choose(made, [only], pending(1))
    placed.ended("request-0")
    assert placed.of(only.replica_id) == 1
    made.on_request_completed(only.replica_id, "id-0")
    assert placed.of(only.replica_id) == 1, "its call returned later"
    made.on_request_completed(only.replica_id, "id-1")
    assert placed.of(only.replica_id) == 0


async def test_no_candidates_no_choice() -> None:
    assert await router().choose_replicas([], pending(0)) == []  # type: ignore[arg-type]


async def test_a_session_stays_on_its_replica_when_others_come_and_go() -> None:
    made = StickyRouter.__new__(StickyRouter)
    four = [SimpleNamespace(replica_id=SimpleNamespace(unique_id=f"replica-{number}")) for number in range(4)]

    async def chosen(candidates: list[SimpleNamespace], session: int) -> str:
        [[replica]] = await made.choose_replicas(candidates, SimpleNamespace(args=[f"session-{session}"], routing_context=Mock()))  # type: ignore[arg-type]
        return str(replica.replica_id.unique_id)

    before = {session: await chosen(four, session) for session in range(200)}
    assert before == {session: await chosen(four[::-1], session) for session in range(200)}
    assert min(Counter(before.values()).values()) > 30
    after = {session: await chosen(four[:3], session) for session in range(200)}
    assert all(after[session] == replica for session, replica in before.items() if replica != "replica-3")
    assert await made.choose_replicas([], None) == []


async def test_a_lost_replica_gets_nothing_for_a_while() -> None:
    clock = Clock()
    placement.PLACEMENT = Placement(clock)
    made, candidates = router(), replicas(2)
    lost = await choose(made, candidates, pending(0))
    placement.PLACEMENT.lost("request-0")
    assert not any([await choose(made, candidates, pending(number)) == lost for number in range(1, 9)])
    assert await made.choose_replicas([c for c in candidates if c.replica_id == lost], pending(9)) == []  # type: ignore[misc]
    clock.now_s = placement.LOST_S + 1
    assert await choose(made, candidates, pending(10)) == lost  # it has the fewest requests


@pytest.mark.timeout(20)
async def test_while_all_replicas_are_lost_other_tasks_run() -> None:
    """Serve's own loop over the choices, which has no pause of its own."""
    clock = Clock()
    placement.PLACEMENT = Placement(clock)
    made, candidates = router(), replicas(1)
    made._replicas = {candidates[0].replica_id: candidates[0]}
    made._replicas_list = candidates
    made.num_routing_tasks_in_backoff, made.num_routing_tasks_in_backoff_gauge = 0, Mock()
    made.initial_backoff_s, made.backoff_multiplier, made.max_backoff_s = 0.001, 1, 0.001
    await choose(made, candidates, pending(0))
    placement.PLACEMENT.lost("request-0")
    choices = made._choose_replicas_with_backoff(pending(1))
    choosing = asyncio.create_task(anext(choices))
    await asyncio.sleep(0.01)
    assert not choosing.done()
    clock.now_s = placement.LOST_S + 1
    assert await choosing == candidates
    await choices.aclose()


async def test_a_replica_that_cannot_be_reached_is_not_asked_again_at_once() -> None:
    """A dead replica has the fewest requests; Serve's router asks for a choice again when it could not send a request there."""
    clock = Clock()
    placement.PLACEMENT = Placement(clock)
    made, candidates, request = router(), replicas(2), pending(0)
    dead = await choose(made, candidates, request)
    made.on_replica_actor_unavailable(dead)  # type: ignore[arg-type]
    assert await choose(made, candidates, request) != dead
    [only] = [replica for replica in candidates if replica.replica_id == dead]
    assert await made.choose_replicas([only], request) == []  # type: ignore[list-item, arg-type]
    assert not placement.PLACEMENT.assigned("request-0"), "it waits for a replica"
    clock.now_s = placement.UNREACHED_S + 1
    assert await choose(made, [only], request) == dead


def test_a_router_that_serve_sends_elsewhere_uses_the_same_counts() -> None:
    config = RequestRouterConfig(request_router_class="deployments.routing.router:LeastRequestsRouter")
    sent = config.get_request_router_class()
    made = sent.__new__(sent)
    made.initialize_state()
    placement.PLACEMENT.assign("a", "replica-0", "a")  # type: ignore[arg-type]
    made._requests["id"] = "a"
    made.on_request_completed("replica-0", "id")
    assert placement.PLACEMENT.of("replica-0") == 0  # type: ignore[arg-type]


async def test_a_call_that_carries_goes_to_the_replica_it_names_and_counts_nowhere(placed: Placement) -> None:
    candidates = [SimpleNamespace(replica_id=SimpleNamespace(unique_id=name)) for name in "ab"]
    request = pending(0)
    request.metadata.call_method, request.args = "carry", ["b", "address"]
    assert await router().choose_replicas(candidates, request) == [[candidates[1]]]  # type: ignore[arg-type, comparison-overlap]
    request.args = ["gone", "address"]
    assert await router().choose_replicas(candidates, request) == []  # type: ignore[arg-type]
    assert not placed._loads


def test_the_replicas_that_serve_tells_of_are_known_and_chosen_from(placed: Placement, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LeastRequestsRouter.__mro__[1], "update_replicas", lambda self, replicas: None)
    told = [SimpleNamespace(replica_id=Name(name)) for name in "ab"]
    router().update_replicas(told)  # type: ignore[arg-type]
    assert placed.known == {"a": told[0], "b": told[1]}
    placed.assign("one", Name("a"), "a group")  # type: ignore[arg-type]
    candidates = list(placed.known.values())
    assert placed.choose("another", candidates) is told[1]
    assert placed.choose("a group", candidates) is told[0]
    placed.lost("one")
    assert placed.choose("a group", candidates) is told[1]
    assert placed.choose("a group", []) is None


@dataclass(frozen=True)
class Name:
    """A replica's id."""

    unique_id: str
