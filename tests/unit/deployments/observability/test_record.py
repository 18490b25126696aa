"""The record of a request: how it ended, why, and whether its timeline is of one engine."""

import pytest

from deployments.observability import record as record_module
from deployments.observability.record import Record, Timeline, Visit, failed


@pytest.mark.parametrize(
    ("status", "error", "complete", "outcome"),
    [
        (200, "", True, "ok"),
        (200, "", False, "disconnected"),
        (0, "", False, "disconnected"),
        (200, "engine_lost", True, "failed"),
        (200, "engine_lost", False, "failed"),
        (400, "out_of_bounds", True, "refused"),
        (429, "queue_full", True, "refused"),
        (503, "engine_unavailable", True, "refused"),
        (500, "internal_error", True, "failed"),
        (504, "deadline_exceeded", True, "failed"),
    ],
)
def test_how_a_request_ended(status: int, error: str, complete: bool, outcome: str) -> None:
    assert Record(0.0, status=status, error=error, complete=complete).outcome == outcome


def test_the_current_request_or_a_given_one_is_told_why_it_failed() -> None:
    failed("nobody's")
    current, other = Record(0.0), Record(0.0)
    token = record_module.current.set(current)
    failed("draining")
    failed("engine_lost", other)
    record_module.current.reset(token)
    assert (current.error, other.error) == ("draining", "engine_lost")


@pytest.mark.parametrize(("visits", "moved"), [(0, False), (1, False), (2, True)])
def test_a_request_has_moved_that_was_on_two_replicas(visits: int, moved: bool) -> None:
    assert Timeline("a", "alice", 1, 0.0, visits=[Visit() for _ in range(visits)]).moved == moved
