"""Replies that the API stores: they go on after connections have broken, as if none had."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.support.scripted_api import Background, ScriptedApi
from tests.support.until import until_async
from ui import asking
from ui.app import asgi
from ui.asking import Stops, ask
from ui.changes import change
from ui.client import Client
from ui.question import Question

TIMES = ("elapsed_s", "progress", "stats")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "RETRY_S", 0.02)


@pytest.fixture
def api() -> ScriptedApi:
    api = ScriptedApi()
    api.stores = True
    return api


@pytest.fixture
def server(api: ScriptedApi) -> Iterator[Background]:
    server = Background(api.app)
    yield server
    api.gate.open()
    server.stop()


@pytest_asyncio.fixture
async def client(server: Background) -> AsyncIterator[Client]:
    client = Client(server.url)
    yield client
    await client.close()


def question(name: str, **more: Any) -> Question:
    return Question.model_validate({"id": name, "messages": [{"role": "user", "content": "What is 47 * 6 - 100?"}]} | more)


def timeless(state: dict[str, Any]) -> dict[str, Any]:
    """Return what does not depend on when the reply's events came."""
    steps = [{name: value for name, value in step.items() if name != "seconds"} for step in state["steps"]]
    stats = {name: value for name, value in (state["stats"] or {}).items() if not name.endswith("_s") and name != "seconds"}
    return {name: value for name, value in state.items() if name not in ("id", *TIMES)} | {"steps": steps, "stats": stats}


async def last(client: Client, asked: Question) -> dict[str, Any]:
    return [state async for state in ask(client, asked, Stops())][-1]


@pytest.mark.parametrize("kind", ["cut", "event"])
async def test_a_reply_goes_on_over_many_connections(client: Client, api: ScriptedApi, kind: str) -> None:
    whole = await last(client, question("whole"))
    assert (whole["phase"], whole["answer"], whole["stored"]) == ("done", "182", True)
    api.endings = [(kind, count) for count in (3, 1, 0, 7, 20)]
    broken = await last(client, question("broken"))
    assert api.endings == []
    assert timeless(broken) == timeless(whole)
    assert broken["stats"]["seconds"] is not None, "the times are those in which its events came"
    assert len(api.asked) == 2


async def test_a_reply_that_broke_before_its_first_event_is_not_asked_twice(client: Client, api: ScriptedApi) -> None:
    api.endings = [("cut", 0), ("event", 0)]
    assert (await last(client, question("q")))["answer"] == "182"
    assert len(api.asked) == 1


async def test_a_reply_that_is_read_again_is_the_same_and_has_no_times(client: Client, api: ScriptedApi) -> None:
    whole = await last(client, question("q"))
    for resumed in (False, True):
        again = await last(client, question("q", resumed=resumed))
        assert timeless(again) == timeless(whole)
        assert [step["seconds"] for step in again["steps"]] == [None] * 4
        assert [again["stats"][name] for name in ("ttft_s", "seconds", "tokens_per_s")] == [None] * 3
    assert len(api.asked) == 1


async def test_a_reply_that_is_gone(client: Client, api: ScriptedApi) -> None:
    state = await last(client, question("unknown", resumed=True))
    assert (state["phase"], state["error"]["kind"]) == ("error", "gone")
    api.gate.close()
    api.gate.open(5)
    async with aclosing(ask(client, question("q"), Stops())) as states:
        async for state in states:
            if state["steps"]:
                await client.delete("q")
                api.gate.open()
    assert (state["phase"], state["error"]["kind"], len(state["steps"])) == ("error", "gone", 1)


async def test_leaving_ends_nothing_and_a_stop_deletes(server: Background, api: ScriptedApi) -> None:
    api.gate.close()
    api.gate.open(5)
    ui = Background(asgi(server.url))
    asked = question("q", key="secret").model_dump()
    async with httpx.AsyncClient(base_url=ui.url, timeout=30, trust_env=False) as http:
        async with http.stream("POST", "/ui/ask", json=asked):
            await until_async(lambda: api.reading == 1, "it is read")
        await until_async(lambda: api.reading == 0, "nobody reads it")
        assert api.open_streams == 1
        for deleted in (["q"], ["q"]):
            assert (await http.post("/ui/stop", json={"id": "q", "key": "secret"})).status_code == 204
            assert api.deleted == deleted
        await until_async(lambda: api.open_streams == 0, "it is written no more")
        server.stop()
        assert (await http.post("/ui/stop", json={"id": "q"})).status_code == 503
        assert (await http.post("/ui/stop", json={"id": "../models"})).status_code == 422
    ui.stop()


async def test_a_stop_finds_a_question_that_is_on_its_way(client: Client, api: ScriptedApi) -> None:
    """The API has it, and has not answered yet: there is something to delete once the stop is done."""
    held, begun = asyncio.Event(), asyncio.Event()
    send = client._http.send

    async def slow(request: httpx.Request, **options: Any) -> httpx.Response:
        begun.set()
        await held.wait()
        return await send(request, **options)

    client._http.send = slow  # type: ignore[method-assign]
    stops, seen = Stops(), []

    async def read() -> None:
        seen.extend([state async for state in ask(client, question("q"), stops)])

    reading = asyncio.create_task(read())
    await begun.wait()
    stopping = asyncio.create_task(stops.stop("q"))
    await asyncio.sleep(0)
    held.set()
    await stopping
    assert list(api.stored) == ["q"]
    await reading
    assert {state["phase"] for state in seen} == {"sent"}


async def test_votes_are_not_stored_and_do_not_go_on(client: Client, api: ScriptedApi) -> None:
    state = await last(client, question("q", settings={"votes": 3}))
    assert (state["phase"], state["stored"], api.stored) == ("done", False, {})


async def test_an_api_that_stores_nothing_is_asked_without(client: Client, api: ScriptedApi) -> None:
    api.stores = False
    state = await last(client, question("q"))
    assert (state["phase"], state["stored"], len(api.asked)) == ("done", False, 1)


def changed(value: Any, change: dict[str, Any]) -> Any:
    """As the page does it."""
    if "=" in change:
        return change["="]
    if "+" in change:
        return value + change["+"]
    now = dict(enumerate(value)) if isinstance(value, list) else dict(value)
    for key, inner in change.items():
        place = int(key) if isinstance(value, list) else key
        now[place] = changed(now.get(place), inner)
    return [now[at] for at in range(len(now))] if isinstance(value, list) else now


async def test_changes_make_the_states_again(client: Client, api: ScriptedApi) -> None:
    api.pace_s = 0.01
    before: Any = None
    sizes = []
    async for state in ask(client, question("q"), Stops()):
        told = change(before, state)
        assert changed(before, told) == state
        sizes.append(len(str(told)))
        before = state
    assert len(sizes) > 5
    assert min(sizes[1:]) < len(str(before)) / 2, "a growing reply is not sent again"
    for old, new in (([1, 2], [1]), ({"a": 1, "b": 2}, {"a": 1}), ("ab", "ac"), (None, []), ([[1]], [[1, 2], [3]])):
        assert changed(old, change(old, new)) == new
