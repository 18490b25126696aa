"""A reply that is being generated: its turns, its own speed, and the seconds that it and others still take."""

import pytest

from deployments.routing.lengths import Asked, Lengths
from deployments.routing.prospect import MEASURED, Prospect, left_s

TURN = 7


def known() -> Lengths:
    """Return what is learned from replies of 100 tokens, and of 500 with two turns."""
    lengths = Lengths()
    for _ in range(60):
        lengths.observe(Asked(50), 100)
        lengths.observe(Asked(50), 500, [20, 60])
    return lengths


def test_turns_are_found_as_the_tokens_come() -> None:
    tokens: list[int] = []
    reply = Prospect(known(), Asked(50, 4096), tokens, frozenset({TURN}))
    tokens += [1] * 40
    assert reply.forecast().high < 80
    tokens[20:21] = [TURN]  # which it has read already
    assert reply.turns == []
    tokens += [TURN, *[1] * 30, TURN]
    assert reply.forecast().low > 300
    assert reply.turns == [40, 71]


def test_seconds_are_told_at_the_replys_own_speed() -> None:
    tokens = [1]
    reply = Prospect(known(), Asked(50, 4096), tokens)
    assert reply.before == 1, "it goes on from elsewhere"
    reply.first_s = 1000.0
    tokens += [1] * MEASURED
    assert reply.eta_s(1001.0) is None, "a few tokens are no speed"
    tokens += [1] * (32 - MEASURED)
    assert reply.tokens_per_s(1001.0) == 31.0
    low, median, high = reply.eta_s(1001.0) or [0, 0, 0]
    assert low <= median <= high
    assert (low, high) == (pytest.approx(67 / 31, abs=0.3), pytest.approx(67 / 31, abs=0.3)), "it has not turned"


def test_an_end_teaches_and_a_length_that_was_forced_does_not() -> None:
    lengths = Lengths()
    for _ in range(40):
        Prospect(lengths, Asked(50, 4096), [1] * 300).ended(cut=False)
        Prospect(lengths, Asked(50, 900, min_tokens=900), [1] * 900).ended(cut=False)
    assert lengths.forecast(Asked(50, 4096)).high < 330


def test_seconds_left_of_all_replies_together() -> None:
    lengths = known()
    running = [Prospect(lengths, Asked(50, 4096), [], first_s=1000.0) for _ in range(3)]
    assert left_s(running, 1010.0) is None, "nobody knows how fast they are"
    for reply in running[:2]:
        reply.tokens = [1] * 201
    told = left_s(running, 1010.0)
    assert told is not None
    assert told.keys() == {"p10", "p50", "p90"}
    assert 4 < told["p10"] < 6, "the one that has not begun may have 100 tokens, at 20 a second as the others"
    assert told["p90"] < 27
    assert left_s([], 1010.0) is None
