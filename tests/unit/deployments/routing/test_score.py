"""Which replica gets a request, by its work and their loads."""

from collections import Counter
from random import Random

import pytest

from deployments.routing.score import Load, Reason, Work, choose, score

WORK = Work(1000, 500)


def chosen(loads: list[Load], cached: list[float] | None, work: Work = WORK, group: int | None = None) -> tuple[int, Reason]:
    return choose(work, loads, cached, group=group, random=Random(1).random)


def busy(requests: float, expected: float = 500.0, prefill: float = 0.0) -> Load:
    return Load(requests, prefill, requests * expected)


def test_reasons() -> None:
    assert chosen([busy(9)], [0]) == (0, Reason.ONLY)
    assert chosen([busy(9), busy(1)], [0, 0]) == (1, Reason.LOAD)
    assert chosen([busy(1), busy(1)], [0, 900]) == (1, Reason.CACHED)
    assert chosen([busy(2), busy(2), busy(1), busy(1)], [0, 0, 0, 0]) in [(2, Reason.TIE), (3, Reason.TIE)]
    assert chosen([busy(3, 1), busy(2, 1000)], None) == (1, Reason.REQUESTS)
    assert chosen([busy(9), busy(1)], [0, 0], group=0) == (0, Reason.TOGETHER)
    assert {reason.value for reason in Reason} == {"only", "together", "cached", "load", "tie", "requests"}


def test_work_counts_and_not_requests() -> None:
    assert chosen([busy(3, expected=10), busy(2, expected=3000)], [0, 0]) == (0, Reason.LOAD)
    assert chosen([busy(2, prefill=4000), busy(3)], [0, 0]) == (1, Reason.LOAD)


def test_a_cached_prefix_is_worth_what_reading_it_takes() -> None:
    """It holds a request at busier replicas, but not at any price."""
    assert chosen([busy(3), busy(1)], [900, 0])[0] == 0
    assert chosen([busy(100), busy(1)], [900, 0])[0] == 1
    assert chosen([busy(3), busy(1)], [90, 0], Work(100, 500))[0] == 1


@pytest.mark.parametrize("shared", [0.0, 400.0, 1000.0])
def test_what_all_have_cached_changes_no_comparison_between_equals(shared: float) -> None:
    counts = Counter(choose(WORK, [busy(2)] * 4, [shared] * 4, random=Random(seed).random).replica for seed in range(400))
    assert min(counts.values()) > 60
    assert chosen([busy(4), busy(3)], [shared, shared]) == (1, Reason.LOAD)


def test_samples_stay_together_while_they_fit() -> None:
    full, empty = Load(8, 0, 4000, slots=8), Load(slots=8)
    assert chosen([full, empty], [0, 0], group=0) == (1, Reason.LOAD)
    full.requests = 7
    assert chosen([full, empty], [0, 0], group=0) == (0, Reason.TOGETHER)
    assert chosen([full, empty], None, group=0) == (0, Reason.TOGETHER)


def test_slower_replicas_get_less() -> None:
    slow = Load(1, 0, 500, decode_tokens_per_s=1000, prefill_tokens_per_s=1000)
    assert chosen([slow, busy(2)], [0, 0]) == (1, Reason.LOAD)


def test_a_score_is_the_seconds_a_request_costs() -> None:
    assert score(Work(800, 100), Load(prefill_tokens_per_s=8000), 0) == pytest.approx(0.1)
    assert score(Work(800, 100), Load(prefill_tokens_per_s=8000), 9999) == 0
    one = Load(1, 0, 100, prefill_tokens_per_s=8000, decode_tokens_per_s=1000)
    assert score(Work(800, 100), one, 800) == pytest.approx(0.1), "of two times 100 tokens, 50 are expected to be side by side"
    assert score(Work(800, 100), one, 0) == pytest.approx(0.3), "and the other one waits, too"
