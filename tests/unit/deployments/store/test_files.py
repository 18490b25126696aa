"""Files in the store: their time, and what is left of those that are gone."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from deployments.errors import BodyTimeoutError
from deployments.store import database
from deployments.store.files import PIECES_AT_ONCE, UPLOAD_S
from deployments.store.schema import files, pieces
from deployments.store.store import Store
from tests.support.clock import Clock
from tests.support.until import until_async


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    made = Store(str(tmp_path / "responses.sqlite"), "me", lease_s=10, max_bytes=2**30, clock=clock)
    yield made
    made.close()


async def upload(store: Store, parts: int, ttl_s: float = 60) -> str:
    name = await store.files.begin("ada")
    for number in range(parts):
        await store.files.append(name, number, b"%d;" % number)
    assert await store.files.complete(name, "sums.jsonl", 2 * parts, ttl_s) is not None
    return name


async def rows(store: Store) -> tuple[int, int]:
    return await store._journal.read(
        lambda connection: tuple(
            connection.execute(select(func.count()).select_from(table)).scalar_one() for table in (files, pieces)
        )  # type: ignore[return-value]
    )


async def test_what_is_uploaded_is_seen_when_it_is_complete(store: Store) -> None:
    name = await store.files.begin("ada")
    await store.files.append(name, 0, b"abc")
    assert await store.files.load(name, "ada") is None
    assert await store.files.list("ada", None, None, 9, ascending=False) == []
    made = await store.files.complete(name, "x", 3, 60)
    assert made is not None
    assert await store.files.list("ada", "batch", None, 9, ascending=False) == [made]
    assert [data async for data in store.files.content(made)] == [b"abc"]
    assert await store.files.complete(name, "again", 3, 60) is None


async def test_files_go_with_all_their_pieces(store: Store, clock: Clock) -> None:
    kept, over = await upload(store, 1, 1000), await upload(store, 2 * PIECES_AT_ONCE + 1)
    assert await rows(store) == (2, 2 * PIECES_AT_ONCE + 2)
    clock.now_s += 60
    assert await store.files.load(over, "ada") is None
    await store.expire()
    await until_async(lambda: rows(store), "one is left", holds=lambda now: now == (1, 1))
    assert await store.files.remove(kept) is None
    assert await store.files.load(kept, "ada") is None, "for clients at once"
    await until_async(lambda: rows(store), "none is left", holds=lambda now: now == (0, 0))


async def test_an_upload_that_never_ends_is_removed(store: Store, clock: Clock) -> None:
    name = await store.files.begin("ada")
    await store.files.append(name, 0, b"abc")
    clock.now_s += UPLOAD_S
    assert await store.files.complete(name, "x", 3, 60) is None
    await store.expire()
    await until_async(lambda: rows(store), "nothing is left", holds=lambda now: now == (0, 0))


async def test_a_late_piece_of_an_upload_is_not_kept(store: Store, clock: Clock) -> None:
    name, done = await store.files.begin("ada"), await upload(store, 1)
    await store.files.append(name, 0, b"abc")
    clock.now_s += UPLOAD_S
    with pytest.raises(BodyTimeoutError):
        await store.files.append(name, 1, b"def")
    await store.files.remove(done)
    await until_async(lambda: rows(store), "nothing is left", holds=lambda now: now == (0, 0))
    for gone in (name, done):
        with pytest.raises(BodyTimeoutError):
            await store.files.append(gone, 2, b"ghi")
    assert await rows(store) == (0, 0)


async def test_nobody_waits_for_content_that_is_removed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One task removes it, however often that is asked for."""
    first, second, turns = await upload(store, 1), await upload(store, 1), 0
    go_on, write = asyncio.Event(), store._journal.write

    def purge_slowly(operation: Any, patient: bool = False) -> Any:
        if operation.__qualname__.startswith("Files._keep_purging"):
            return slowly(operation)
        return write(operation, patient)

    async def slowly(operation: Any) -> Any:
        nonlocal turns
        turns += 1
        await go_on.wait()
        turns -= 1
        return await write(operation)

    monkeypatch.setattr(store._journal, "write", purge_slowly)
    assert await store.files.remove(first) is None
    assert await store.files.remove(second) is None
    assert await store.expire() == 0
    assert turns == 1
    assert await rows(store) == (2, 2)
    go_on.set()
    await until_async(lambda: rows(store), "they are removed", holds=lambda now: now == (0, 0))


def test_a_database_of_the_version_before_gets_the_new_tables(tmp_path: Path) -> None:
    path = str(tmp_path / "responses.sqlite")
    first = database.connect(path)
    for table in (files, pieces):
        table.drop(first)
    first.dispose()
    again = database.connect(path)
    with again.begin() as connection:
        assert connection.execute(select(func.count()).select_from(pieces)).scalar_one() == 0
    again.dispose()
