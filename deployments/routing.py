"""Which replica gets a request: of LLM replicas the one with the fewest requests of ours, of UI replicas always the same.

Serve's own router compares queue lengths that are updated when a request is *sent*, so a burst that is routed in one go
lands on one replica (seen on Ray 2.60.0). Here a request counts from when it is *assigned* until its last token is here, which is
some milliseconds before its handle call returns.

Serve sends the routers' classes to other processes by value, with what this module's globals hold (Ray 2.60.0): the counts are
therefore in a module of their own, which routers reach by its name.
"""

import hashlib
import random

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from deployments import placement


class LeastRequestsRouter(RequestRouter):
    """Chooses the replica with the fewest assigned requests; equals are chosen among at random.

    The samples of one request (same first argument, its group) go to one replica: they share the prompt. A call of `carry` goes to
    the replica that its first argument names.
    """

    def initialize_state(self, **kwargs: object) -> None:
        """Set up; called by Serve."""
        self._requests: dict[str, str] = {}  # Serve's id of a handle call -> our id of its request

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take the replicas that there are; called by Serve."""
        super().update_replicas(replicas)
        placement.PLACEMENT.known = {replica.replica_id.unique_id: replica for replica in replicas}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the chosen replica as the only one of the only rank."""
        if pending_request is None:
            usable = placement.PLACEMENT.usable(candidate_replicas)
            return [[random.choice(usable)]] if usable else []
        _pause_between_tries(pending_request)
        if pending_request.metadata.call_method == "carry":
            named = pending_request.args[0]
            return [[replica] for replica in candidate_replicas if replica.replica_id.unique_id == named]
        group, request_id = _identify(pending_request)
        chosen = placement.PLACEMENT.choose(group, candidate_replicas)
        if chosen is None:
            placement.PLACEMENT.left(request_id)  # of one that could not be reached
            return []
        placement.PLACEMENT.assign(request_id, chosen.replica_id, group)
        internal_request_id = pending_request.metadata.internal_request_id
        self._requests[internal_request_id] = request_id
        pending_request.future.add_done_callback(lambda future: self._left(internal_request_id) if future.cancelled() else None)
        return [[chosen]]

    async def _select_from_candidate_replicas(self, candidates: list[RunningReplica], backoff_index: int) -> RunningReplica | None:
        """Return the one candidate, unless it has gone meanwhile.

        Serve's own asks replicas for their queue lengths and drops one that is slower than 100 ms, so that under load a burst
        goes to the other (Ray 2.60.0). A replica that is full or leaving refuses the call itself.
        """
        return self._replicas.get(candidates[0].replica_id)

    def on_replica_actor_unavailable(self, replica_id: ReplicaID) -> None:
        """Try others; called by Serve, which else asks again at once the same one: it has the fewest requests, being dead."""
        placement.PLACEMENT.unreached(replica_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Count a request out, if it has not ended before; called by Serve for every call that was sent, however it ended."""
        if (request_id := self._requests.get(internal_request_id)) == internal_request_id:
            self._left(internal_request_id)  # no request for tokens: nobody else says that it left
        elif request_id is not None:
            del self._requests[internal_request_id]
            placement.PLACEMENT.ended(request_id)

    def _left(self, internal_request_id: str) -> None:
        if (request_id := self._requests.pop(internal_request_id, None)) is not None:
            placement.PLACEMENT.left(request_id)


class StickyRouter(RequestRouter):
    """Sends calls with the same first argument to the same replica, from whichever ingress, as long as it lives.

    By rendezvous hashing: when a replica comes or goes, only the calls that are its own move.
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

    Without, it asks again and again without a pause (Ray 2.60.0, `_choose_replicas_with_backoff`), and while all replicas are lost
    nothing else runs on the event loop: no other request, no comment in a stream, no `/health`.
    """
    request.routing_context.should_backoff = True


def _identify(request: PendingRequest) -> tuple[str, str]:
    """Return group and id of a `generate` call, its first two arguments. Other calls are requests of their own."""
    if request.metadata.call_method == "generate":
        group, request_id, *_ = request.args
        return group, request_id
    return request.metadata.internal_request_id, request.metadata.internal_request_id
