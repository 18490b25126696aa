"""One run: a workload on replicas, each request where a policy sends it."""

import heapq
from dataclasses import dataclass, field

import numpy as np

from cluster.simulate.replica_model import Floats, ReplicaModel
from cluster.simulate.routing.policies import Policy
from cluster.simulate.routing.replica import Replica, Request
from cluster.simulate.routing.workloads import START_S, Workload

WARM_S = 60.0
TICK_S = 0.5


@dataclass
class Outcome:
    """What came of a run. Requests count that came after the first minute."""

    ttft_s: Floats
    e2e_s: Floats
    prefilled: float
    prompts: float
    preempted: int
    most: float
    """The share of requests that the fullest replica got, as a multiple of the fair one."""

    def row(self) -> dict[str, float]:
        """Return its figures."""
        return {
            "ttft_p50": float(np.percentile(self.ttft_s, 50)),
            "ttft_p95": float(np.percentile(self.ttft_s, 95)),
            "e2e_p50": float(np.percentile(self.e2e_s, 50)),
            "e2e_p95": float(np.percentile(self.e2e_s, 95)),
            "e2e_mean": float(np.mean(self.e2e_s)),
            "prefilled": self.prefilled,
            "cached": 1 - self.prefilled / self.prompts,
            "most": self.most,
            "preempted": self.preempted,
            "requests": float(len(self.e2e_s)),
        }


@dataclass
class Run:
    """A run in progress."""

    policy: Policy
    replicas: list[Replica]
    model: ReplicaModel
    replaced_s: float
    ended: list[Request] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    gone: list[Replica] = field(default_factory=list)
    names: int = 0

    def add(self, now_s: float) -> None:
        """Add a replica."""
        self.replicas.append(Replica(self.model, f"replica-{self.names}", now_s))
        self.names += 1

    def lose(self, now_s: float) -> None:
        """Lose the oldest replica; its requests go on elsewhere."""
        replica = self.replicas.pop(0)
        self.gone.append(replica)
        moved = replica.drop()
        self.policy.lost(replica)
        for request in moved:
            self.policy.ended(request)
        for request in moved:
            self.send(request, now_s)

    def send(self, request: Request, now_s: float) -> None:
        """Have a request sent to a replica."""
        replica = self.policy.route(request, now_s, self.replicas)
        replica.add(request)
        self.sent[replica.name] = self.sent.get(replica.name, 0) + (request.at_s >= WARM_S)

    def advance(self, now_s: float) -> None:
        """Have all replicas go on until then."""
        for replica in self.replicas:
            replica.advance(now_s)
            for request in replica.begun:
                self.policy.begun(request)
            replica.begun.clear()
            for request in replica.ended:
                self.policy.ended(request)
                self.ended.append(request)
            replica.ended.clear()


def simulate(workload: Workload, policy: Policy, seed: int, replicas: int = 8, model: ReplicaModel | None = None) -> Outcome:
    """Return the outcome of a workload; the run goes on until all requests have ended."""
    source = workload.source(seed, replicas)
    run = Run(policy, [], model or ReplicaModel(), workload.replaced_s)
    for _ in range(replicas):
        run.add(0.0)
    now_s, lost_s, back_s = 0.0, workload.replaced_s, float("inf")
    while source.arrivals or any(replica.ongoing for replica in run.replicas):
        next_s = min(now_s + TICK_S, lost_s, back_s, source.arrivals[0][0] if source.arrivals else float("inf"))
        now_s = max(now_s, next_s)
        run.advance(now_s)
        if now_s >= lost_s:
            run.lose(now_s)
            lost_s, back_s = (now_s + workload.replaced_s if now_s < workload.duration_s else float("inf")), now_s + START_S
        if now_s >= back_s:
            run.add(now_s)
            back_s = float("inf")
        while source.arrivals and source.arrivals[0][0] <= now_s:
            run.send(heapq.heappop(source.arrivals)[2], now_s)
    counted = [request for request in run.ended if request.at_s >= WARM_S]
    everything = [*run.replicas, *run.gone]
    fair = sum(run.sent.values()) / replicas
    return Outcome(
        np.array([request.first_s - request.at_s for request in counted]),
        np.array([request.end_s - request.at_s for request in counted]),
        sum(replica.prefilled for replica in everything),
        float(sum(request.prompt_tokens - request.generated for request in run.ended)),
        sum(replica.preempted for replica in everything),
        max(run.sent.values()) / fair,
    )
