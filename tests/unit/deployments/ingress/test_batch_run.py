"""A batch that is run, on a real store; who answers its lines is scripted."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments.errors import StoreFullError
from deployments.ingress import batch_run
from deployments.ingress.batch_input import Line
from deployments.ingress.batch_pace import Pace
from deployments.ingress.batch_run import Place, Run
from deployments.ingress.inner import Answer
from deployments.ingress.middleware.access import Guard
from deployments.store import room
from deployments.store.store import Store
from tests.support.batches import batch, upload
from tests.support.until import until_async

MAX_BYTES = 2**20
LINE_BYTES = 2**16


class Inner:
    """Stands in for the app: says what `answer` does of a body, or raises it."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.answer: Callable[[dict[str, Any]], Answer] = lambda _: Answer("req_1", 200, b'{"choices": []}')

    async def ask(self, _path: str, body: bytes, *_: Any) -> Answer:
        self.asked.append(json.loads(body))
        return self.answer(self.asked[-1])


class Ingress:
    """A place where batches are run, and the batch `batch_1` in its store."""

    def __init__(self, path: Path) -> None:
        self.store = Store(str(path / "responses.sqlite"), "me", lease_s=60, max_bytes=MAX_BYTES)
        self.inner, self.pace = Inner(), Pace(20, 0.2, lambda kept: math.inf)
        self.place = Place(self.store, self.inner, Guard(None), self.pace, 3600, LINE_BYTES)  # type: ignore[arg-type]

    async def make(self, lines: int, **body: Any) -> None:
        text = "".join(
            json.dumps({"custom_id": f"sum {n}", "method": "POST", "url": "/v1/completions", "body": {"n": n} | body}) + "\n"
            for n in range(1, lines + 1)
        )
        assert await self.store.batches.create(batch("batch_1", await upload(self.store, data=text.encode())))

    async def claim(self) -> Run:
        taken = await self.store.batches.claim("batch_1")
        assert taken is not None
        return Run(self.place, *taken)

    async def status(self) -> str:
        found = await self.store.batches.load("batch_1", "ada")
        assert found is not None
        return found.status

    async def results(self) -> dict[str | None, dict[str, Any]]:
        found = {}
        for file in await self.store.files.list("ada", "batch_output", None, 9, ascending=True):
            lines = b"".join([data async for data in self.store.files.content(file)]).splitlines()
            found |= {line["custom_id"]: line for line in map(json.loads, lines)}
        return found


@pytest.fixture
def ingress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ingress]:
    monkeypatch.setattr(batch_run, "AGAIN_S", 0.001)
    made = Ingress(tmp_path)
    yield made
    made.store.close()


async def test_a_line_that_cannot_be_asked_for_fails_alone(ingress: Ingress, monkeypatch: pytest.MonkeyPatch) -> None:
    await ingress.make(4)

    def answer(body: dict[str, Any]) -> Answer:
        if body["n"] == 1:
            raise RuntimeError("a fault")
        if body["n"] == 2:
            raise RecursionError
        return Answer("req_1", 200, b"{}")

    ingress.inner.answer = answer
    split, splits = batch_run.split, 0

    async def shorter(*arguments: Any) -> AsyncIterator[list[Line]]:
        """After the check, `http.max_body_bytes` is lowered."""
        nonlocal splits
        splits += 1
        late = splits > 1
        async for group in split(*arguments):
            yield [Line(line.number, None) if late and line.number == 3 else line for line in group]

    monkeypatch.setattr(batch_run, "split", shorter)
    await (await ingress.claim()).run()
    assert await ingress.status() == "completed"
    results = await ingress.results()
    assert {name: line["response"]["status_code"] for name, line in results.items()} == {
        "sum 1": 500,
        "sum 2": 400,
        None: 413,
        "sum 4": 200,
    }
    assert "nested deeper" in results["sum 2"]["response"]["body"]["error"]["message"]
    assert "http.max_body_bytes" in results[None]["response"]["body"]["error"]["message"]
    assert ingress.pace.running == 0


async def test_a_line_that_is_written_holds_no_place(ingress: Ingress, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each line that is refused at once would wait for a transaction: the pace does not grow by them."""
    await ingress.make(6)
    record, written = ingress.store.batches.record, asyncio.Event()

    async def later(*arguments: Any) -> bool:
        await written.wait()
        return await record(*arguments)

    monkeypatch.setattr(ingress.store.batches, "record", later)
    ingress.inner.answer = lambda _: Answer("req_1", 400, b"{}")
    running = asyncio.create_task((await ingress.claim()).run())
    assert ingress.pace.limit == 1
    await until_async(lambda: len(ingress.inner.asked), "all lines to be asked for", holds=lambda asked: asked == 6)
    written.set()
    await running
    assert {line["response"]["status_code"] for line in (await ingress.results()).values()} == {400}
    assert ingress.pace.running == 0


async def test_a_fault_of_the_store_leaves_the_batch_after_a_pause(ingress: Ingress, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_run, "AWAY_S", 600.0)
    await ingress.make(1)
    failed = asyncio.Event()

    async def fail(*_: Any) -> bool:
        failed.set()
        raise RuntimeError("a fault")

    with monkeypatch.context() as patch:
        patch.setattr(ingress.store.batches, "record", fail)
        run = await ingress.claim()
        running = asyncio.create_task(run.run())
        await failed.wait()
        await until_async(lambda: ingress.pace.running == 0, "its line ends")
        assert await ingress.store.batches.beat(run.lease) == "in_progress"
        assert not running.done()
        assert await ingress.store.batches.claimable("nano", 9) == [], "nobody tries it again at once"
        run.stop("left")  # as the ingress drains
        await running
    assert await ingress.store.batches.claimable("nano", 9) == ["batch_1"]
    await (await ingress.claim()).run()
    assert await ingress.status() == "completed"


async def test_a_batch_waits_for_room_in_the_store(ingress: Ingress, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_run, "AWAY_S", 0.01)
    monkeypatch.setattr(room, "LOOK_S", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(ingress.store._room, "_max_bytes", 10 * MAX_BYTES)
        filler = await upload(ingress.store, data=b"x" * MAX_BYTES)
        await ingress.make(1)
    with pytest.raises(StoreFullError, match="delete some files"):
        await ingress.store.batches.create(batch("batch_2", filler))
    running = asyncio.create_task((await ingress.claim()).run())
    await until_async(ingress.status, "it is checked", holds=lambda now: now == "in_progress")
    looks, is_left = 0, ingress.store._room.is_left

    async def look() -> bool:
        nonlocal looks
        looks += 1
        return await is_left()

    monkeypatch.setattr(ingress.store._room, "is_left", look)
    await until_async(lambda: looks > 2, "it has looked for room")
    assert ingress.inner.asked == []
    await ingress.store.files.remove(filler)
    await running
    assert await ingress.status() == "completed"


async def test_of_an_input_that_was_not_checked_nothing_is_written_down(ingress: Ingress) -> None:
    """Its lines may be anything."""
    file = await upload(ingress.store, data=b'{"custom_id": "a"}\n' * 2)
    assert await ingress.store.batches.create(batch("batch_1", file, deadline=0.0))
    await (await ingress.claim()).run()
    assert await ingress.status() == "expired"
    assert await ingress.results() == {}


async def test_each_line_of_a_late_batch_has_a_result(ingress: Ingress, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is too long by now."""
    await ingress.make(2)
    run = await ingress.claim()
    assert await ingress.store.batches.begin(run.lease, 2)
    await ingress.store.batches.release(run.lease)
    run = await ingress.claim()
    split = batch_run.split

    async def shorter(*arguments: Any) -> AsyncIterator[list[Line]]:
        async for group in split(*arguments):
            yield [Line(line.number, None) if line.number == 2 else line for line in group]

    monkeypatch.setattr(batch_run, "split", shorter)
    run.stop("expired")
    await run.run()
    assert await ingress.status() == "expired"
    assert {name: line["error"]["code"] for name, line in (await ingress.results()).items()} == {
        "sum 1": "batch_expired",
        None: "batch_expired",
    }


@pytest.mark.parametrize("steps", range(7))
async def test_a_run_that_ends_at_any_moment_leaves_no_line_running(
    ingress: Ingress, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """One of these moments is before a line's first step."""
    await ingress.make(1)
    run = await ingress.claim()
    assert await ingress.store.batches.begin(run.lease, 1)
    await ingress.store.batches.release(run.lease)
    run = await ingress.claim()

    async def content() -> AsyncIterator[list[Line]]:
        for _ in range(steps):
            await asyncio.sleep(0)
        yield [Line(1, b'{"custom_id": "a", "body": {}}')]

    async def at_once(*_: Any) -> Any:
        return set()

    for of, name in ((ingress.store.files, "being_read"), (ingress.store.batches, "done")):
        monkeypatch.setattr(of, name, at_once)
    monkeypatch.setattr(batch_run, "split", lambda *_: content())
    run.stop("cancelled")
    await run._work()
    assert ingress.pace.running == 0
