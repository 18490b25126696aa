"""Which LLM replicas leave when there are to be fewer: those with the fewest requests.

Serve (Ray 2.60.0, ray/serve/_private/deployment_scheduler.py) has no setting for it: it stops what has not started yet, then what
is on the node with the fewest replicas, the newest first. Goes when a policy can name the replicas.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from ray.serve._private.deployment_scheduler import DeploymentScheduler

Id = TypeVar("Id")


def emptiest(running: Iterable[Id], theirs: set[Id], count: int, load: Callable[[Id], float | None]) -> set[Id]:
    """Return the `count` emptiest of the running replicas; of those that differ by less than a factor of two, `theirs` first.

    `load` gives a replica's requests; one of which it is not known may be full.
    """

    def order(replica: Id) -> tuple[float, bool]:
        requests = load(replica)
        return float("inf") if requests is None else int(requests).bit_length(), replica not in theirs

    return set(sorted(running, key=order)[:count])


def install(load: Callable[[Any], float | None]) -> None:
    """Have Serve's controller, whose process this is, stop the emptiest LLM replicas first. `load` is of a replica's id."""
    original = getattr(DeploymentScheduler._get_replicas_to_stop, "original", DeploymentScheduler._get_replicas_to_stop)

    def to_stop(self: DeploymentScheduler, deployment_id: Any, *arguments: Any, **options: Any) -> set[Any]:
        theirs: set[Any] = original(self, deployment_id, *arguments, **options)
        if deployment_id.name != "LLM":
            return theirs
        running = self._running_replicas[deployment_id].keys()
        chosen = theirs & running
        return (theirs - chosen) | emptiest(running, chosen, len(chosen), load)

    to_stop.original = original  # type: ignore[attr-defined]
    DeploymentScheduler._get_replicas_to_stop = to_stop
