"""A model's files between hosts of the Ray cluster: each is downloaded from the hub once, then copied by Ray's own object transfer.

A host that lacks files asks the others which ones they have, by a task on each, and copies them from there. To download files
that no host has, it takes the turn to download. The cluster has one turn per model: a named actor, which Ray ends with the
process that made it. Meanwhile, the other hosts poll for files that have arrived. Every file is checked where it arrives,
whatever its source.
"""

import random
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deployments.errors import WeightsError
from deployments.weights.fetch import from_hub
from deployments.weights.hub import Hub
from deployments.weights.store import Manifest, Progress, Store

NAMESPACE = "satori-weights"
PIECE_BYTES = 2**25
AHEAD = 3
POLL_S = 1.0
ANSWER_S = 60.0
Key = tuple[str, str | None, str | None]


def holdings(key: Key) -> tuple[dict[str, Any] | None, set[str]]:
    """Return this host's manifest of a model's files (None without one), and the digests of those that it has."""
    store = Store(*key)
    return (store.manifest.dump() if store.manifest else None), store.holds()


def piece(key: Key, digest: str, offset: int) -> bytes:
    """Return at most `PIECE_BYTES` of one of this host's files, from `offset` on. Raises WeightsError."""
    store = Store(*key)
    if digest not in store.holds():
        raise WeightsError("the file is no longer on this host")
    with (store.folder / "blobs" / digest).open("rb") as blob:
        blob.seek(offset)
        return blob.read(PIECE_BYTES)


def on(node: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Start a function on a node; return the reference to its result."""
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return _task(function).options(scheduling_strategy=strategy).remote(*arguments)


@cache
def _task(function: Callable[..., Any]) -> Any:
    """Return a function as a Ray task, always the same one: Ray would keep every new one."""
    return ray.remote(num_cpus=0, max_retries=0)(function)


class Peer:
    """Another host, by its Ray node."""

    def __init__(self, node: str, address: str, key: Key) -> None:
        self.name, self._node, self._key = address, node, key

    def get(self, manifest: Manifest, name: str, partial: Path, report: Callable[[int], None]) -> None:
        """Append to `partial` what it lacks of a file. Raises WeightsError."""
        file = manifest.files[name]
        with partial.open("ab") as into:
            offsets = list(range(into.tell(), file.size, PIECE_BYTES))
            pieces = [on(self._node, piece, self._key, file.digest, offset) for offset in offsets[:AHEAD]]
            for number in range(len(offsets)):
                try:
                    into.write(ray.get(pieces[number], timeout=ANSWER_S))
                except (RayError, WeightsError) as error:
                    raise WeightsError(f"{name} from {self.name}: {error}") from error
                pieces[number] = None  # Ray may free it
                report(into.tell())
                if number + AHEAD < len(offsets):
                    pieces.append(on(self._node, piece, self._key, file.digest, offsets[number + AHEAD]))


class Turn:
    """The one turn in the cluster to download a model's files: an actor that exists while its owner lives and holds the turn."""

    def __init__(self, node: str) -> None:
        self._node = node

    def node(self) -> str:
        """Return the node whose turn it is."""
        return self._node


class Peers:
    """The other hosts of the cluster, and what they have of a model."""

    def __init__(self, key: Key) -> None:
        self._key = key
        self._turn = "-".join(["turn", key[0], key[1] or "main"])
        self._node = ray.get_runtime_context().get_node_id()

    @contextmanager
    def turn(self) -> Any:
        """Try to take the turn to download until the `with` block ends; yield whether this host has it."""
        options = {"name": self._turn, "namespace": NAMESPACE, "num_cpus": 0}
        try:
            actor = ray.remote(Turn).options(**options).remote(self._node)
        except ValueError:  # Ray: the name is taken
            yield False
            return
        try:
            yield True
        finally:
            ray.kill(actor)

    def busy(self) -> str | None:
        """Return the node whose turn it is; None if nobody downloads."""
        try:
            return ray.get(ray.get_actor(self._turn, NAMESPACE).node.remote(), timeout=ANSWER_S)
        except (ValueError, RayError):
            return None

    def ask(self, node: str | None = None) -> list[tuple[Peer, Manifest, set[str]]]:
        """Return the other hosts (or only `node`) that know the model, in random order, each with its manifest and digests."""
        nodes = {
            found["NodeID"]: found["NodeManagerAddress"]
            for found in ray.nodes()
            if found["Alive"] and found["NodeID"] != self._node
        }
        asked = {on(node_id, holdings, self._key): node_id for node_id in nodes if node in (None, node_id)}
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S) if asked else ([], [])
        found = []
        for reference in answered:
            try:
                manifest, digests = ray.get(reference)
            except RayError:  # the host has left
                continue
            if manifest is not None:
                node_id = asked[reference]
                found.append((Peer(node_id, nodes[node_id], self._key), Manifest.load(manifest), digests))
        random.shuffle(found)
        return found


def from_cluster(store: Store, hub: Hub, patterns: Iterable[str], report: Progress) -> Path:
    """Return a model's directory as `from_hub` does, with files from other hosts where those have them.

    Raises WeightsError when files are missing and no source has them.
    """
    if path := store.whole(patterns):
        return path
    peers, downloader = Peers(store.key), None
    while True:
        store.refresh()
        copy(store, peers.ask(downloader), patterns, report)
        if path := store.whole(patterns):
            return path
        if (downloader := peers.busy()) is not None:
            time.sleep(POLL_S)
            continue
        with peers.turn() as mine:
            if mine:
                copy(store, peers.ask(), patterns, report)  # the previous turn may have ended after the last poll
                return from_hub(store, hub, patterns, report)


def copy(store: Store, holders: list[tuple[Peer, Manifest, set[str]]], patterns: Iterable[str], report: Progress) -> None:
    """Copy the files that this host lacks and others have. A file that does not arrive intact is left for the next poll."""
    for peer, manifest, digests in holders:
        if store.manifest is None:
            store.expect(manifest)
        for name, file in store.missing(patterns).items():
            if file.digest in digests:
                try:
                    store.fill(name, peer, patterns, report)
                except WeightsError:
                    break  # the next host
