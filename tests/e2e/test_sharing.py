"""A model's files over three nodes, each with a cache of its own: one download from the hub, whatever happens on the way."""

import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from deployments.settings import MODEL_FILES
from deployments.weights import peers
from deployments.weights.hub import Hub
from deployments.weights.store import Store
from tests.support.fake_hub import WEIGHTS, FakeHub
from tests.support.paths import NANO, ROOT


class GatedHub(FakeHub):
    """Sends weights when `gate` is set."""

    def __init__(self, folder: Path) -> None:
        self.gate = threading.Event()
        self.asked_for_weights = threading.Semaphore(0)
        super().__init__(folder)

    def _file(self, request: Any, name: str) -> None:
        if name == WEIGHTS and request.command == "GET":
            self.asked_for_weights.release()
            assert self.gate.wait(60)
        super()._file(request, name)


@pytest.fixture(scope="module")
def hub() -> Iterator[GatedHub]:
    made = GatedHub(NANO)
    yield made
    made.close()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The ids of three nodes."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    caches = [str(tmp_path_factory.mktemp(name)) for name in ("one", "two", "three")]
    common = {"num_cpus": 1, "object_store_memory": 2**27}
    environments = [{"HF_HOME": cache, "PYTHONPATH": str(ROOT)} for cache in caches]
    cluster = Cluster(initialize_head=True, head_node_args=common | {"env_vars": environments[0]})
    for environment in environments[1:]:
        cluster.add_node(**common, env_vars=environment)
    ray.init(address=cluster.address, log_to_driver=False)
    yield [node["NodeID"] for node in ray.nodes()]
    ray.shutdown()
    cluster.shutdown()
    del os.environ["RAY_AUTH_MODE"]


def fetch_on(node: str, url: str) -> Any:
    """Have a node fetch the files; a reference to their directory, their sizes, and where they came from."""

    def fetched() -> tuple[Path, dict[str, int], set[str]]:  # inside, so that Ray sends it whole
        sources: set[str] = set()
        store, hub = Store("owner/tiny"), Hub("owner/tiny", None, url)
        path = peers.from_cluster(store, hub, MODEL_FILES, lambda source, here, total: sources.add(source))
        return path, {found.name: found.stat().st_size for found in path.iterdir()}, sources

    return peers.on(node, fetched)


def test_each_file_comes_from_the_hub_once_though_the_first_to_download_dies(hub: GatedHub, nodes: list[str]) -> None:
    calls = [fetch_on(node, hub.url) for node in nodes]
    assert hub.asked_for_weights.acquire(timeout=60), "one begins, the others wait for it"
    [leader] = [node for node in nodes if node == peers.Peers(("owner/tiny", None, None)).busy()]
    ray.cancel(calls.pop(nodes.index(leader)), force=True)
    hub.gate.set()
    results = ray.get(calls, timeout=60)
    assert Counter(hub.sent) == dict.fromkeys(results[0][1], 1) | {WEIGHTS: 2}, "the one that died had asked for them"
    expected = {name: len(hub.files[name]) for name in results[0][1]}
    assert WEIGHTS in expected
    assert [sizes for _, sizes, _ in results] == [expected, expected]
    late = ray.get(fetch_on(leader, "http://127.0.0.1:1"), timeout=60)
    assert late[1] == expected, "one that comes later needs no hub"
    assert late[2], "it says where they came from"
    assert hub.url not in late[2]


def test_a_broken_file_is_repaired_from_another_host(hub: GatedHub, nodes: list[str]) -> None:
    path, sizes, _ = ray.get(fetch_on(nodes[0], hub.url), timeout=60)
    before = dict(hub.sent)
    with (path / WEIGHTS).open("r+b") as blob:
        blob.truncate(1_000_000)
    assert ray.get(fetch_on(nodes[0], hub.url), timeout=60)[1] == sizes
    assert hub.sent == before
