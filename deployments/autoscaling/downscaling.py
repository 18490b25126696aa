"""Which LLM replicas stop when there are to be fewer: those with the fewest requests.

Serve (Ray 2.60.0, ray/serve/_private/deployment_scheduler.py) has no setting for it. It stops the replicas that have not started
yet, then those on the node with the fewest replicas, the newest first. Goes when a policy can name the replicas.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from ray.serve._private.deployment_scheduler import DeploymentScheduler

from deployments.patching import patch

Id = TypeVar("Id")


def emptiest(running: Iterable[Id], preferred: set[Id], count: int, load: Callable[[Id], float | None]) -> set[Id]:
    """Return the `count` running replicas with the fewest requests; of those within a factor of two, the `preferred` ones first.

    `load` returns a replica's requests. A replica whose load is unknown (None) comes last: it may be full.
    """

    def order(replica: Id) -> tuple[float, bool]:
        requests = load(replica)
        return float("inf") if requests is None else int(requests).bit_length(), replica not in preferred

    return set(sorted(running, key=order)[:count])


def install(load: Callable[[Any], float | None]) -> None:
    """Make Serve's controller, whose process this is, stop the emptiest LLM replicas first. `load` takes a replica's id."""
    original = getattr(DeploymentScheduler._get_replicas_to_stop, "original", DeploymentScheduler._get_replicas_to_stop)

    def to_stop(self: DeploymentScheduler, deployment_id: Any, *arguments: Any, **options: Any) -> set[Any]:
        chosen: set[Any] = original(self, deployment_id, *arguments, **options)
        if deployment_id.name != "LLM":
            return chosen
        running = self._running_replicas[deployment_id].keys()
        replaced = chosen & running
        return (chosen - replaced) | emptiest(running, replaced, len(replaced), load)

    to_stop.original = original  # type: ignore[attr-defined]
    patch(
        DeploymentScheduler,
        "_get_replicas_to_stop",
        to_stop,
        why="Serve (Ray 2.60.0) has no setting for which replicas stop: unstarted ones do, then the newest on the emptiest node",
        until="a policy can name the replicas",
    )
