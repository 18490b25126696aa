"""The UI's client, and asking through it, against the scripted API."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support.clock import Clock
from tests.support.scripted_api import Background, ScriptedApi
from tests.support.until import until_async
from ui.asking import Stops, ask
from ui.client import Client
from ui.errors import ApiError, UnreachableError
from ui.question import Question
from ui.readiness import Readiness

NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def api() -> ScriptedApi:
    return ScriptedApi()


@pytest.fixture
def served(api: ScriptedApi) -> Iterator[str]:
    server = Background(api.app)
    yield server.url
    server.stop()


@pytest_asyncio.fixture
async def client(served: str) -> AsyncIterator[Client]:
    client = Client(served)
    yield client
    await client.close()


def question(text: str = "What is 47 * 6 - 100?", key: str = "", **more: Any) -> Question:
    return Question.model_validate({"id": "q", "messages": [{"role": "user", "content": text}], "key": key} | more)


async def until_stopped(api: ScriptedApi) -> None:
    await until_async(lambda: api.open_streams == 0, "the server is told to stop")


async def states(client: Client, asked: Question) -> list[dict[str, Any]]:
    return [state async for state in ask(client, asked, Stops())]


async def test_a_reply_from_the_first_state_to_the_last(client: Client, api: ScriptedApi) -> None:
    seen = await states(client, question(key="secret"))
    assert seen[0]["phase"] == "sent"
    last = seen[-1]
    assert (last["phase"], last["answer"]) == ("done", "182")
    assert [step["action"] for step in last["steps"]] == ["continue", "reflect", "explore", "continue"]
    assert last["stats"]["tokens"] == sum(step["tokens"] for step in last["steps"]) + 6
    assert last["stats"]["reasoning_tokens"] == sum(step["tokens"] for step in last["steps"])
    assert api.keys == ["Bearer secret"]


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        ("queue_full", "queue_full"),
        ("too_long", "too_long"),
        ("key", "key"),
        ("failed", "other"),
        ("broken", "lost"),
        ("event", "other"),
    ],
)
async def test_errors_have_their_kind(client: Client, trouble: str, kind: str) -> None:
    last = (await states(client, question(f"trouble: {trouble}")))[-1]
    assert (last["phase"], last["error"]["kind"]) == ("error", kind)
    if trouble == "queue_full":
        assert last["error"]["retry_after_s"] == 7
    if kind in ("other", "lost"):
        assert last["error"]["message"]
    if trouble in ("broken", "event"):
        assert last["steps"][0]["text"].startswith("First the product")


async def test_a_question_waits_for_the_model(client: Client, api: ScriptedApi) -> None:
    api.ready = False
    phases = []
    async for state in ask(client, question(), Stops()):
        phases.append(state["phase"])
        if state["phase"] == "waiting":
            assert state["waiting"]["kind"] == "loading"
            api.ready = True
    assert phases.index("waiting") < phases.index("done")


async def test_closing_stops_the_request_on_the_server(client: Client, api: ScriptedApi) -> None:
    api.gate.close()
    api.gate.open(3)
    asked = ask(client, question(), Stops())
    async for state in asked:
        if state["steps"]:
            break
    assert api.open_streams == 1
    await asked.aclose()
    await until_stopped(api)


async def test_a_stop_ends_the_reply_on_the_server(client: Client, api: ScriptedApi) -> None:
    api.gate.close()
    api.gate.open(3)
    stops, asked = Stops(), question()
    async for state in ask(client, asked, stops):
        if state["steps"]:
            await stops.stop(asked.id)
    assert state["phase"] not in ("done", "error")
    await until_stopped(api)


async def test_a_stop_that_overtakes_its_question(client: Client, api: ScriptedApi) -> None:
    stops, asked = Stops(), question()
    await stops.stop(asked.id)
    assert [state["phase"] async for state in ask(client, asked, stops)] == ["sent"]
    assert api.asked == []


async def test_readiness(client: Client, api: ScriptedApi) -> None:
    clock = Clock()
    readiness = Readiness(client, clock)
    api.ready = False
    assert (await readiness.state())["stage"] == "loading"
    clock.now_s = 30
    state = await readiness.state()
    assert (state["elapsed_s"], state["reason"]) == (30, "no LLM replica is up")
    api.ready = True
    assert (await readiness.state())["stage"] == "loading"  # just asked
    clock.now_s = 32
    state = await readiness.state()
    assert (state["stage"], state["elapsed_s"]) == ("ready", 0)
    assert state["models"] == [{"id": "nano", "max_model_len": 4096}]


async def test_nobody_listens() -> None:
    client = Client(NOBODY)
    assert (await Readiness(client).state())["stage"] == "starting"
    with pytest.raises(UnreachableError):
        await anext(client.chat(question(), True))
    with pytest.raises(ApiError):
        await client.models()
    await client.close()
