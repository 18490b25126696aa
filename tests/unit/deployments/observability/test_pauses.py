"""Pauses of a process: known by its own clock, and told from what blocks it."""

import pytest

from deployments.observability.pauses import BUSY, PAUSE_S, Pauses

LONG = 20 * PAUSE_S


@pytest.mark.parametrize(
    ("seconds", "cpu_s", "paused"),
    [(LONG, 0.1, True), (PAUSE_S, 0.0, False), (LONG, BUSY * LONG, False), (0.01, 0.0, False)],
    ids=["stopped", "a lag", "blocked by work", "nothing"],
)
def test_what_a_pause_is(seconds: float, cpu_s: float, paused: bool) -> None:
    pauses = Pauses()
    assert not pauses.since(0)
    pauses.note(seconds, cpu_s)
    assert pauses.since(0) == paused


def test_what_began_after_a_pause_is_not_of_it() -> None:
    pauses = Pauses(clock=lambda: 100.0)
    pauses.note(LONG, 0)
    assert [pauses.since(when) for when in (99.0, 100.0, 101.0)] == [True, False, False]
