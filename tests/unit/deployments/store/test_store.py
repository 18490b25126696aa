"""The store of an ingress: writes in groups, a database that is full, and files that only their user can read."""

import asyncio
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import IntegrityError

from deployments.errors import StoreFullError, StoreUnavailableError
from deployments.observability import metrics
from deployments.store import database
from deployments.store.chain import Chain
from deployments.store.journal import Journal
from deployments.store.store import Store
from deployments.store.values import End, Stored
from tests.support.until import until_async

WRITES = 100


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = database.connect(str(tmp_path / "responses.sqlite"))
    yield made
    made.dispose()


@pytest.fixture
def journal(engine: Engine) -> Iterator[Journal]:
    made = Journal(lambda: engine, lambda connection, appends: [True] * len(appends))
    yield made
    made.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(str(tmp_path / "responses.sqlite"), "me", lease_s=10, max_bytes=2**20)
    yield made
    made.close()


def response(name: str, request: str = "{}") -> Stored:
    return Stored(name, "ada", "nano", "queued", True, request, "[]", "{}", time.time(), time.time() + 60)


def test_only_its_user_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "state" / "responses.sqlite"
    made = database.connect(str(path))
    with made.begin() as connection:
        connection.execute(text("INSERT INTO satori_tokens VALUES ('a', 0, x'00')"))
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    made.dispose()
    assert modes == {"responses.sqlite": 0o600, "responses.sqlite-wal": 0o600, "responses.sqlite-shm": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_writes_share_transactions_in_their_order(engine: Engine, journal: Journal) -> None:
    commits, order = 0, []

    @event.listens_for(engine, "commit")
    def count(_: Connection) -> None:
        nonlocal commits
        commits += 1

    def write(number: int) -> Any:
        return lambda connection: order.append(number)

    await asyncio.gather(*(journal.write(write(number)) for number in range(WRITES)))
    assert order == list(range(WRITES))
    assert commits <= 2


async def test_a_faulty_write_fails_alone(journal: Journal) -> None:
    def fail(connection: Connection) -> None:
        connection.execute(text("INSERT INTO satori_tokens VALUES ('a', 0, NULL)"))

    def write(connection: Connection) -> int:
        return connection.execute(text("INSERT INTO satori_tokens VALUES ('a', 1, x'00')")).rowcount

    wrong, right = journal.write(fail), journal.write(write)
    with pytest.raises(IntegrityError, match="NOT NULL"):
        await wrong
    assert await right == 1


async def test_a_full_disk_refuses_what_is_new_and_pauses_what_runs(engine: Engine, journal: Journal) -> None:
    full, failures = True, metrics.STORE_FAILURES.labels()._value.get()
    engine.dispose()

    @event.listens_for(engine, "begin")
    def limit(connection: Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count={1 if full else 10**6}")  # as SQLite sees a full disk

    def write(connection: Connection) -> int:
        blob = {"tokens": b"0" * 10**5}
        return connection.execute(text("INSERT INTO satori_tokens VALUES ('a', 0, :tokens)"), blob).rowcount

    running = journal.write(write, patient=True)
    with pytest.raises(StoreFullError, match="the disk of the stored responses is full"):
        await journal.write(write)
    assert not running.done()
    assert metrics.STORE_FAILURES.labels()._value.get() > failures
    full = False
    assert await running == 1


async def test_what_cannot_be_reached_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(str(tmp_path / "file" / "responses.sqlite"), "me", lease_s=10, max_bytes=2**20)
    for ask in (store.create(response("resp_1")), store.load("resp_1", None), store.remove("resp_1")):
        with pytest.raises(StoreUnavailableError, match="cannot be reached now"):
            await ask
    store.close()


async def test_all_together_have_a_bound(store: Store) -> None:
    await store.create(response("resp_1", "x" * 2**19))
    with pytest.raises(StoreFullError, match=r"store\.max_bytes=1048576\); delete some"):
        await store.create(response("resp_2", "x" * 2**19))
    await store.remove("resp_1")
    await store.create(response("resp_2", "x" * 2**19))


async def test_a_chain_delivers_what_is_stored_and_the_end_with_the_last_token(store: Store) -> None:
    writer = Chain(store, "resp_1", await store.create(response("resp_1")))
    delivered: list[Any] = []
    writer.start(lambda *part: delivered.append(part))
    writer.append([1, 2], None, "a")
    writer.append([3], End("stop", stop_reason=7), "b")
    assert delivered == [], "it is not in the store yet"
    end = End("stop", 3, stop_reason=7)
    await until_async(lambda: delivered, "both are", holds=lambda parts: parts == [([1, 2], None, "a"), ([3], end, "b")])
    again: list[Any] = []
    Chain(store, "resp_1").start(lambda *part: again.append(part))
    await until_async(lambda: again, "it is read again", holds=lambda parts: parts == [([1, 2, 3], end, None)])
