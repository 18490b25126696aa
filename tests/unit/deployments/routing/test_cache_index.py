"""The index of KV caches: copies, gaps, whole contents, silence and the bound."""

import random
from array import array
from collections import Counter

import pytest

from deployments.routing.cache_index import CLEARED, REMOVED, SILENT_S, STORED, Blocks, CacheIndex, Scheme, depth
from tests.support.clock import Clock

SCHEME = Scheme("sha256", 16, b"root")
OTHER = Scheme("sha256", 128, b"root")


def packed(*hashes: int) -> bytes:
    return array("Q", hashes).tobytes()


def index_of(*hashes: int, capacity: int = 100) -> CacheIndex:
    index = CacheIndex()
    index.replace("a", SCHEME, capacity, 0, packed(*hashes))
    return index


def test_a_block_is_there_until_its_last_copy_is_removed() -> None:
    index = index_of()
    assert index.apply("a", 0, 1, [(STORED, packed(1, 2)), (STORED, packed(2))])
    assert index.apply("a", 1, 2, [(REMOVED, packed(2))])
    assert index.cached_blocks("a", [1, 2]) == 2
    assert index.apply("a", 2, 3, [(REMOVED, packed(2))])
    assert index.cached_blocks("a", [1, 2]) == 1
    assert index.blocks == 1


def test_random_contents_are_kept_as_a_count_of_copies_says() -> None:
    rng, blocks, counts = random.Random(5), Blocks(4000), Counter[int]()
    names = [rng.getrandbits(64) for _ in range(1500)]
    for _ in range(6000):
        name = rng.choice(names)
        if counts.total() < 3000 and rng.random() < 0.6:
            blocks.apply([(STORED, packed(name))])
            counts[name] += 1
        elif counts[name]:
            blocks.apply([(REMOVED, packed(name))])
            counts[name] -= 1
    assert counts.total() == len(blocks) > 1000
    assert [name in blocks for name in names] == [counts[name] > 0 for name in names]
    again = Blocks(4000)
    again.apply([(STORED, blocks.packed())])
    assert Counter(array("Q", again.packed())) == +counts


def test_what_requests_will_have_cached_counts_until_the_last_of_them_is_done() -> None:
    index = index_of(1, 2)
    index.replace("b", SCHEME, 100, 0, b"")
    one, two = (index.coming.expect("a", hashes) for hashes in ([1, 2, 3, 4], [1, 2, 3, 5]))
    assert [index.cached_blocks("a", hashes) for hashes in ([1, 2, 3, 4, 6], [1, 2, 3, 5], [7])] == [4, 4, 0]
    assert index.cached_blocks("a", [1, 2, 3, 4], near=4) == 4
    assert index.cached_blocks("b", [1, 2, 3]) == 0
    one()
    assert [index.cached_blocks("a", hashes) for hashes in ([1, 2, 3, 4, 6], [1, 2, 3, 5])] == [3, 4]
    two()
    assert index.cached_blocks("a", [1, 2, 3]) == 2
    assert vars(index.coming)["_counts"] == {}


def test_a_prompts_blocks_count_from_the_first_on() -> None:
    index = index_of(1, 2, 3, 9)
    assert index.cached_blocks("a", [1, 2, 3, 4, 5]) == 3
    assert index.cached_blocks("a", [4, 1, 2]) == 0
    assert index.cached_blocks("a", []) == 0


@pytest.mark.parametrize("length", [0, 1, 2, 7, 100])
def test_the_depth_does_not_depend_on_the_guess(length: int) -> None:
    hashes = list(range(1, length + 1))
    for there in {0, 1, length // 2, length}:
        blocks = Blocks(200)
        blocks.apply([(STORED, packed(*hashes[:there]))])
        assert {depth(blocks, hashes, near) for near in range(length + 1)} == {min(there, length)}


def test_after_a_gap_a_replica_is_unknown_until_its_whole_content_comes() -> None:
    index = index_of(1)
    assert not index.apply("a", 1, 2, [(STORED, packed(2))])
    assert index.cached_blocks("a", [1]) is None
    assert not index.heard("a")
    assert not index.apply("a", 2, 3, [])
    index.replace("a", SCHEME, 100, 3, packed(1, 2, 3))
    assert index.apply("a", 3, 3, [])
    assert index.cached_blocks("a", [1, 2, 3, 4]) == 3


def test_after_all_is_cleared_nothing_is_there() -> None:
    index = index_of(1, 2)
    assert index.apply("a", 0, 1, [(CLEARED, b""), (STORED, packed(7))])
    assert (index.cached_blocks("a", [1, 2]), index.cached_blocks("a", [7]), index.blocks) == (0, 1, 1)


@pytest.mark.parametrize("operations", [[(REMOVED, packed(5))], [(STORED, packed(*range(5, 8)))]], ids=["not there", "too many"])
def test_what_cannot_be_is_as_a_gap(operations: list[tuple[int, bytes]]) -> None:
    index = index_of(1, 2, capacity=4)
    assert not index.apply("a", 0, 1, operations)
    assert index.cached_blocks("a", [1]) is None


def test_a_silent_replica_is_unknown_until_it_is_heard_again() -> None:
    clock = Clock()
    index = CacheIndex(clock=clock)
    index.replace("a", SCHEME, 10, 4, packed(1))
    clock.now_s = SILENT_S
    assert index.heard("a")
    assert index.known() == {SCHEME: ["a"]}
    clock.now_s += 0.1
    assert index.cached_blocks("a", [1]) is None
    assert index.known() == {}
    assert index.apply("a", 4, 4, [])
    assert index.cached_blocks("a", [1]) == 1


def test_caches_that_do_not_fit_are_followed_but_unknown() -> None:
    index = CacheIndex(max_blocks=100)
    index.replace("a", SCHEME, 60, 0, packed(1))
    index.replace("b", OTHER, 60, 0, packed(1, 2))
    index.replace("c", OTHER, 40, 0, packed(1, 2, 3))
    assert index.heard("b")
    assert index.apply("b", 0, 1, [(STORED, packed(3))])
    assert [index.cached_blocks(name, [1]) for name in "abc"] == [1, None, 1]
    assert index.known() == {SCHEME: ["a"], OTHER: ["c"]}
    assert index.blocks == 4
    index.keep(["b", "c"])
    index.replace("b", OTHER, 60, 1, packed(1))
    assert index.known() == {OTHER: ["c", "b"]}


def test_a_replica_that_is_gone_is_forgotten() -> None:
    index = index_of(1)
    index.replace("b", SCHEME, 10, 0, packed(1))
    index.keep(["b"])
    assert index.cached_blocks("a", [1]) is None
    assert index.blocks == 1
