"""How an ingress knows the replicas' KV caches: it has each replica tell it, and asks again when it has missed something."""

import asyncio
import contextlib
import contextvars
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec

from deployments.engine_client.block_hashes import Prompt
from deployments.engine_client.replicas import LLMReplicas
from deployments.errors import EngineUnavailableError
from deployments.observability import logs, metrics
from deployments.routing.cache_index import MAX_BLOCKS, CacheIndex
from deployments.transport.cache_events import Batch, Whole
from deployments.transport.channel import CACHE_AGAIN, CACHE_BATCH, CACHE_WHOLE, Address, MalformedError, Send

logger = logs.logger("ingress")

LOOK_S = 1.0
"""How often an ingress looks for replicas that it does not follow yet, or any more."""
ASK_S = 10.0
"""How long a replica may take to answer, and when one that is not followed is asked again."""
REFUSED_S = 300.0
"""When one that said that it cannot be followed is asked again."""
AGAIN_S = 1.0
"""When the whole is asked for again, after a message that could not be used."""

T = TypeVar("T", Batch, Whole)


class CacheWatch:
    """Keeps the index of the replicas' caches. `address` is where this ingress receives."""

    def __init__(
        self,
        replicas: LLMReplicas,
        address: Address,
        max_blocks: int = MAX_BLOCKS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.index = CacheIndex(max_blocks, clock)
        self._replicas, self._address, self._clock = replicas, address, clock
        self._not_before: dict[tuple[str, str], float] = {}
        self._missed: set[str] = set()
        self._asks: set[asyncio.Task[None]] = set()
        self._watching = asyncio.create_task(self._watch(), context=contextvars.Context())
        metrics.CACHE_BLOCKS.labels().set_function(lambda: self.index.blocks)
        metrics.CACHE_KNOWN.labels().set_function(lambda: sum(map(len, self.index.known().values())))

    def close(self) -> None:
        """Stop following."""
        for task in (self._watching, *self._asks):
            task.cancel()

    def cached_tokens(self, prompt: Prompt | tuple[()]) -> dict[str, float] | None:
        """Return how many of a prompt's tokens each replica has cached or will have, by id; None if nothing is known of any.

        Of a call without a prompt nothing is known.
        """
        if not prompt:
            return None
        try:
            return self._cached_tokens(prompt)
        except Exception:  # of vLLM's hashes, for one: no request fails for want of a better route
            logger.exception("what the replicas have cached of a prompt could not be looked up")
            return None

    def _cached_tokens(self, prompt: Prompt) -> dict[str, float] | None:
        cached: dict[str, float] = {}
        for scheme, replicas in self.index.known().items():
            hashes, found = prompt.hashes(scheme), 0
            for replica in replicas:
                if (blocks := self.index.cached_blocks(replica, hashes, near=found)) is not None:
                    found = blocks
                    cached[replica] = found * scheme.block_size
        return cached or None

    def coming(self, prompt: Prompt | tuple[()], replica: str) -> Callable[[], None] | None:
        """Count a prompt as cached on a replica that will read it, until what is returned is called."""
        if not prompt or (scheme := self.index.scheme(replica)) is None:
            return None
        try:
            return self.index.coming.expect(replica, prompt.hashes(scheme)[:])
        except Exception:  # as above
            logger.exception("what a replica will have cached of a prompt could not be hashed")
            return None

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            wanted = self._wanted()
            self.index.keep(wanted)
            self._not_before = {key: at for key, at in self._not_before.items() if key[1] in wanted}
            for replica in wanted:
                if not self.index.heard(replica) and self._may_ask("call", replica, ASK_S):
                    task = asyncio.create_task(self._ask(replica))
                    self._asks.add(task)
                    task.add_done_callback(self._asks.discard)

    def _wanted(self) -> list[str]:
        """Return the replicas whose caches matter: of one alone none does, since there is nothing to choose."""
        known = self._replicas.known()
        return known if len(known) > 1 else []

    def _may_ask(self, way: str, replica: str, pause_s: float) -> bool:
        """Return whether a replica may be asked this way now, which is then not done again for a while."""
        now = self._clock()
        if now < self._not_before.get((way, replica), now):
            return False
        self._not_before[way, replica] = now + pause_s
        return True

    async def _ask(self, replica: str) -> None:
        """Have a replica tell what it has cached. One that fails is asked again later."""
        try:
            async with asyncio.timeout(ASK_S):
                followed = await self._replicas.follow_cache(replica, self._address)
        except Exception as error:  # it stops or is gone, or Serve's call failed in one of its ways
            logger.info("the KV cache of replica %s is not known: %s", replica, type(error).__name__)
        else:
            if not followed:
                self._not_before["call", replica] = self._clock() + REFUSED_S

    def on_message(self, kind: bytes, frames: list[bytes], reply: Send) -> bool:
        """Receive a message of a replica, if it is about its cache; return whether it is.

        Raises MalformedError when it cannot be read.
        """
        if kind == CACHE_BATCH:
            batch, replica = _decode(frames, Batch)
            metrics.CACHE_BATCHES.labels().inc()
            if not self.index.apply(replica, batch.before, batch.after, batch.operations):
                self._ask_again(replica, reply)
            return True
        if kind == CACHE_WHOLE:
            whole, replica = _decode(frames, Whole)
            metrics.CACHE_WHOLES.labels("missed" if replica in self._missed else "begun").inc()
            self._missed.discard(replica)
            if replica not in self._wanted():
                return True
            try:
                self.index.replace(replica, whole.scheme, whole.capacity, whole.batch, whole.hashes)
            except ValueError as error:
                raise MalformedError from error
            return True
        return False

    def _ask_again(self, replica: str, reply: Send) -> None:
        """Ask a replica for the whole, over the lane on which something came that does not follow what came before."""
        if replica in self._wanted() and self._may_ask("lane", replica, AGAIN_S):
            self._missed.add(replica)
            with contextlib.suppress(EngineUnavailableError):  # the lane has ended; the next look asks by a call
                reply([CACHE_AGAIN])


def _decode(frames: list[bytes], kind: type[T]) -> tuple[T, str]:
    try:
        replica, encoded = frames
        return msgspec.msgpack.decode(encoded, type=kind), replica.decode()
    except (msgspec.DecodeError, ValueError) as error:
        raise MalformedError from error
