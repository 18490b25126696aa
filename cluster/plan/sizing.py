"""The speed that requests of given lengths get from a set of cards, and the number of replicas that a load needs.

A replica is a queue with a server for each request that can run at a time, and each server is as slow as when all run (M/M/c,
Erlang C). Arrivals are Poisson, lengths are exponential. The wait is the 95th percentile.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.plan.architectures import Shape
from cluster.plan.capacity import Card, Precision, Replica

PERCENTILE = 0.95
MAX_NUM_SEQS = 512
"""The largest `max_num_seqs` of a plan."""


@dataclass(frozen=True)
class Demand:
    """Requests of given lengths, `requests_s` of them a second (None: unknown).

    95 % of them must have a TTFT of at most `ttft_s`; their mean TPOT must be at most `tpot_s`.
    """

    prompt_tokens: int
    output_tokens: int
    ttft_s: float
    tpot_s: float | None
    requests_s: float | None

    @property
    def tokens(self) -> int:
        """The tokens of a request, prompt and output."""
        return self.prompt_tokens + self.output_tokens

    @property
    def context_tokens(self) -> int:
        """The tokens in the KV cache of a request that is half way through its output."""
        return self.prompt_tokens + self.output_tokens // 2


@dataclass(frozen=True)
class Limits:
    """The number of cards, and vLLM's `max_model_len` and `gpu_memory_utilization`."""

    count: int
    max_model_len: int
    utilization: float


@dataclass(frozen=True)
class Row:
    """The figures of a precision. The speed is that of `slots` requests at a time; `slots` is 0 if it does not run on these cards.

    `replicas` is the number that the load needs, and `ttft_s` what they give it. Both are None without a load, or if no number of
    replicas is enough.
    """

    precision: str
    gpus_per_replica: int
    weights_gb: float
    kv_bytes_a_token: int
    kv_tokens: int
    fits: int
    slots: int
    tokens_s: float
    tpot_s: float
    all_tokens_s: float
    replicas: int | None
    ttft_s: float | None

    @property
    def gpus(self) -> float:
        """The number of cards that the load needs."""
        return math.inf if self.replicas is None else self.replicas * self.gpus_per_replica


def smallest(shape: Shape, card: Card, precision: Precision, limits: Limits) -> Replica:
    """Return a replica on the fewest cards that hold the weights and one request of `max_model_len`; on all if none do."""
    tp = 1
    while True:
        replica = Replica(shape, card, precision, tp, limits.utilization)
        if replica.fits(limits.max_model_len) or 2 * tp > limits.count or shape.heads % (2 * tp):
            return replica
        tp *= 2


def row(replica: Replica, demand: Demand, limits: Limits) -> Row:
    """Return the figures of a replica, and of as many as there are cards for, for a demand."""
    servers = slots(replica, demand) if replica.fits(limits.max_model_len) else 0
    tokens_s = replica.tokens_s(servers, demand.prompt_tokens, demand.output_tokens) if servers else 0.0
    needed = None if demand.requests_s is None else replicas(replica, demand, servers)
    return Row(
        precision=replica.precision.name,
        gpus_per_replica=replica.tp,
        weights_gb=replica.weights_bytes / 1e9,
        kv_bytes_a_token=replica.kv_bytes(1),
        kv_tokens=replica.kv_space_bytes // replica.kv_bytes(1),
        fits=replica.fits(demand.tokens),
        slots=servers,
        tokens_s=tokens_s,
        tpot_s=tpot_s(replica, demand, servers) if servers else 0.0,
        all_tokens_s=tokens_s * (limits.count // replica.tp),
        replicas=needed,
        ttft_s=ttft_s(replica, demand, servers, demand.requests_s / needed) if demand.requests_s and needed else None,
    )


def choose(rows: Sequence[Row], demand: Demand, count: int) -> Row | None:
    """Return the row to deploy: the finest precision for which `count` cards are enough, else the one with the fewest cards."""
    able = [one for one in rows if one.slots]
    if demand.requests_s is None:
        return min(able, key=lambda one: one.gpus_per_replica, default=None)
    return next((one for one in able if one.gpus <= count), min(able, key=lambda one: one.gpus, default=None))


def tpot_s(replica: Replica, demand: Demand, batch: float) -> float:
    """Return the mean time of an output token with `batch` requests at a time."""
    return replica.request_s(batch, demand.prompt_tokens, demand.output_tokens) / demand.output_tokens


def slots(replica: Replica, demand: Demand) -> int:
    """Return the most requests at a time that fit and keep the demand's TPOT; 0 if not even one does."""
    low, high = 0, min(replica.fits(demand.tokens), MAX_NUM_SEQS)
    while low < high:
        middle = (low + high + 1) // 2
        if demand.tpot_s is None or tpot_s(replica, demand, middle) <= demand.tpot_s:
            low = middle
        else:
            high = middle - 1
    return low


def ttft_s(replica: Replica, demand: Demand, servers: int, requests_s: float) -> float:
    """Return the 95th percentile of TTFT at one replica; infinite if it gets more requests than it can serve."""
    service_s = replica.request_s(servers, demand.prompt_tokens, demand.output_tokens)
    offered = requests_s * service_s
    prefill_s = replica.prefill_s(demand.prompt_tokens)
    if offered >= servers or requests_s * prefill_s >= 1:
        return math.inf
    blocked = 1.0  # Erlang B, then C
    for number in range(1, servers + 1):
        blocked = offered * blocked / (number + offered * blocked)
    waits = servers * blocked / (servers - offered * (1 - blocked))
    wait_s = max(0.0, math.log(waits / (1 - PERCENTILE)) * service_s / (servers - offered)) if waits else 0.0
    step_s = replica.step_s(servers, demand.context_tokens)
    return wait_s + step_s + prefill_s / (1 - requests_s * prefill_s)


def replicas(replica: Replica, demand: Demand, servers: int) -> int | None:
    """Return the fewest replicas that keep the demand's TTFT under its load; None if no number does."""
    assert demand.requests_s is not None
    if not servers or ttft_s(replica, demand, servers, 0.0) > demand.ttft_s:
        return None
    low, high = 1, 1
    while ttft_s(replica, demand, servers, demand.requests_s / high) > demand.ttft_s:
        low, high = high + 1, high * 2
    while low < high:
        middle = (low + high) // 2
        if ttft_s(replica, demand, servers, demand.requests_s / middle) <= demand.ttft_s:
            high = middle
        else:
            low = middle + 1
    return high
