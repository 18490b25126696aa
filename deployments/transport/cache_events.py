"""Cache events on their way from an engine's process to its replica, and from there to the ingresses, as msgpack.

What they mean is in `deployments.routing.cache_index`.
"""

import msgspec

from deployments.routing.cache_index import Scheme


class Batch(msgspec.Struct, array_like=True):
    """Operations that follow batch number `before`; without any, `after` is the same, and the message is a sign of life."""

    before: int
    after: int
    operations: list[tuple[int, bytes]]


class EngineBatch(Batch, array_like=True):
    """What the engine's process sends: a batch, and what it is about. `scheme` is None when this cache cannot be followed."""

    scheme: Scheme | None
    capacity: int


class Whole(msgspec.Struct, array_like=True):
    """All of a cache, after batch number `batch`."""

    batch: int
    scheme: Scheme
    capacity: int
    hashes: bytes
