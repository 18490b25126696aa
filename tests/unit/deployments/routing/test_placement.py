"""Which replica has which requests, and which gets the next one."""

from deployments.routing.placement import Placement


def test_what_left_is_forgotten() -> None:
    placed = Placement()
    placed.assign("a", "replica-0", "a")  # type: ignore[arg-type]
    assert placed.assigned("a")
    placed.ended("a")
    assert placed.of("replica-0") == 0  # type: ignore[arg-type]
    placed.left("a")
    placed.left("a")
    assert not placed.assigned("a")
    assert vars(placed)["_replica"] == {}
