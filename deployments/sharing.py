"""A model's files from host to host of the Ray cluster: each comes from the hub once, and goes on over Ray's own object transfer.

A host that lacks files asks the others which they have, by a task on each, and takes them from one of those. For what nobody has it
takes the turn to download, of which there is one in the cluster for a model: a named actor, which Ray ends with the process that
made it. The others look meanwhile what is there already. Every file is checked where it arrives, wherever it came from.
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

from deployments import weights
from deployments.errors import WeightsError
from deployments.weights import Hub, Manifest, Store, Tell

NAMESPACE = "satori-weights"
PIECE_BYTES = 2**25
AHEAD = 3
LOOK_S = 1.0
ANSWER_S = 60.0
Key = tuple[str, str | None, str | None]


def holdings(key: Key) -> tuple[dict[str, Any] | None, set[str]]:
    """Return what this host knows of a model's files, and the digests of those it has."""
    store = Store(*key)
    return (store.manifest.dump() if store.manifest else None), store.holds()


def piece(key: Key, digest: str, offset: int) -> bytes:
    """Return a part of a file of this host's."""
    store = Store(*key)
    if digest not in store.holds():
        raise WeightsError("the file is not here any more")
    with (store.folder / "blobs" / digest).open("rb") as blob:
        blob.seek(offset)
        return blob.read(PIECE_BYTES)


def on(node: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Start a function on a node; return the reference to what it returns."""
    where = NodeAffinitySchedulingStrategy(node, soft=False)
    return _task(function).options(scheduling_strategy=where).remote(*arguments)


@cache
def _task(function: Callable[..., Any]) -> Any:
    """Return a function as a task of Ray, which would keep each one that is made anew."""
    return ray.remote(num_cpus=0, max_retries=0)(function)


class Peer:
    """Another host, by its Ray node."""

    def __init__(self, node: str, address: str, key: Key) -> None:
        self.name, self._node, self._key = address, node, key

    def get(self, manifest: Manifest, name: str, partial: Path, tell: Callable[[int], None]) -> None:
        """Append what `partial` lacks of a file."""
        file = manifest.files[name]
        with partial.open("ab") as into:
            offsets = list(range(into.tell(), file.size, PIECE_BYTES))
            pieces = [on(self._node, piece, self._key, file.digest, offset) for offset in offsets[:AHEAD]]
            for number in range(len(offsets)):
                try:
                    into.write(ray.get(pieces[number], timeout=ANSWER_S))
                except (RayError, WeightsError) as error:
                    raise WeightsError(f"{name} from {self.name}: {error}") from error
                pieces[number] = None  # Ray may forget it
                tell(into.tell())
                if number + AHEAD < len(offsets):
                    pieces.append(on(self._node, piece, self._key, file.digest, offsets[number + AHEAD]))


class Turn:
    """The one turn in the cluster to download a model's files: an actor, there while its owner lives and holds it."""

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
        self._me = ray.get_runtime_context().get_node_id()

    @contextmanager
    def turn(self) -> Any:
        """Take the turn to download; yields whether it is ours, until the block ends."""
        options = {"name": self._turn, "namespace": NAMESPACE, "num_cpus": 0}
        try:
            actor = ray.remote(Turn).options(**options).remote(self._me)
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
        """Return the other hosts (or only `node`) that know the model, in a random order, with what they know and have."""
        nodes = {
            found["NodeID"]: found["NodeManagerAddress"] for found in ray.nodes() if found["Alive"] and found["NodeID"] != self._me
        }
        asked = {on(one, holdings, self._key): one for one in nodes if node in (None, one)}
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S) if asked else ([], [])
        found = []
        for reference in answered:
            try:
                manifest, digests = ray.get(reference)
            except RayError:  # it left
                continue
            if manifest is not None:
                one = asked[reference]
                found.append((Peer(one, nodes[one], self._key), Manifest.load(manifest), digests))
        random.shuffle(found)
        return found


def fetch(store: Store, hub: Hub, patterns: Iterable[str], tell: Tell) -> Path:
    """Return a model's directory with all files that fit the patterns, as `weights.fetch` does, from other hosts where they can.

    Raises WeightsError when they can be had nowhere.
    """
    if path := store.whole(patterns):
        return path
    peers, working = Peers(store.key), None
    while True:
        store.look()
        copy(store, peers.ask(working), patterns, tell)
        if path := store.whole(patterns):
            return path
        if (working := peers.busy()) is not None:
            time.sleep(LOOK_S)
            continue
        with peers.turn() as mine:
            if mine:
                copy(store, peers.ask(), patterns, tell)  # the turn before may have ended after we looked
                return weights.fetch(store, hub, patterns, tell)


def copy(store: Store, holders: list[tuple[Peer, Manifest, set[str]]], patterns: Iterable[str], tell: Tell) -> None:
    """Copy what this host lacks and others have. What does not come as it should is left for the next look."""
    for peer, manifest, digests in holders:
        if store.manifest is None:
            store.expect(manifest)
        for name, file in store.missing(patterns).items():
            if file.digest in digests:
                try:
                    store.fill(name, peer, patterns, tell)
                except WeightsError:
                    break  # the next host
