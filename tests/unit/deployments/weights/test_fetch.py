"""A model's files: downloaded once, gone on with, checked, repaired, and used without the hub when they are whole."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deployments.errors import WeightsError
from deployments.settings import MODEL_FILES
from deployments.weights import fetch as fetching
from deployments.weights.fetch import from_hub, paced
from deployments.weights.hub import Hub
from deployments.weights.store import File, Store
from tests.support.clock import Clock
from tests.support.fake_hub import COMMIT, WEIGHTS, FakeHub
from tests.support.paths import NANO


class Host:
    """A host with a cache of its own."""

    def __init__(self, hub: FakeHub, cache: Path) -> None:
        self._hub, self._cache = hub, cache
        self.progress: list[tuple[str, int, int]] = []

    @property
    def store(self) -> Store:
        return Store("owner/tiny", None, str(self._cache))

    def fetch(self, *patterns: str) -> Path:
        store = self.store
        source = Hub("owner/tiny", None, self._hub.url)
        return from_hub(store, source, patterns or MODEL_FILES, lambda *told: self.progress.append(told))

    def blob(self, name: str = WEIGHTS) -> Path:
        manifest = self.store.manifest
        assert manifest
        return self.store.blob(manifest.files[name])


@pytest.fixture
def host(hub: FakeHub, tmp_path: Path) -> Host:
    return Host(hub, tmp_path / "cache")


def same(path: Path) -> bool:
    """Return whether a directory has the model's files, and as they are at the hub."""
    found = {file.name: file.read_bytes() for file in path.iterdir()}
    return WEIGHTS in found and all(data == (NANO / name).read_bytes() for name, data in found.items())


def test_all_files_come_once_with_progress_and_only_what_is_asked_for(host: Host, hub: FakeHub) -> None:
    path = host.fetch()
    assert path.name == COMMIT
    assert {WEIGHTS, "config.json", "tokenizer.json"} <= {found.name for found in path.iterdir()}
    assert "README.md" not in hub.sent
    assert set(hub.sent.values()) == {1}
    assert same(path)
    sources, here, totals = zip(*host.progress, strict=True)
    assert set(sources) == {hub.url}
    assert list(here) == sorted(here)
    assert here[-1] == totals[-1] == sum(found.stat().st_size for found in path.iterdir())
    assert host.fetch() == path
    assert hub.asked == 1, "what is whole is used without a question"


def test_an_ingress_does_without_the_weights_which_a_replica_then_adds(host: Host, hub: FakeHub) -> None:
    assert not (host.fetch("*.json") / WEIGHTS).exists()
    assert (host.fetch() / WEIGHTS).exists()
    assert set(hub.sent.values()) == {1}


def test_other_tools_find_the_files(host: Host, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    path = host.fetch()
    assert Path(snapshot_download("owner/tiny", cache_dir=tmp_path / "cache", local_files_only=True)) == path


@pytest.mark.parametrize("damage", ["truncated", "changed", "gone"])
def test_a_broken_file_is_found_and_repaired(host: Host, hub: FakeHub, damage: str) -> None:
    host.fetch()
    blob = host.blob()
    data = blob.read_bytes()
    if damage == "gone":
        blob.unlink()
    else:
        blob.write_bytes(data[:-1] if damage == "truncated" else data[:100] + b"?" + data[101:])
    assert same(host.fetch())
    assert hub.sent[WEIGHTS] == 2
    assert {count for name, count in hub.sent.items() if name != WEIGHTS} == {1}


def test_a_file_that_comes_broken_is_fetched_again_and_one_that_stays_broken_is_refused(
    host: Host, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.spoiled = {WEIGHTS}
    assert same(host.fetch())
    assert hub.sent[WEIGHTS] == 2
    host.blob().unlink()
    monkeypatch.setattr(hub, "files", hub.files | {WEIGHTS: b"?" + hub.files[WEIGHTS][1:]})
    with pytest.raises(WeightsError, match=r"model\.safetensors was downloaded 2 times"):
        host.fetch()
    assert not host.blob().exists()


def test_a_lost_connection_is_taken_up_where_it_broke_off(host: Host, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10**6)
    hub.cut_at = 2_000_000
    assert same(host.fetch())
    assert hub.ranges == ["bytes=2000000-"]


def test_a_download_that_was_killed_goes_on_where_it_was(host: Host, hub: FakeHub) -> None:
    host.fetch("*.json")
    file = File(len(hub.files[WEIGHTS]), host.blob().name)
    host.store.partial(file).write_bytes(hub.files[WEIGHTS][:3_000_000])
    assert same(host.fetch())
    assert hub.ranges == ["bytes=3000000-"]


def test_several_replicas_of_a_host_download_once(host: Host, hub: FakeHub) -> None:
    with ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(lambda _: host.fetch(), range(3)))
    assert set(hub.sent.values()) == {1}
    assert same(paths[0])


def test_without_the_hub_what_is_whole_is_used_and_what_is_not_is_named(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    path = host.fetch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert host.fetch() == path
    host.blob().unlink()
    with pytest.raises(WeightsError, match="owner/tiny"):
        host.fetch()


def test_what_other_tools_left_is_used_without_the_hub_and_checked_with_it(
    host: Host, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = host.fetch()
    record = host.store._record
    kept = record.read_text()
    record.unlink()
    monkeypatch.setattr(Hub, "manifest", lambda self: (_ for _ in ()).throw(WeightsError("no network")))
    assert host.fetch() == path
    assert not record.exists(), "the hub is asked when it can be"
    shard = {"weight_map": {"a": WEIGHTS, "b": "another.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(shard))
    with pytest.raises(WeightsError, match="no network"):
        host.fetch()
    record.write_text(kept)
    assert host.fetch() == path


def test_progress_is_said_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(100.0)
    monkeypatch.setattr(fetching.time, "monotonic", clock)
    said: list[str] = []
    tell = paced(said.append, every_s=2)
    for here in (0, 1, 2, 3):
        tell("the hub", here * 10**9, 4 * 10**9)
        clock.now_s += 1
    assert said == ["0.00 of 4.00 GB from the hub", "2.00 of 4.00 GB from the hub"]


def test_a_cache_that_was_cleared_is_filled_again(host: Host, tmp_path: Path) -> None:
    host.fetch()
    shutil.rmtree(tmp_path / "cache")
    assert same(host.fetch())
