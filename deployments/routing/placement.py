"""Which requests of this process are on which LLM replica: what the router writes and the engine client reads."""

import random
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable

from ray.serve.request_router import ReplicaID, RunningReplica

LOST_S = 30.0
UNREACHED_S = 2.0
GROUPS_KEPT = 4096


class Placement:
    """The requests of this process that are on replicas, and the replicas that were lost recently."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.RLock()  # without throughput mode Serve's routers run in a thread of their own
        self._replica: dict[str, ReplicaID] = {}
        self._times: Counter[str] = Counter()
        self._counted: set[str] = set()
        self._count: Counter[ReplicaID] = Counter()
        self._lost: dict[ReplicaID, float] = {}
        self._groups: OrderedDict[str, ReplicaID] = OrderedDict()
        self.known: dict[str, RunningReplica] = {}
        """The replicas that Serve reported last, by the ids that they use for themselves."""

    def choose(self, group: str, candidates: list[RunningReplica]) -> RunningReplica | None:
        """Return the candidate that has others of a group, else the one with the fewest requests; ties are broken at random.

        Return None if all candidates were lost recently.
        """
        with self._lock:
            candidates = self.usable(candidates)
            if not candidates:
                return None
            with_group = next((replica for replica in candidates if replica.replica_id == self._groups.get(group)), None)
            return with_group or min(candidates, key=lambda replica: (self.of(replica.replica_id), random.random()))

    def of(self, replica_id: ReplicaID) -> int:
        """Return the number of requests on a replica."""
        return self._count[replica_id]

    def assign(self, request_id: str, replica_id: ReplicaID, group: str) -> None:
        """Count a request of a group on a replica, and no longer on the one that it was assigned to before."""
        with self._lock:
            self.ended(request_id)
            self._groups[group] = replica_id
            if len(self._groups) > GROUPS_KEPT:
                self._groups.popitem(last=False)
            self._replica[request_id] = replica_id
            self._times[request_id] += 1
            self._counted.add(request_id)
            self._count[replica_id] += 1

    def assigned(self, request_id: str) -> int:
        """Return how often a request was given to a replica, 0 while it waits for one. A full replica hands it back."""
        return self._times.get(request_id, 0)

    def ended(self, request_id: str) -> None:
        """Stop counting a request on its replica; it is no error if it is not counted."""
        with self._lock:
            if request_id in self._counted:
                self._counted.remove(request_id)
                replica_id = self._replica[request_id]
                self._count[replica_id] -= 1
                if not self._count[replica_id]:
                    del self._count[replica_id]

    def lost(self, request_id: str) -> None:
        """Record that a request's replica failed: for `LOST_S` it gets no others. By then Serve knows, or it was a false alarm."""
        if (replica_id := self._replica.get(request_id)) is not None:
            self._avoid(replica_id, LOST_S)

    def unreached(self, replica_id: ReplicaID) -> None:
        """Record that a replica could not be reached: for `UNREACHED_S` it gets no requests, so that others are asked meanwhile."""
        self._avoid(replica_id, UNREACHED_S)

    def _avoid(self, replica_id: ReplicaID, seconds: float) -> None:
        self._lost[replica_id] = max(self._clock() + seconds, self._lost.get(replica_id, 0.0))

    def left(self, request_id: str) -> None:
        """Forget a request."""
        with self._lock:
            self.ended(request_id)
            self._replica.pop(request_id, None)
            self._times.pop(request_id, None)

    def usable(self, replicas: list[RunningReplica]) -> list[RunningReplica]:
        """Return the replicas that were not lost recently."""
        if not self._lost:
            return replicas
        now = self._clock()
        self._lost = {replica_id: until for replica_id, until in self._lost.items() if until > now}
        return [replica for replica in replicas if replica.replica_id not in self._lost]


PLACEMENT = Placement()
