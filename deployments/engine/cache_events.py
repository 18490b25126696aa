"""An engine's cache events: what it stores in its KV cache and removes from it, told to its replica.

vLLM (0.32.0) hands them, after each step, to a publisher. Its own one is an open port, whose queue blocks the engine when it is
full. Ours sends them over a socket between the two processes, as tokens go: sending never waits.
"""

from array import array
from typing import Any

import msgspec
import zmq
from vllm.config import KVEventsConfig, VllmConfig
from vllm.distributed.kv_events import (
    MEDIUM_GPU,
    AllBlocksCleared,
    BlockStored,
    EventBatch,
    EventPublisher,
    EventPublisherFactory,
)
from vllm.v1.core import kv_cache_utils
from vllm.v1.core.block_pool import BlockPool

from deployments.patching import patch
from deployments.routing.cache_index import CLEARED, HASH_BYTES, REMOVED, STORED, Scheme
from deployments.transport.cache_events import EngineBatch

NAME = "satori"


def install(config: VllmConfig, address: str) -> None:
    """Have the engine of this process, made with `config`, send its cache events to `address`, if it caches prefixes.

    Whoever has set a publisher of vLLM's own keeps that.
    """
    if not config.cache_config.enable_prefix_caching or config.kv_events_config is not None:
        return
    EventPublisherFactory.register_publisher(NAME, lambda **_: Publisher(config, address))
    config.kv_events_config = KVEventsConfig(enable_kv_cache_events=True)
    config.kv_events_config.publisher = NAME  # its type lists only vLLM's own
    patch(
        BlockPool,
        "emit_cached_block_events",
        lambda *_: None,
        why="a request with `kv_cache_report_mode: full` has blocks announced again that are not stored again (vLLM 0.32.0)",
        until="such announcements differ from others",
    )


class Publisher(EventPublisher):
    """Sends each step's cache events. Only caches of one kind can be followed: of one group, with blocks of one size."""

    def __init__(self, config: VllmConfig, address: str) -> None:
        super().__init__()
        cache = config.cache_config
        self._scheme: Scheme | None = Scheme(cache.prefix_caching_hash_algo, cache.block_size, b"")
        self._capacity = cache.num_gpu_blocks or 0
        self._batches = 0
        self._encoder = msgspec.msgpack.Encoder()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.connect(address)
        self._send(self._batches, [])

    def publish(self, events: EventBatch) -> None:
        """Send a step's events, in order, those of a kind that follow each other as one operation."""
        if (scheme := self._scheme) is None:
            return
        operations: list[tuple[int, array[int]]] = []
        for event in events.events:
            if isinstance(event, AllBlocksCleared):
                operations = [(CLEARED, array("Q"))]
                continue
            if event.medium != MEDIUM_GPU:
                continue  # of a connector, which keeps blocks elsewhere
            stored = isinstance(event, BlockStored)
            if event.group_idx or (stored and event.block_size != scheme.block_size):
                self._scheme = None
                break
            operation = STORED if stored else REMOVED
            if not operations or operations[-1][0] != operation:
                operations.append((operation, array("Q")))
            operations[-1][1].extend(map(_number, event.block_hashes))
        if self._scheme is not None and not scheme.root:  # made after this publisher was
            self._scheme = Scheme(scheme.function, scheme.block_size, kv_cache_utils.NONE_HASH)
        self._batches += 1
        self._send(self._batches - 1, [(operation, hashes.tobytes()) for operation, hashes in operations])

    def _send(self, before: int, operations: list[tuple[int, bytes]]) -> None:
        batch = EngineBatch(before, self._batches, operations, self._scheme, self._capacity)
        self._socket.send(self._encoder.encode(batch), zmq.NOBLOCK)

    def shutdown(self) -> None:
        """Close the socket."""
        self._context.destroy(linger=0)


def _number(block_hash: Any) -> int:
    """Return a hash as the number that it is unless `VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES` is 0: its last 64 bits."""
    return block_hash if isinstance(block_hash, int) else int.from_bytes(block_hash[-HASH_BYTES:], "big")
