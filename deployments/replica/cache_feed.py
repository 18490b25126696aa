"""What a replica tells the ingresses of its KV cache.

It keeps the cache's content itself, from its engine's events, so that an ingress that begins to follow it, or has missed a batch,
gets the whole without the engine. Each ingress has a lane of its own for this, with a bounded queue: when that is full, batches are
dropped, and the ingress asks for the whole once it sees the gap.
"""

import asyncio

import msgspec

from deployments.observability import logs, metrics
from deployments.routing.cache_index import BEAT_S, CLEARED, Blocks, Scheme
from deployments.transport.cache_events import Batch, EngineBatch, Whole
from deployments.transport.channel import CACHE_BATCH, CACHE_WHOLE, Address
from deployments.transport.sender import Lane, Sender

logger = logs.logger("replica")

QUEUE = 1000
"""How many batches may wait for one ingress."""


class CacheFeed:
    """The content of one engine's KV cache, and the ingresses that follow it."""

    def __init__(self, queue: int = QUEUE) -> None:
        self._blocks = Blocks(0)
        self._scheme: Scheme | None = None
        self._batch = 0
        self._encoder = msgspec.msgpack.Encoder()
        self._lanes: set[Lane] = set()
        self._sender: Sender | None = None
        self._queue = queue
        self._dropped = metrics.CACHE_DROPPED.labels()

    def on_batch(self, batch: EngineBatch) -> None:
        """Take a batch of the engine, and pass it on."""
        before, self._scheme = self._scheme, batch.scheme
        if batch.scheme is None or batch.before != self._batch:
            self._lose()
            return
        if batch.capacity != self._blocks.capacity:
            self._blocks = Blocks(batch.capacity)
        try:
            self._blocks.apply(batch.operations)
        except ValueError:
            self._lose()
            return
        self._batch = batch.after
        if before != batch.scheme:  # with the first block, the engine knows the root
            for lane in list(self._lanes):  # one that has ended leaves
                self._send_whole(lane)
        elif self._lanes:
            self._tell(Batch(batch.before, batch.after, batch.operations))

    def _lose(self) -> None:
        """Stop following a cache that cannot be followed: ingresses hear no more of it, and so know nothing of it."""
        if self._batch != -1:
            logger.warning("the KV cache cannot be followed any more: requests come here without regard to it")
        self._scheme, self._batch = None, -1
        self._blocks.apply([(CLEARED, b"")])

    def _tell(self, batch: Batch) -> None:
        encoded = self._encoder.encode(batch)
        for lane in list(self._lanes):
            if not lane.send([self._id, encoded], CACHE_BATCH):
                self._dropped.inc()

    def serve(self, replica: str) -> None:
        """Begin to serve ingresses, as the replica with this id."""
        self._id = replica.encode()
        self._sender = Sender(self._lanes.discard, self._on_message, queue=self._queue)
        self._beating = asyncio.create_task(self._beat())

    def follow(self, address: Address) -> bool:
        """Tell an ingress what is cached, and from now on what changes, until it is gone.

        Return False when this cache cannot be followed. Raises EngineUnavailableError when the ingress is of a release with other
        frames.
        """
        if self._scheme is None or self._sender is None:
            return False
        lane = self._sender.open(address)
        if lane in self._lanes:
            self._sender.release(lane)
        self._lanes.add(lane)
        self._send_whole(lane)
        return True

    def _send_whole(self, lane: Lane) -> None:
        if self._scheme is not None:
            whole = Whole(self._batch, self._scheme, self._blocks.capacity, self._blocks.packed())
            if not lane.send([self._id, self._encoder.encode(whole)], CACHE_WHOLE):
                self._dropped.inc()

    def _on_message(self, lane: Lane, frames: list[bytes]) -> None:
        """Send the whole to an ingress that asks for it: the only message that there is."""
        self._send_whole(lane)

    def close(self) -> None:
        """Serve no more ingresses."""
        if self._sender is not None:
            self._beating.cancel()
            self._sender.close()

    async def _beat(self) -> None:
        """Repeat the number of the last batch, so that an ingress sees when it has missed one, or when this host is cut off."""
        while True:
            await asyncio.sleep(BEAT_S)
            if self._scheme is not None:
                self._tell(Batch(self._batch, self._batch, []))
