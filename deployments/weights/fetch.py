"""Downloads a model's missing files from the hub."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from deployments.errors import WeightsError
from deployments.weights.hub import Hub
from deployments.weights.store import ATTEMPTS, Progress, Store


def from_hub(store: Store, hub: Hub, patterns: Iterable[str], report: Progress) -> Path:
    """Return a model's directory with all files that match the patterns; missing ones are downloaded from the hub.

    Raises WeightsError when files are missing and the hub cannot provide them.
    """
    if store.manifest is None:
        _set_manifest(store, hub)
    for name in store.missing(patterns):
        for _ in range(ATTEMPTS):
            if store.fill(name, hub, patterns, report):
                break
        else:
            raise WeightsError(f"{name} was downloaded {ATTEMPTS} times and never had the size and digest that the hub lists")
    if (path := store.whole(patterns)) is None:
        raise WeightsError(f"files in {store.folder} changed while they were read")
    return path


def paced(report: Callable[[str], None], every_s: float = 2.0) -> Progress:
    """Return a progress callback that calls `report` with words, at most once every `every_s` seconds."""
    reported_s = -every_s

    def report_in_words(source: str, here: int, total: int) -> None:
        nonlocal reported_s
        if time.monotonic() - reported_s >= every_s:
            reported_s = time.monotonic()
            report(f"{here / 1e9:.2f} of {total / 1e9:.2f} GB from {source}")

    return report_in_words


def _set_manifest(store: Store, hub: Hub) -> None:
    """Make the store expect the files that the hub lists or, if it cannot be asked, those in the cache. Raises WeightsError."""
    try:
        store.expect(hub.manifest())
    except WeightsError:
        store.expect_cached()
        if store.manifest is None:
            raise
