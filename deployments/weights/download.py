"""A model's files on this host, from any source that has them."""

from collections.abc import Callable, Iterable
from pathlib import Path

from deployments.settings import MODEL_FILES, WEIGHT_FILES, Settings, is_path
from deployments.weights.fetch import from_hub, paced
from deployments.weights.hub import Hub
from deployments.weights.store import Progress, Store

Fetch = Callable[[Store, Hub, Iterable[str], Progress], Path]


def download(settings: Settings, report: Callable[[str], None], *, weights: bool = True, fetch: Fetch = from_hub) -> Settings:
    """Return the settings with a directory of complete files on this host in place of a model of the Hugging Face hub.

    A model that is already a directory stays. `report` is called with the progress in words. An ingress needs no `weights`. `fetch`
    gets the missing files: from the hub alone, or also from other hosts of the Ray cluster
    (`deployments.weights.peers.from_cluster`). Raises WeightsError when files are missing and no source has them.
    """
    if is_path(settings.model):
        return settings
    revision, cache_dir = settings.engine.get("revision"), settings.engine.get("download_dir")
    patterns = [pattern for pattern in MODEL_FILES if weights or pattern not in WEIGHT_FILES]
    hub = Hub(settings.model, revision, settings.weights.mirror)
    path = fetch(Store(settings.model, revision, cache_dir), hub, patterns, paced(report))
    return settings.model_copy(update={"model": str(path)})
