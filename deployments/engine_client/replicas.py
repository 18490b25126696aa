"""The LLM replicas as the engine client uses them: called through their Serve handle, and counted where the router counts, too."""

from collections.abc import Callable, Mapping
from typing import Any

from ray.serve.handle import DeploymentHandle

from deployments.observability import metrics
from deployments.routing.placement import PLACEMENT
from deployments.routing.score import Reason, Work
from deployments.transport.channel import Address


class LLMReplicas:
    """The LLM replicas of the application. Request ids are those of attempts (`Attempt.wire_id`).

    `carries` says whether requests may be carried: to Serve, a carrier is one call, so a bound on calls would not hold for the
    requests on it. Samples of one request share a `group`, and so the replica. `client` is the name of a request's client, or None
    for a request that has started before and continues.
    """

    def __init__(self, llm: DeploymentHandle, carries: bool) -> None:
        self._llm = llm
        self._carries = carries
        self._handles: dict[str, DeploymentHandle] = {}
        PLACEMENT.on_assigned = _count

    async def generate(self, group: str, request_id: str, address: Address, encoded: list[bytes], client: str | None) -> None:
        """Wait for a replica and run a request on it to its end, by a handle call of its own."""
        await self._handle("generate").remote(group, request_id, address, encoded, client)

    async def carry(self, replica: str, address: Address) -> None:
        """Have a replica receive requests over its lane, until the ingress tells it that no more will come."""
        await self._handle("carry").remote(replica, address)

    async def follow_cache(self, replica: str, address: Address) -> bool:
        """Have a replica tell an ingress from now on what is in its KV cache; return False when it cannot."""
        followed: bool = await self._handle("follow_cache").remote(replica, address)
        return followed

    def look_up(
        self, cached: Callable[[Any], Mapping[str, float] | None], coming: Callable[[Any, str], Callable[[], None] | None]
    ) -> None:
        """Have the placement ask how many tokens of a prompt (`Work.blocks`) each replica has cached, and tell where it will be."""
        PLACEMENT.cached, PLACEMENT.coming = cached, coming

    def known(self) -> list[str]:
        """Return the ids of the replicas that there are, as far as Serve has told."""
        return list(PLACEMENT.known)

    def expect(self, request_id: str, work: Work) -> None:
        """Record what a request is expected to cost, before a replica is chosen for it."""
        PLACEMENT.expect(request_id, work)

    def choose(self, group: str, request_id: str) -> str | None:
        """Return the id of the replica that should get a request, or None if none is known or requests are not carried."""
        chosen = PLACEMENT.choose(group, list(PLACEMENT.known.values()), request_id) if self._carries else None
        return None if chosen is None else chosen.replica_id.unique_id

    def assign(self, request_id: str, replica: str, group: str) -> None:
        """Count a request on the replica with this id."""
        PLACEMENT.assign(request_id, PLACEMENT.known[replica].replica_id, group)

    def unread(self, request_id: str) -> float:
        """Return how many tokens of the request's prompt its replica is expected to read."""
        return PLACEMENT.unread(request_id)

    def told(self, replica: str, requests: int, unread_tokens: float) -> None:
        """Record how many requests of others a replica has, and how many tokens of their prompts it has still to read."""
        PLACEMENT.told(replica, requests, unread_tokens)

    def measured(self, replica: str, prefill_tokens_per_s: float, decode_tokens_per_s: float) -> None:
        """Record how fast a replica is."""
        PLACEMENT.measured(replica, prefill_tokens_per_s, decode_tokens_per_s)

    def progressed(self, request_id: str, expected_tokens: float) -> None:
        """Record that the request's prompt has been read, and how many tokens are still expected of it."""
        PLACEMENT.progressed(request_id, expected_tokens)

    def idle(self, kept: float) -> float:
        """Return how many more requests the replicas can run at once, if each keeps this share of its slots free."""
        return PLACEMENT.idle(kept)

    def assigned(self, request_id: str) -> int:
        """Return how often the request was given to a replica: 0 while it waits for one."""
        return PLACEMENT.assigned(request_id)

    def ended(self, request_id: str) -> None:
        """Record that the request's last token has arrived."""
        PLACEMENT.ended(request_id)

    def lost(self, request_id: str) -> None:
        """Record that the replica of this request is dead or hung; it should get no more requests."""
        PLACEMENT.lost(request_id)

    def left(self, request_id: str) -> None:
        """Record that the request is on no replica any more, after `ended` or `lost`."""
        PLACEMENT.left(request_id)

    def _handle(self, method: str) -> DeploymentHandle:
        if method not in self._handles:  # made at first use, because that starts the handle's router
            self._handles[method] = self._llm.options(method_name=method, request_serialization="pickle")
        return self._handles[method]


def _count(reason: Reason, cached_tokens: float) -> None:
    """Count a request that was given to a replica that should have so many tokens of its prompt cached."""
    metrics.CACHE_EXPECTED.labels().inc(cached_tokens)
    metrics.ROUTED.labels(reason).inc()
