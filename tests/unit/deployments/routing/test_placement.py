"""Which replica has which requests, and which gets the next one."""

from types import SimpleNamespace
from typing import Any

import pytest

from deployments.routing.placement import COMING_TOKENS, TOLD_S, Placement
from deployments.routing.score import Reason, Work
from deployments.settings import load
from tests.support.clock import Clock


class Id(str):
    """A replica's id."""

    @property
    def unique_id(self) -> str:
        """The id that it uses for itself."""
        return str(self)


def replicas(names: str) -> list[Any]:
    return [SimpleNamespace(replica_id=Id(name)) for name in names]


def test_what_left_is_forgotten() -> None:
    placed = Placement()
    placed.assign("a", "replica-0", "a")  # type: ignore[arg-type]
    assert placed.assigned("a")
    placed.ended("a")
    assert placed.of("replica-0") == 0  # type: ignore[arg-type]
    placed.left("a")
    placed.left("a")
    assert not placed.assigned("a")
    assert vars(placed)["_requests"] == {}
    assert vars(placed)["_loads"] == {}


def test_a_request_goes_where_its_prompt_is_cached_and_is_counted_there_at_once() -> None:
    placed, [a, b] = Placement(), replicas("ab")
    reasons: list[tuple[Reason, float]] = []
    placed.on_assigned = lambda reason, cached_tokens: reasons.append((reason, cached_tokens))
    placed.cached = lambda blocks: {"b": 96.0} if "known" in blocks else {}
    placed.expect("one", Work(100, 50, ["known"]))
    assert placed.choose("one", [a, b], "one") is b
    placed.assign("one", b.replica_id, "one")
    load = vars(placed)["_loads"][b.replica_id].load
    assert (load.requests, load.prefill_tokens, load.expected_tokens) == (1, 4, 50)
    placed.expect("two", Work(100, 50, ["other"]))
    assert placed.choose("two", [a, b], "two") is a
    placed.progressed("one", 30)
    assert (load.requests, load.prefill_tokens, load.expected_tokens) == (1, 0, 30)
    placed.ended("one")
    assert placed.of(b.replica_id) == 0
    assert reasons == [(Reason.CACHED, 96)]


def test_a_prompt_counts_as_cached_where_it_will_be_read_until_cache_events_tell_of_it() -> None:
    placed, both = Placement(rng=lambda: 0.0), replicas("ab")
    placed.update(both)
    coming: list[tuple[list[str], str]] = []

    def expect(blocks: list[str], replica: str) -> Any:
        coming.append((blocks, replica))
        return lambda: coming.remove((blocks, replica))

    placed.cached = lambda blocks: {replica: 1000.0 for there, replica in coming if there == blocks}
    placed.expect("other", Work(100, 10))
    placed.assign("other", both[1].replica_id, "other")
    placed.coming = expect
    for name in ("one", "two"):
        placed.expect(name, Work(1001, 10, ["prompt"]))
        chosen = placed.choose(name, both, name)
        assert chosen is both[0], "the second waits for what the first reads"
        placed.assign(name, chosen.replica_id, name)
    assert coming == [(["prompt"], "a")], "of the second hardly anything must be read"
    placed.progressed("one", 10)
    assert coming, "events come later than the first token"
    placed.progressed("one", 5)
    assert not coming
    placed.progressed("one", 1)
    placed.choose("two", both[1:], "two")
    placed.assign("two", both[1].replica_id, "two")
    assert coming == [(["prompt"], "b")]
    placed.left("two")
    placed.left("one")
    assert not coming


@pytest.mark.parametrize(
    ("given", "there", "tokens"),
    [
        ({}, "a", 1000),
        ({}, "ab", COMING_TOKENS - 1),
        ({"engine.enable_prefix_caching": False}, "ab", 1000),
        ({"routing.policy": "requests"}, "ab", 1000),
    ],
)
def test_no_prompt_is_expected_to_be_cached_where_that_changes_little(given: dict[str, Any], there: str, tokens: int) -> None:
    placed = Placement()
    placed.set_up(load({"preset": "nano-cpu", **given}))
    placed.update(replicas(there))
    placed.coming = lambda blocks, replica: pytest.fail("it is")
    placed.expect("one", Work(tokens, 10, ["prompt"]))
    placed.assign("one", Id("a"), "one")  # type: ignore[arg-type]
    assert placed.assigned("one") == 1


def test_a_request_that_waits_again_keeps_what_is_expected_of_it() -> None:
    placed = Placement()
    placed.expect("a", Work(100, 50))
    placed.assign("a", "replica-0", "a")  # type: ignore[arg-type]
    placed.waits("a")
    assert not placed.assigned("a")
    assert placed.of("replica-0") == 0  # type: ignore[arg-type]
    placed.assign("a", "replica-1", "a")  # type: ignore[arg-type]
    assert vars(placed)["_loads"]["replica-1"].load.expected_tokens == 50


def test_replicas_that_are_gone_are_forgotten_with_their_last_request() -> None:
    placed, [a, b] = Placement(), replicas("ab")
    placed.update([a, b])
    placed.assign("one", a.replica_id, "one")
    placed.update([b])
    assert placed.of(a.replica_id) == 1
    placed.left("one")
    assert vars(placed)["_loads"] == {}


@pytest.mark.parametrize(
    ("given", "chosen", "reason"), [({}, "a", Reason.LOAD), ({"routing.policy": "requests"}, "b", Reason.REQUESTS)]
)
def test_a_setting_goes_back_to_the_fewest_requests(given: dict[str, str], chosen: str, reason: Reason) -> None:
    placed, candidates = Placement(), replicas("ab")
    reasons: list[Reason] = []
    placed.on_assigned = lambda reason, cached_tokens: reasons.append(reason)
    placed.cached = lambda blocks: {}
    placed.set_up(load({"preset": "nano-cpu", **given}))
    for number, (replica, tokens) in enumerate([("a", 1), ("a", 1), ("b", 4000)]):
        placed.expect(f"{number}", Work(10, tokens))
        placed.assign(f"{number}", Id(replica), f"{number}")  # type: ignore[arg-type]
    reasons.clear()
    placed.expect("next", Work(10, 500))
    got = placed.choose("next", candidates, "next")
    assert got is not None
    placed.assign("next", got.replica_id, "next")
    assert (got.replica_id, reasons) == (chosen, [reason])


def test_where_prefixes_are_not_cached_work_counts_all_the_same() -> None:
    placed, candidates = Placement(), replicas("ab")
    placed.set_up(load({"preset": "nano-cpu", "engine.enable_prefix_caching": False}))
    placed.expect("a", Work(10, 4000))
    placed.assign("a", Id("a"), "a")  # type: ignore[arg-type]
    placed.expect("b", Work(10, 10))
    assert placed.choose("b", candidates, "b") is candidates[1]
    assert vars(placed)["_requests"]["b"].reason is Reason.LOAD


def test_calls_that_generate_nothing_are_not_counted_as_requests() -> None:
    placed = Placement()
    reasons: list[Reason] = []
    placed.on_assigned = lambda reason, cached_tokens: reasons.append(reason)
    placed.assign("state", "replica-0", "state")  # type: ignore[arg-type]
    assert reasons == []


def test_what_was_told_long_ago_counts_no_more() -> None:
    clock = Clock()
    placed, [a, b] = Placement(clock), replicas("ab")
    placed.cached = lambda blocks: {}
    placed.update([a, b])
    placed.told("a", 5, 700)
    for now_s, at_a in ((1.0, 5), (TOLD_S, 5), (TOLD_S + 1.5, 0)):
        clock.now_s = now_s
        placed.choose("group", [a, b])
        assert vars(placed)["_loads"][a.replica_id].load.requests == at_a


def test_what_others_have_on_a_replica_counts_and_is_not_ours() -> None:
    placed, [a, b] = Placement(), replicas("ab")
    placed.cached = lambda blocks: {}
    placed.update([a, b])
    placed.told("a", 5, 700)
    placed.told("gone", 5, 700)
    assert placed.of(a.replica_id) == 0
    for number in range(5):
        placed.expect(f"{number}", Work(100, 50))
        assert placed.choose(f"{number}", [a, b], f"{number}") is b
        placed.assign(f"{number}", b.replica_id, f"{number}")
    placed.told("a", 1, 0)
    placed.told("a", 1, 0)
    assert vars(placed)["_loads"][a.replica_id].load.requests == 1
    placed.expect("next", Work(100, 50))
    assert placed.choose("next", [a, b], "next") is a
    for number in range(5):
        placed.left(f"{number}")
    placed.told("a", 0, 0)
    loads = {name: on.load for name, on in vars(placed)["_loads"].items()}
    assert all(load.requests == 0 and load.prefill_tokens == 0 for load in loads.values())


def test_a_request_that_a_full_replica_hands_back_need_not_return_there() -> None:
    placed, candidates = Placement(rng=lambda: 0.0), replicas("ab")
    placed.expect("first", Work(100, 10))
    chosen = placed.choose("first", candidates, "first")
    assert chosen is candidates[0]
    placed.assign("first", chosen.replica_id, "first")
    placed.expect("second", Work(100, 10))
    placed.assign("second", Id("a"), "second")  # type: ignore[arg-type]
    assert placed.choose("first", candidates, "first") is candidates[1]
    assert placed.of(Id("a")) == 1  # type: ignore[arg-type]


def test_other_calls_do_not_tell_how_long_replies_are() -> None:
    placed = Placement()
    placed.update(replicas("a"))
    placed.expect("asked", Work(10, 1000))
    placed.assign("asked", Id("a"), "asked")  # type: ignore[arg-type]
    usual = placed._usual_tokens
    placed.assign("status", Id("a"), "status")  # type: ignore[arg-type]
    assert placed._usual_tokens == usual > 0


def test_a_request_goes_to_the_replica_that_reads_faster_as_it_has_measured() -> None:
    placed, both = Placement(rng=lambda: 0.0), replicas("ab")
    placed.cached = lambda blocks: {}
    placed.update(both)
    placed.expect("one", Work(1000, 50, ["prompt"]))
    assert placed.choose("one", both, "one") is both[0], "both are as good"
    placed.measured("a", 5000, 6000)
    placed.measured("nobody", 1, 1)
    assert placed.choose("one", both, "one") is both[1]
    placed.assign("one", both[1].replica_id, "one")
    placed.measured("b", 500, 6000)
    load = vars(placed)["_loads"][both[1].replica_id].load
    assert (load.requests, load.prefill_tokens, load.prefill_tokens_per_s) == (1, 1000, 500)
    placed.ended("one")
    assert placed.choose("one", both, "one") is both[0]
    placed.update(both[1:])
    assert list(vars(placed)["_measured"]) == ["b"]


@pytest.mark.parametrize("policy", ["tokens", "requests"])
def test_what_replicas_have_idle_is_what_they_run_at_once_less_what_they_keep_and_have(policy: str) -> None:
    placed, both = Placement(), replicas("ab")
    placed.set_up(load({"preset": "nano-cpu", "engine.max_num_seqs": 16, "routing.policy": policy}))
    assert placed.idle(0.25) == 0, "there is none"
    placed.update(both)
    assert placed.idle(0.25) == 24
    placed.assign("one", both[0].replica_id, "one")
    placed.told("b", 20, 0)
    assert placed.idle(0.25) == 11
    placed.lost("one")
    assert placed.idle(0) == 0
