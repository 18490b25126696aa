"""Batches in the store: each line's result is there once, and no holder writes whose lease is lost."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.store.store import Store
from deployments.store.values import Lease, StoredBatch
from tests.support.batches import batch, upload
from tests.support.until import until_async


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(str(tmp_path / "responses.sqlite"), "me", lease_s=60, max_bytes=2**30)
    yield made
    made.close()


async def claimed(store: Store, name: str = "batch_1") -> tuple[Lease, StoredBatch]:
    assert await store.batches.create(batch(name, await upload(store)))
    assert await store.batches.claimable("nano", 9) == [name]
    taken = await store.batches.claim(name)
    assert taken is not None
    return taken


async def counts(store: Store) -> tuple[str, int, int, int]:
    found = await store.batches.load("batch_1", "ada")
    assert found is not None
    return found.status, found.total, found.completed, found.failed


async def test_a_batch_goes_through_its_states(store: Store) -> None:
    lease, made = await claimed(store)
    assert (made.status, await store.batches.claim("batch_1"), await store.batches.claimable("nano", 9)) == ("validating", None, [])
    assert await store.batches.begin(lease, 3)
    for line, failed in ((2, False), (1, True), (3, False)):
        assert await store.batches.record(lease, line, failed, b"line %d\n" % line)
        assert await store.batches.record(lease, line, False, b"again\n"), "as after a commit whose confirmation was lost"
    assert await counts(store) == ("in_progress", 3, 2, 1)
    assert await store.batches.done("batch_1") == {1, 2, 3}
    assert await store.batches.finalize(lease)
    assert await store.batches.finish(lease, "completed", 60)
    assert await counts(store) == ("completed", 3, 2, 1)
    files = {file.filename: file for file in await store.files.list("ada", "batch_output", None, 9, ascending=True)}
    held = {name: b"".join([data async for data in store.files.content(file)]) for name, file in files.items()}
    assert held == {"batch_1_output.jsonl": b"line 2\nline 3\n", "batch_1_error.jsonl": b"line 1\n"}
    assert {name: file.bytes for name, file in files.items()} == {name: len(data) for name, data in held.items()}
    for file in files.values():
        assert await store.files.remove(file.id) is None
    await until_async(lambda: store.batches.done("batch_1"), "the lines go", holds=lambda left: not left)


async def test_whose_lease_is_lost_writes_nothing(store: Store) -> None:
    first, _ = await claimed(store)
    assert await store.batches.begin(first, 2)
    assert await store.batches.record(first, 1, False, b"1\n")
    await store.batches.release(first)
    taken = await store.batches.claim("batch_1")
    assert taken is not None
    second, found = taken
    assert (second.epoch - first.epoch, found.status, found.completed) == (1, "in_progress", 1)
    late = store.batches
    assert await late.beat(first) is None
    assert not await late.record(first, 2, False, b"late\n")
    assert not await late.finalize(first)
    assert not await late.finish(first, "completed", 60)
    assert not await late.refuse(first, [])
    assert await counts(store) == ("in_progress", 2, 1, 0)
    assert await store.batches.beat(second) == "in_progress"


async def test_what_is_cancelled_ends_as_cancelled(store: Store) -> None:
    lease, _ = await claimed(store)
    assert await store.batches.begin(lease, 2)
    await store.batches.cancel("batch_1")
    assert await store.batches.beat(lease) == "cancelling"
    assert await store.batches.finalize(lease)
    assert await store.batches.finish(lease, "completed", 60), "the last line was done in that moment"
    assert (await counts(store))[0] == "cancelled"
    await store.batches.cancel("batch_1")
    assert (await counts(store))[0] == "cancelled"


async def test_what_only_has_to_end_is_anybodys(store: Store) -> None:
    """Also where its model is not served any more."""
    file = await upload(store)
    for name, columns in (("late", {"deadline": 0.0}), ("cancelled", {}), ("other", {}), ("mine", {"model": "nano"})):
        assert await store.batches.create(batch(name, file, **{"model": "gone"} | columns))
    await store.batches.cancel("cancelled")
    assert sorted(await store.batches.ending(9)) == ["cancelled", "late"]
    assert await store.batches.claimable("nano", 9) == ["mine"]
    assert await store.batches.claimable("nano", 9, without=["ada"]) == []
    assert await store.batches.claim("late") is not None
    assert await store.batches.ending(9) == ["cancelled"]


async def test_an_input_stays_while_a_batch_reads_it(store: Store) -> None:
    lease, made = await claimed(store)
    assert await store.files.remove(made.input_file) == "batch_1"
    store.files._now = lambda: time.time() + 10**6
    store.files.purge_soon()
    await until_async(lambda: store.files._purging is None, "it is done")
    assert await store.files.load(made.input_file, "ada") is None
    file = await store.files.being_read(made.input_file)
    assert file is not None
    assert [data async for data in store.files.content(file)] == [b"{}\n"]
    assert await store.batches.refuse(lease, [{"code": "x"}])
    store.files.purge_soon()
    await until_async(lambda: store.files.being_read(made.input_file), "the file goes", holds=lambda file: file is None)
    assert not await store.batches.create(batch("batch_2", made.input_file))


async def test_only_an_owners_file_is_read(store: Store) -> None:
    assert not await store.batches.create(batch("batch_1", await upload(store, "eve")))
    assert await store.batches.load("batch_1", "ada") is None
