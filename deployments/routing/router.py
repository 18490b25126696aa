"""Which replica gets a request: the LLM replica with the best score (`deployments.routing.score`), and always the same UI replica.

Serve's own router compares queue lengths that are updated when a request is *sent*, so a burst that is routed in one go
lands on one replica (seen on Ray 2.60.0). Here a request counts from when it is *assigned* until its last token has arrived, some
milliseconds before its handle call returns.

Serve sends router classes to other processes by value, together with the contents of this module's globals (Ray 2.60.0). The counts
are therefore in a module of their own, which routers reach by its name.
"""

import hashlib
import random

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from deployments.routing import placement

NAMED = ("carry", "follow_cache")
"""Methods whose first argument names the replica."""


class LeastRequestsRouter(RequestRouter):
    """Chooses the replica that the placement chooses.

    The samples of one request (same first argument, its group) go to one replica: they share the prompt. A call of `NAMED` goes to
    the replica that its first argument names.
    """

    def initialize_state(self, **kwargs: object) -> None:
        """Set up; called by Serve."""
        self._requests: dict[str, str] = {}  # Serve's id of a handle call -> our id of its request

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Record which replicas there are; called by Serve."""
        super().update_replicas(replicas)
        placement.PLACEMENT.update(replicas)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the chosen replica as the only one of the only rank."""
        if pending_request is None:
            usable = placement.PLACEMENT.usable(candidate_replicas)
            return [[random.choice(usable)]] if usable else []
        _pause_between_tries(pending_request)
        if pending_request.metadata.call_method in NAMED:
            named = pending_request.args[0]
            return [[replica] for replica in candidate_replicas if replica.replica_id.unique_id == named]
        group, request_id = _identify(pending_request)
        chosen = placement.PLACEMENT.choose(group, candidate_replicas, request_id)
        if chosen is None:
            placement.PLACEMENT.waits(request_id)  # it may have been assigned to one that could not be reached
            return []
        placement.PLACEMENT.assign(request_id, chosen.replica_id, group)
        internal_request_id = pending_request.metadata.internal_request_id
        self._requests[internal_request_id] = request_id
        pending_request.future.add_done_callback(lambda future: self._left(internal_request_id) if future.cancelled() else None)
        return [[chosen]]

    async def _select_from_candidate_replicas(self, candidates: list[RunningReplica], backoff_index: int) -> RunningReplica | None:
        """Return the one candidate, unless it has gone meanwhile.

        Serve's own method asks replicas for their queue lengths and drops one that takes longer than 100 ms, so that under load a
        burst goes to the other (Ray 2.60.0). A replica that is full or stopping refuses the call itself.
        """
        return self._replicas.get(candidates[0].replica_id)

    def on_replica_actor_unavailable(self, replica_id: ReplicaID) -> None:
        """Have other replicas tried; called by Serve.

        Otherwise Serve would try the same replica again at once: it has the fewest requests, because it is dead.
        """
        placement.PLACEMENT.unreached(replica_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Stop counting a request that has not ended before; called by Serve for every call that was sent, however it ended."""
        if (request_id := self._requests.get(internal_request_id)) == internal_request_id:
            self._left(internal_request_id)  # not a `generate` call, so nobody else reports its end
        elif request_id is not None:
            del self._requests[internal_request_id]
            placement.PLACEMENT.ended(request_id)

    def _left(self, internal_request_id: str) -> None:
        if (request_id := self._requests.pop(internal_request_id, None)) is not None:
            placement.PLACEMENT.left(request_id)


class StickyRouter(RequestRouter):
    """Sends calls with the same first argument to the same replica, from whichever ingress, as long as that replica lives.

    It uses rendezvous hashing: when a replica comes or goes, only that replica's own calls move.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the chosen replica as the only one of the only rank."""
        if not candidate_replicas:
            return []
        if pending_request is not None:
            _pause_between_tries(pending_request)
        key = str(pending_request.args[0]) if pending_request is not None and pending_request.args else ""

        def weight(replica: RunningReplica) -> bytes:
            return hashlib.blake2b(f"{key} {replica.replica_id.unique_id}".encode(), digest_size=8).digest()

        return [[max(candidate_replicas, key=weight)]]


def _pause_between_tries(request: PendingRequest) -> None:
    """Have Serve's router wait a moment before it asks for a choice again.

    Otherwise it asks again and again without a pause (Ray 2.60.0, `_choose_replicas_with_backoff`). While all replicas are lost,
    nothing else would then run on the event loop: no other request, no comment in a stream, no `/health`.
    """
    request.routing_context.should_backoff = True


def _identify(request: PendingRequest) -> tuple[str, str]:
    """Return a call's group and request id: the first two arguments of `generate`. For any other call both are Serve's id of it."""
    if request.metadata.call_method == "generate":
        group, request_id, *_ = request.args
        return group, request_id
    return request.metadata.internal_request_id, request.metadata.internal_request_id
