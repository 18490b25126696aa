"""The store on a real PostgreSQL, which is restarted in the middle."""

import asyncio
import time
from collections.abc import Iterator

import pytest

from cluster.bench.postgresql import PostgreSQL, folder_of_programs
from deployments.errors import StoreFullError, StoreUnavailableError
from deployments.store.chain import Chain
from deployments.store.store import Store
from deployments.store.values import End, Progress, Stored
from tests.support import programs
from tests.support.batches import batch
from tests.support.until import until_async

TOKENS = 200


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgreSQL]:
    binaries = folder_of_programs()
    if binaries is None:
        pytest.skip(programs.PREFIX + "initdb")
    server = PostgreSQL(binaries)
    try:
        server.start()
        yield server
    finally:
        server.close()


def store(server: PostgreSQL, holder: str, lease_s: float = 10.0, max_bytes: int = 2**30) -> Store:
    return Store(server.url, holder, lease_s=lease_s, max_bytes=max_bytes)


def response(name: str) -> Stored:
    return Stored(name, "ada", "nano", "queued", True, "{}", "[]", "{}", time.time(), time.time() + 3600)


async def test_what_one_ingress_writes_another_one_goes_on_with(postgresql: PostgreSQL) -> None:
    first, second = store(postgresql, "first", lease_s=0.2), store(postgresql, "second")
    chain = Chain(first, "resp_1", await first.create(response("resp_1")))
    followed: list[int] = []
    reader = Chain(second, "resp_1")
    reader.start(lambda tokens, end, _: followed.extend(tokens))
    seen: list[int] = []
    chain.start(lambda tokens, end, _: seen.extend(tokens))
    for number in range(5):
        chain.append([number], None, None)
    await until_async(lambda: seen, "they are in the store", holds=lambda tokens: tokens == [0, 1, 2, 3, 4])
    await until_async(lambda: second.claimable("nano", 9), "the lease runs out", holds=lambda ids: ids == ["resp_1"])
    taken = await second.claim("resp_1")
    assert taken is not None
    lease, found, tokens = taken
    assert (found.status, tokens) == ("in_progress", seen)
    chain.append([99], None, None)  # the first one comes back
    assert await second.append(lease, 5, [5], End("length", 6))
    await until_async(lambda: seen, "it gets what the second one wrote", holds=lambda tokens: tokens == [0, 1, 2, 3, 4, 5])
    await until_async(lambda: followed, "so does a reader", holds=lambda tokens: tokens == seen)
    assert chain.lease is None
    assert await second.finish(lease, "incomplete", "{}", 12)
    assert await first.progress("resp_1", 0) == Progress(seen, End("length", 6), "incomplete")
    third = store(postgresql, "third", max_bytes=1)
    with pytest.raises(StoreFullError, match=r"store\.max_bytes=1\)"):
        await third.create(response("resp_2"))
    for one in (first, second, third):
        one.close()


async def test_a_file_and_a_batch_are_everybodys(postgresql: PostgreSQL) -> None:
    first, second = store(postgresql, "first"), store(postgresql, "second")
    name, data = await first.files.begin("ada"), b"x" * 2**20
    await asyncio.gather(*(first.files.append(name, number, data) for number in range(3)))
    file = await first.files.complete(name, "sums.jsonl", 3 * len(data), 3600)
    assert file is not None
    assert [piece async for piece in second.files.content(file)] == [data] * 3
    assert await first.batches.create(batch("batch_1", name))
    taken = [await one.batches.claim("batch_1") for one in (first, second)]
    assert taken[0] is not None
    assert taken[1] is None
    lease, _ = taken[0]
    assert await first.batches.begin(lease, 3)
    assert await asyncio.gather(*(first.batches.record(lease, line, line == 2, b"%d\n" % line) for line in (1, 2))) == [True, True]
    await first.batches.release(lease)
    again = await second.batches.claim("batch_1")
    assert again is not None
    assert not await first.batches.record(lease, 3, False, b"late\n")
    assert await second.batches.done("batch_1") == {1, 2}
    assert await second.batches.record(again[0], 3, False, b"3\n")
    assert await second.files.remove(name) == "batch_1"
    assert await second.batches.finalize(again[0])
    assert await second.batches.finish(again[0], "completed", 3600)
    found = await first.batches.load("batch_1", "ada")
    assert found is not None
    assert (found.status, found.completed, found.failed) == ("completed", 2, 1)
    files = await first.files.list("ada", "batch_output", None, 9, ascending=False)
    held = {file.filename: (file.bytes, [line async for line in first.files.content(file)]) for file in files}
    assert held == {"batch_1_output.jsonl": (4, [b"1\n", b"3\n"]), "batch_1_error.jsonl": (2, [b"2\n"])}
    for gone in (name, *(file.id for file in files)):
        assert await first.files.remove(gone) is None
    assert await second.files.being_read(name) is None
    for one in (first, second):
        one.close()


async def test_a_restart_loses_nothing(postgresql: PostgreSQL) -> None:
    """What is being written waits, and is written once; what could wait for nobody fails with an error that says so."""
    writer = store(postgresql, "writer")
    chain = Chain(writer, "resp_restart", await writer.create(response("resp_restart")))
    seen: list[int] = []
    chain.start(lambda tokens, end, _: seen.extend(tokens))
    for number in range(TOKENS):
        chain.append([number], None, None)
        await asyncio.sleep(0.001)
        if number == TOKENS // 3:
            await asyncio.to_thread(postgresql.stop)
            with pytest.raises(StoreUnavailableError, match="cannot be reached now"):
                await writer.create(response("resp_refused"))
        if number == 2 * TOKENS // 3:
            assert len(seen) < number
            await asyncio.to_thread(postgresql.start)
    await until_async(lambda: seen, "all is written", holds=lambda tokens: tokens == list(range(TOKENS)))
    assert (await writer.progress("resp_restart", 0)).tokens == seen
    assert await writer.load("resp_refused", None) is None
    writer.close()
