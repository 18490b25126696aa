"""A batch and its input in a store."""

import time
from dataclasses import replace
from typing import Any

from deployments.store.store import Store
from deployments.store.values import StoredBatch


async def upload(store: Store, owner: str = "ada", data: bytes = b"{}\n") -> str:
    """Add a file; return its id."""
    name = await store.files.begin(owner)
    await store.files.append(name, 0, data)
    assert await store.files.complete(name, "sums.jsonl", len(data), 60) is not None
    return name


def batch(name: str, file: str, **columns: Any) -> StoredBatch:
    """Return a new batch of `ada`'s."""
    now = time.time()
    made = StoredBatch(name, "ada", "nano", "validating", "/v1/completions", file, "24h", "{}", now, now + 60, now + 3600)
    return replace(made, **columns)
