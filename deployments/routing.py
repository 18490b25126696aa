"""Which LLM replica gets a request: the one with the fewest requests of ours.

Serve's own router compares queue lengths that are updated when a request is *sent*, so a burst that is routed in one go
lands on one replica (seen on Ray 2.60.0). This one counts a request when it is *assigned*.
"""

import random
from collections import Counter, OrderedDict

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

GROUPS_KEPT = 4096


class LeastRequestsRouter(RequestRouter):
    """Chooses the replica with the fewest assigned requests; equals are chosen among at random.

    The samples of one request (same first argument, its group) go to one replica: they share the prompt.
    """

    def initialize_state(self, **kwargs: object) -> None:
        """Set up the counts; called by Serve."""
        self._assigned: dict[str, ReplicaID] = {}  # internal request id -> replica
        self._count: Counter[ReplicaID] = Counter()
        self._groups: OrderedDict[str, ReplicaID] = OrderedDict()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the chosen replica as the only one of the only rank."""
        if not candidate_replicas:
            return []
        if pending_request is None:
            return [[random.choice(candidate_replicas)]]
        request_id = pending_request.metadata.internal_request_id
        self.on_request_completed(None, request_id)  # asked again: the last choice did not take it
        chosen = self._of_group(candidate_replicas, pending_request) or min(
            candidate_replicas, key=lambda replica: (self._count[replica.replica_id], random.random())
        )
        self._assigned[request_id] = chosen.replica_id
        self._count[chosen.replica_id] += 1
        self._groups[_group(pending_request)] = chosen.replica_id
        if len(self._groups) > GROUPS_KEPT:
            self._groups.popitem(last=False)
        pending_request.future.add_done_callback(
            lambda future: self.on_request_completed(None, request_id) if future.cancelled() else None
        )
        return [[chosen]]

    def on_request_completed(self, replica_id: ReplicaID | None, internal_request_id: str) -> None:
        """Count a request out; called by Serve for every request that was sent, however it ended."""
        if (replica := self._assigned.pop(internal_request_id, None)) is not None:
            self._count[replica] -= 1
            if not self._count[replica]:
                del self._count[replica]

    def _of_group(self, candidates: list[RunningReplica], request: PendingRequest) -> RunningReplica | None:
        """Return the candidate that has the request's group, or None."""
        replica_id = self._groups.get(_group(request))
        return next((replica for replica in candidates if replica.replica_id == replica_id), None)


def _group(request: PendingRequest) -> str:
    """Return the group of a `generate` call: its first argument. Other calls are groups of one."""
    if request.metadata.call_method == "generate":
        return str(request.args[0])
    return request.metadata.internal_request_id
