"""Which requests of this process are on which LLM replica: what the router writes and the engine client reads."""

import math
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ray.serve.request_router import ReplicaID, RunningReplica

from deployments.routing.score import Load, Reason, Work, choose
from deployments.settings import Settings

LOST_S = 30.0
UNREACHED_S = 2.0
GROUPS_KEPT = 4096
USUAL_WEIGHT = 0.02
TOLD_S = 10.0
"""What a replica has told of the requests of others counts for this long; it is told again before, while there are any."""
NONE = (0.0, 0.0, 0.0)
COMING_TOKENS = 256
"""A prompt of which at least so many tokens must be read counts as cached where they will be.

To hash its blocks of 16 costs some 0.15 µs a token, and shorter ones are read soon.
"""

Cached = Callable[[Any], Mapping[str, float] | None]
"""Returns how many tokens of a prompt (`Work.blocks`) each replica has cached, by the replicas' own ids; None if not known."""
Coming = Callable[[Any, str], Callable[[], None] | None]
"""Counts a prompt as cached on the replica with this id, which will read it, until what is returned is called."""


@dataclass(slots=True)
class Placed:
    """A request of this process. `counted` is whether it is on `replica` now; `times` is how often it was given to one.

    `uncached_tokens` are those of its prompt that the replica chosen last must read; `prefill_tokens` and `expected_tokens` are its
    part of the load of `replica`. `forget` ends that its prompt counts as coming there.
    """

    work: Work = field(default_factory=Work)
    reason: Reason = Reason.REQUESTS
    uncached_tokens: float = 0.0
    replica: ReplicaID | None = None
    times: int = 0
    counted: bool = False
    prefill_tokens: float = 0.0
    expected_tokens: float = 0.0
    forget: Callable[[], None] | None = None

    def known(self) -> None:
        """Leave it to the cache events what of its prompt is cached."""
        if self.forget is not None:
            self.forget()
            self.forget = None


@dataclass(slots=True)
class OnReplica:
    """The requests on a replica: `own` is how many of this process are counted, and `load` is theirs and that of `others`.

    What is known of others was told at `told_s`.
    """

    load: Load
    own: int = 0
    others: tuple[float, float, float] = NONE
    told_s: float = 0.0

    def change(self, requests: float, prefill_tokens: float, expected_tokens: float) -> None:
        """Add to the load."""
        load = self.load
        load.requests += requests
        load.prefill_tokens += prefill_tokens
        load.expected_tokens += expected_tokens


class Placement:
    """The requests of this process that are on replicas, what replicas tell of those of others, and replicas lost recently."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, rng: Callable[[], float] = random.random) -> None:
        self._clock, self._random = clock, rng
        self._lock = threading.RLock()  # without throughput mode Serve's routers run in a thread of their own
        self._requests: dict[str, Placed] = {}
        self._loads: dict[ReplicaID, OnReplica] = {}
        self._forget_s = 0.0
        self._usual_tokens = 0.0  # expected of a request that gets a replica, a mean in which older ones fade
        self._lost: dict[ReplicaID, float] = {}
        self._groups: OrderedDict[str, ReplicaID] = OrderedDict()
        self.known: dict[str, RunningReplica] = {}
        """The replicas that Serve reported last, by the ids that they use for themselves."""
        self.empty = Load()
        """The load of a replica without requests whose speeds are not known."""
        self._measured: dict[ReplicaID, Load] = {}  # the same of those whose speeds are
        self.slots = self.empty.slots
        """How many requests a replica runs at once."""
        self.policy = "tokens"
        self.caches = True
        """Whether replicas cache prefixes at all."""
        self.cached: Cached = lambda blocks: None
        self.coming: Coming = lambda blocks, replica: None
        self.on_assigned: Callable[[Reason, float], None] = lambda reason, cached_tokens: None
        """Called with why a request was given to a replica, and how many tokens of its prompt should be cached there."""

    def set_up(self, settings: Settings) -> None:
        """Take the policy, and what a replica can do."""
        replica, engine = settings.autoscaling, settings.engine
        self.policy, self.caches = settings.routing.policy, engine.get("enable_prefix_caching") is not False
        self.slots = engine.get("max_num_seqs") or replica.max_num_seqs
        self.empty = Load(
            prefill_tokens_per_s=replica.prefill_tokens_per_s,
            decode_tokens_per_s=1 / replica.step_per_request_s,
            slots=self.slots if self.policy == "tokens" else math.inf,
        )

    def update(self, replicas: list[RunningReplica]) -> None:
        """Record which replicas there are."""
        with self._lock:
            self.known = {replica.replica_id.unique_id: replica for replica in replicas}
            there = {replica.replica_id for replica in replicas}
            self._loads = {replica_id: on for replica_id, on in self._loads.items() if replica_id in there or on.own}
            self._measured = {replica_id: load for replica_id, load in self._measured.items() if replica_id in there}

    def told(self, replica: str, requests: int, prefill_tokens: float) -> None:
        """Record how many requests of others a replica has, and how many tokens of their prompts it has still to read."""
        with self._lock:
            if (known := self.known.get(replica)) is None:
                return
            on = self._on(known.replica_id)
            on.told_s = self._clock()
            self._others(on, (requests, prefill_tokens, requests * self._usual_tokens))

    def measured(self, replica: str, prefill_tokens_per_s: float, decode_tokens_per_s: float) -> None:
        """Record how fast a replica is, by its own measurement."""
        with self._lock:
            if (known := self.known.get(replica)) is None:
                return
            speeds = {"prefill_tokens_per_s": prefill_tokens_per_s, "decode_tokens_per_s": decode_tokens_per_s}
            self._measured[known.replica_id] = replace(self.empty, **speeds)
            if (on := self._loads.get(known.replica_id)) is not None:
                on.load = replace(on.load, **speeds)

    def _empty(self, replica_id: ReplicaID) -> Load:
        return self._measured.get(replica_id, self.empty)

    def _others(self, on: OnReplica, others: tuple[float, float, float]) -> None:
        on.change(*(now - before for now, before in zip(others, on.others, strict=True)))
        on.others = others

    def _forget_old(self) -> None:
        """Forget what was told too long ago; once a second is often enough."""
        if (now := self._clock()) >= self._forget_s:
            self._forget_s = now + 1.0
            for on in self._loads.values():
                if on.others is not NONE and now - on.told_s > TOLD_S:
                    self._others(on, NONE)

    def _on(self, replica_id: ReplicaID) -> OnReplica:
        if (on := self._loads.get(replica_id)) is None:
            on = self._loads[replica_id] = OnReplica(replace(self._empty(replica_id)))
        return on

    def expect(self, request_id: str, work: Work) -> None:
        """Record what a request is expected to cost, before a replica is chosen for it."""
        with self._lock:
            placed = self._requests.setdefault(request_id, Placed())
            placed.work, placed.uncached_tokens = work, work.prompt_tokens

    def choose(self, group: str, candidates: list[RunningReplica], request_id: str | None = None) -> RunningReplica | None:
        """Return the candidate that a request should go to (see `deployments.routing.score`); None if all were lost recently.

        A request that is counted was handed back by its replica. It need not be with its group then: it may be its group.
        """
        with self._lock:
            if request_id is not None:
                self.ended(request_id)
            self._forget_old()
            candidates = self.usable(candidates)
            if not candidates:
                return None
            placed = self._requests.get(request_id) if request_id is not None else None
            work = placed.work if placed is not None else Work()
            with_group = None if placed is not None and placed.times else self._groups.get(group)
            cached = self._cached_on(candidates, work)
            chosen = choose(
                work,
                [self._load(replica.replica_id) for replica in candidates],
                cached,
                group=next((at for at, replica in enumerate(candidates) if replica.replica_id == with_group), None),
                random=self._random,
            )
            if placed is not None:
                there = cached[chosen.replica] if cached is not None else 0.0
                if chosen.reason is Reason.TOGETHER and self.caches:  # the others have it read, or will have
                    there = work.prompt_tokens
                placed.reason, placed.uncached_tokens = chosen.reason, max(work.prompt_tokens - there, 0.0)
            return candidates[chosen.replica]

    def _load(self, replica_id: ReplicaID) -> Load:
        return on.load if (on := self._loads.get(replica_id)) is not None else self._empty(replica_id)

    def _cached_on(self, candidates: list[RunningReplica], work: Work) -> list[float] | None:
        if self.policy == "requests":
            return None
        if (cached := self.cached(work.blocks) if self.caches else {}) is None:
            return None
        return [cached.get(replica.replica_id.unique_id, 0.0) for replica in candidates]

    def idle(self, kept: float) -> float:
        """Return how many more requests the replicas can run at once, if each keeps this share of its slots free."""
        with self._lock:
            loads = [self._load(replica.replica_id) for replica in self.usable(list(self.known.values()))]
        return sum(max(0.0, self.slots * (1 - kept) - load.requests) for load in loads)

    def of(self, replica_id: ReplicaID) -> int:
        """Return the number of requests on a replica."""
        return on.own if (on := self._loads.get(replica_id)) is not None else 0

    def assign(self, request_id: str, replica_id: ReplicaID, group: str) -> None:
        """Count a request of a group on a replica, and no longer on the one that it was assigned to before."""
        with self._lock:
            self.ended(request_id)
            self._groups[group] = replica_id
            if len(self._groups) > GROUPS_KEPT:
                self._groups.popitem(last=False)
            expected = request_id in self._requests  # other calls than those that generate are not
            placed = self._requests.setdefault(request_id, Placed())
            placed.replica, placed.counted = replica_id, True
            placed.times += 1
            placed.prefill_tokens, placed.expected_tokens = placed.uncached_tokens, placed.work.expected_tokens
            if expected:
                self._usual_tokens += USUAL_WEIGHT * (placed.expected_tokens - self._usual_tokens)
            if placed.prefill_tokens >= COMING_TOKENS and self.caches and self.policy != "requests" and len(self.known) > 1:
                placed.forget = self.coming(placed.work.blocks, replica_id.unique_id)
            on = self._on(replica_id)
            on.own += 1
            on.change(1, placed.prefill_tokens, placed.expected_tokens)
        if expected:
            self.on_assigned(placed.reason, placed.work.prompt_tokens - placed.uncached_tokens)

    def unread(self, request_id: str) -> float:
        """Return how many tokens of a request's prompt its replica is expected to read."""
        return placed.prefill_tokens if (placed := self._requests.get(request_id)) is not None else 0.0

    def progressed(self, request_id: str, expected_tokens: float) -> None:
        """Record that a request's prompt has been read, and how many tokens are still expected of it.

        Cache events may come a little later than the first token. At the next report they are there.
        """
        with self._lock:
            if (placed := self._requests.get(request_id)) is not None and placed.counted and placed.replica is not None:
                if not placed.prefill_tokens:
                    placed.known()
                self._loads[placed.replica].change(0, -placed.prefill_tokens, expected_tokens - placed.expected_tokens)
                placed.prefill_tokens, placed.expected_tokens = 0.0, expected_tokens

    def assigned(self, request_id: str) -> int:
        """Return how often a request was given to a replica, 0 while it waits for one. A full replica hands it back."""
        return placed.times if (placed := self._requests.get(request_id)) is not None else 0

    def ended(self, request_id: str) -> None:
        """Stop counting a request on its replica; it is no error if it is not counted."""
        with self._lock:
            if (placed := self._requests.get(request_id)) is not None and placed.counted and placed.replica is not None:
                placed.counted = False
                placed.known()
                on = self._loads[placed.replica]
                on.own -= 1
                on.change(-1, -placed.prefill_tokens, -placed.expected_tokens)
                if not on.own:
                    self._emptied(placed.replica, on)

    def _emptied(self, replica_id: ReplicaID, on: OnReplica) -> None:
        """Forget a replica without requests of ours, or at least what the sums of their floats have left."""
        if on.others[0]:
            on.load = replace(self._empty(replica_id))
            on.change(*on.others)
        else:
            del self._loads[replica_id]

    def lost(self, request_id: str) -> None:
        """Record that a request's replica failed: for `LOST_S` it gets no others. By then Serve knows, or it was a false alarm."""
        if (placed := self._requests.get(request_id)) is not None and placed.replica is not None:
            self._avoid(placed.replica, LOST_S)

    def unreached(self, replica_id: ReplicaID) -> None:
        """Record that a replica could not be reached: for `UNREACHED_S` it gets no requests, so that others are asked meanwhile."""
        self._avoid(replica_id, UNREACHED_S)

    def _avoid(self, replica_id: ReplicaID, seconds: float) -> None:
        self._lost[replica_id] = max(self._clock() + seconds, self._lost.get(replica_id, 0.0))

    def waits(self, request_id: str) -> None:
        """Record that a request has no replica and waits for one."""
        with self._lock:
            self.ended(request_id)
            if (placed := self._requests.get(request_id)) is not None:
                placed.replica, placed.times = None, 0

    def left(self, request_id: str) -> None:
        """Forget a request."""
        with self._lock:
            self.ended(request_id)
            self._requests.pop(request_id, None)

    def usable(self, replicas: list[RunningReplica]) -> list[RunningReplica]:
        """Return the replicas that were not lost recently."""
        if not self._lost:
            return replicas
        now = self._clock()
        self._lost = {replica_id: until for replica_id, until in self._lost.items() if until > now}
        return [replica for replica in replicas if replica.replica_id not in self._lost]


PLACEMENT = Placement()
