"""A model of the hub becomes a directory of this host."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deployments import settings
from deployments.weights.download import download
from deployments.weights.hub import Hub
from deployments.weights.store import Store


def test_a_models_directory_takes_the_place_of_its_id() -> None:
    asked: list[Any] = []

    def fetch(store: Store, hub: Hub, patterns: Iterable[str], tell: Any) -> Path:
        asked.append((store.key, vars(hub), patterns))
        return Path("/data/snapshots/c0ffee")

    given = {"preset": "nano-cpu", "model": "owner/name", "engine.revision": "v2", "engine.download_dir": "/data"}
    loaded = settings.load(given | {"weights.mirror": "http://mirror"})
    found = download(loaded, print, fetch=fetch)
    assert found == loaded.model_copy(update={"model": "/data/snapshots/c0ffee"})
    assert download(loaded, print, weights=False, fetch=fetch) == found
    [(key, hub, patterns), (_, _, fewer)] = asked
    assert key == ("owner/name", "v2", "/data")
    assert hub == {"name": "http://mirror", "_model": "owner/name", "_revision": "v2", "_endpoint": "http://mirror"}
    assert set(patterns) - set(fewer) == {"*.safetensors"}


def test_a_directory_stays_and_nothing_is_fetched() -> None:
    loaded = settings.load({"preset": "nano-cpu"})
    assert download(loaded, print, fetch=None) is loaded  # type: ignore[arg-type]
