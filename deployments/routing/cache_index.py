"""What the LLM replicas have in their KV caches, as an ingress knows it from their cache events: how much of a prompt is where.

A replica's engine (vLLM 0.32.0) announces each block that it stores in its cache or removes from it, by the hash of the block's
tokens and of all before them. A block may be there in several copies: each is announced, and each is removed. So copies are
counted: a block is gone once its last copy is.

Events come in batches, each with the numbers of batches before and after it. A batch that does not follow the last one shows a
gap. The replica is then out of step, and unknown until its whole content has come again. It is also unknown when nothing of it was
heard for `SILENT_S`, and when there is no room for it: the index holds the blocks of as many caches as fit into `max_blocks`, at
some 45 bytes a block (`python -m cluster.bench.cache`).

What requests that were given to a replica will have read there counts as cached, too (`Coming`): the next request with the same
prompt need not have it read elsewhere.
"""

import time
from array import array
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass

STORED, REMOVED, CLEARED = 0, 1, 2
"""Operations of a batch: these blocks are stored, these are removed, all are gone."""
HASH_BYTES = 8
MAX_BLOCKS = 2**20
SILENT_S = 10.0
BEAT_S = 2.0
"""A replica repeats the number of its last batch this often: a lost batch shows, and so does a replica that has fallen silent."""
IN_A_BUCKET = 4

Operations = Sequence[tuple[int, bytes]]
"""An operation, and the hashes of its blocks: unsigned integers of 64 bits, little-endian."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How an engine makes hashes: vLLM's name of the function, the tokens of a block, and what the first block of all follows.

    The root is empty until the engine has stored its first block.
    """

    function: str
    block_size: int
    root: bytes


class Blocks:
    """The hashes of the blocks in one KV cache of at most `capacity` blocks, with copies.

    They lie in buckets of a few each: a set of Python's takes twice the memory, and more to count the copies.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._mask = (1 << max(6, (capacity // IN_A_BUCKET).bit_length())) - 1
        self._clear()

    def _clear(self) -> None:
        self._buckets: list[array[int] | None] = [None] * (self._mask + 1)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, block: object) -> bool:
        assert isinstance(block, int)
        bucket = self._buckets[block & self._mask]
        return bucket is not None and block in bucket

    def apply(self, operations: Operations) -> None:
        """Store and remove blocks. Raises ValueError when they cannot be this cache's: too many, or removed and not there."""
        for operation, packed in operations:
            hashes = array("Q", packed)
            if operation == STORED:
                self._store(hashes)
            elif operation == REMOVED:
                self._remove(hashes)
            else:
                self._clear()

    def _store(self, hashes: Iterable[int]) -> None:
        buckets, mask = self._buckets, self._mask
        for block in hashes:
            if self._count >= self.capacity:
                raise ValueError(f"more than {self.capacity} blocks")
            if (bucket := buckets[block & mask]) is None:
                buckets[block & mask] = array("Q", (block,))
            else:
                bucket.append(block)
            self._count += 1

    def _remove(self, hashes: Iterable[int]) -> None:
        buckets, mask = self._buckets, self._mask
        for block in hashes:
            if (bucket := buckets[block & mask]) is None:
                raise ValueError("a block is removed that is not there")
            bucket.remove(block)
            if not bucket:
                buckets[block & mask] = None
            self._count -= 1

    def packed(self) -> bytes:
        """Return all hashes, each as often as there are copies, as `apply` takes them."""
        return b"".join(bucket.tobytes() for bucket in self._buckets if bucket is not None)


@dataclass(slots=True)
class _Cache:
    """What is known of a replica's cache after batch number `batch`; `blocks` is None while that is not known."""

    blocks: Blocks | None
    scheme: Scheme
    batch: int
    heard: float


class Coming:
    """The blocks that requests will have in a replica's cache, from when they are given to it until events tell of them.

    They are counted, since requests share them.
    """

    def __init__(self) -> None:
        self._counts: dict[str, Counter[int]] = {}

    def expect(self, replica: str, blocks: Sequence[int]) -> Callable[[], None]:
        """Count these blocks on a replica, until what is returned is called, once."""
        counts = self._counts.setdefault(replica, Counter())
        counts.update(blocks)

        def forget() -> None:
            for block in blocks:
                counts[block] -= 1
                if not counts[block]:
                    del counts[block]
            if not counts and self._counts.get(replica) is counts:
                del self._counts[replica]

        return forget

    def of(self, replica: str) -> Container[int]:
        """Return those of a replica."""
        return self._counts.get(replica, ())


@dataclass(frozen=True, slots=True)
class _Either:
    cached: Container[int]
    coming: Container[int]

    def __contains__(self, block: object) -> bool:
        return block in self.cached or block in self.coming


class CacheIndex:
    """The KV caches of the LLM replicas. One thread changes it; others may ask it meanwhile."""

    def __init__(self, max_blocks: int = MAX_BLOCKS, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_blocks = max_blocks
        self._clock = clock
        self._caches: dict[str, _Cache] = {}
        self.coming = Coming()

    @property
    def blocks(self) -> int:
        """The number of blocks in the index. Other threads may read it."""
        return sum(len(cache.blocks) for cache in list(self._caches.values()) if cache.blocks is not None)

    def replace(self, replica: str, scheme: Scheme, capacity: int, batch: int, hashes: bytes) -> None:
        """Take the whole content of a replica's cache of at most `capacity` blocks, as it is after batch number `batch`."""
        self._caches.pop(replica, None)
        held = sum(cache.blocks.capacity for cache in self._caches.values() if cache.blocks is not None)
        blocks = None
        if held + capacity <= self._max_blocks:
            blocks = Blocks(capacity)
            blocks.apply([(STORED, hashes)])
        self._caches[replica] = _Cache(blocks, scheme, batch, self._clock())

    def apply(self, replica: str, before: int, after: int, operations: Operations) -> bool:
        """Take a batch. Return whether it followed the last one; if not, the whole content is needed."""
        if (cache := self._caches.get(replica)) is None or cache.batch != before:
            self._caches.pop(replica, None)
            return False
        cache.batch, cache.heard = after, self._clock()
        if cache.blocks is not None:
            try:
                cache.blocks.apply(operations)
            except ValueError:
                del self._caches[replica]
                return False
        return True

    def keep(self, replicas: Iterable[str]) -> None:
        """Forget all other replicas; with one that leaves also those that had no room, which are to be asked again."""
        if gone := self._caches.keys() - set(replicas):
            gone |= {replica for replica, cache in self._caches.items() if cache.blocks is None}
        for replica in gone:
            del self._caches[replica]

    def heard(self, replica: str) -> bool:
        """Return whether the index follows this replica: it has its content, or no room for it, and has heard of it lately."""
        cache = self._caches.get(replica)
        return cache is not None and self._clock() - cache.heard <= SILENT_S

    def known(self) -> dict[Scheme, list[str]]:
        """Return the replicas whose content is known, by how their hashes are made."""
        known: dict[Scheme, list[str]] = {}
        for replica, cache in list(self._caches.items()):
            if cache.blocks is not None and self._clock() - cache.heard <= SILENT_S:
                known.setdefault(cache.scheme, []).append(replica)
        return known

    def scheme(self, replica: str) -> Scheme | None:
        """Return how a replica's hashes are made, if its content is known."""
        cache = self._caches.get(replica)
        return cache.scheme if cache is not None and cache.blocks is not None else None

    def cached_blocks(self, replica: str, hashes: Sequence[int], near: int = 0) -> int | None:
        """Return how many of a prompt's blocks, from the first on, a replica has cached or will have; None when that is not known.

        `near` is a guess. `hashes` may be made as they are asked for: few behind the last one that is cached are.
        """
        cache = self._caches.get(replica)
        if cache is None or cache.blocks is None or self._clock() - cache.heard > SILENT_S:
            return None
        coming = self.coming.of(replica)
        return depth(_Either(cache.blocks, coming) if coming else cache.blocks, hashes, near)


def depth(blocks: Container[int], hashes: Sequence[int], near: int = 0) -> int:
    """Return how many of `hashes`, from the first on, are in `blocks`: by bisection from `near`, since the last ones go first.

    (vLLM frees a request's blocks from the last to the first, and whoever uses a block uses all before it.)
    """
    low, high = 0, len(hashes)  # so many are there, and not more than so many
    if near:
        if hashes[near - 1] in blocks:
            low = near
        else:
            high = near - 1
    step = 1
    while low < high:
        at = min(low + step, high)
        if hashes[at - 1] not in blocks:
            high = at - 1
            break
        low, step = at, 2 * step
    while low < high:
        middle = (low + high + 1) // 2
        if hashes[middle - 1] in blocks:
            low = middle
        else:
            high = middle - 1
    return low
