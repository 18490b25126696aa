"""Chats that are stored and resumed: two ingresses (the real app and engine client), one store, scripted replicas."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from sqlalchemy import update

from deployments.access.usage import client as client_of
from deployments.ingress.responses import Run
from deployments.store.schema import responses
from tests.support.in_process import served
from tests.support.ingresses import Ingresses, two_ingresses
from tests.support.until import until_async

LENGTH = 40
PATH = "/v1/chat/completions"
Event = tuple[int, str]


def body(**options: Any) -> dict[str, Any]:
    question = {"role": "user", "content": "What is 12 + 30?"}
    asked = {"model": "nano", "messages": [question], "max_tokens": LENGTH, "temperature": 0, "stream": True}
    return asked | {"stream_options": {"include_usage": True}} | options


async def read(response: httpx.Response) -> list[Event]:
    """Return the number and the data of each event of a stream."""
    if response.status_code != 200:
        raise AssertionError((await response.aread()).decode())
    events: list[Event] = []
    number = -1
    async for line in response.aiter_lines():
        kind, _, value = line.partition(": ")
        if kind == "id":
            number = int(value)
        elif kind == "data":
            events.append((number, value))
    return events


class Clients(Ingresses):
    """What clients ask of the two, with a header of their own each time."""

    count = 0

    def named(self) -> dict[str, str]:
        self.count += 1
        return {"x-satori-resume": "1", "x-request-id": f"question-{self.count}"}

    async def make(self, headers: dict[str, str], **options: Any) -> list[Event]:
        return await read(await self.servers[0].http.post(PATH, json=body(**options), headers=headers))

    async def begin(self, headers: dict[str, str], tokens: int) -> tuple["asyncio.Task[list[Event]]", Run]:
        """Ask the first ingress, whose replicas write so many tokens and wait; return when they are in the store."""
        self.replicas[0].allowed = tokens
        asking = asyncio.create_task(self.make(headers))
        running = self.servers[0].responses._runs
        await until_async(lambda: len(running), "it runs", holds=lambda runs: runs == 1)
        [run] = running.values()
        await until_async(lambda: len(run.chain.tokens), "tokens are in the store", holds=lambda there: there == tokens)
        return asking, run

    async def resume(self, headers: dict[str, str], after: int | None = None, of: int = 1, **more: str) -> list[Event]:
        options = {} if after is None else {"starting_after": after}
        path = f"{PATH}/{headers['x-request-id']}"
        return await read(await self.servers[of].http.get(path, params=options, headers=more))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ingresses(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Clients]:
    async with two_ingresses(tmp_path_factory.mktemp("store") / "responses.sqlite") as made:
        yield Clients(*made)


pytestmark = pytest.mark.asyncio(loop_scope="module")


def said(events: list[Event]) -> str:
    """Return the text of a stream."""
    deltas = [choice["delta"] for _, data in events[:-1] for choice in json.loads(data)["choices"]]
    return "".join((delta.get("reasoning") or "") + (delta.get("content") or "") for delta in deltas)


THINKING = [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "<|continue|>One"}]


def eta_of(event: Event) -> list[float] | None:
    """Return what an event says of the time that the reply still takes."""
    choices = json.loads(event[1])["choices"] if event[1] != "[DONE]" else []
    return choices[0]["delta"].get("coat", {}).get("eta_s") if choices else None


async def test_events_are_the_same_whoever_makes_them(ingresses: Clients) -> None:
    headers = ingresses.named()
    events = await ingresses.make(headers)
    assert [number for number, _ in events] == list(range(len(events)))
    assert events[-1][1] == "[DONE]"
    assert json.loads(events[-2][1])["usage"]["completion_tokens"] == LENGTH
    assert {json.loads(data)["id"] for _, data in events[:-1]} == {f"chatcmpl-{headers['x-request-id']}"}
    assert await ingresses.resume(headers) == events
    for after in (0, 7, len(events) - 1):
        for ingress in (0, 1):
            assert await ingresses.resume(headers, after, ingress) == events[after + 1 :]
    assert await ingresses.resume(headers, None, **{"last-event-id": "7"}) == events[8:]
    by_name = {"x-request-id": f"chatcmpl-{headers['x-request-id']}"}
    assert await ingresses.resume(by_name, 7) == events[8:]
    with pytest.raises(AssertionError, match=f"starting_after={len(events)}: the last event of this response is"):
        await ingresses.resume(headers, len(events))


async def test_a_stored_chat_says_what_an_unstored_one_does(ingresses: Clients) -> None:
    stored = await ingresses.make(ingresses.named())
    unstored = await ingresses.make({"x-satori-resume": "0"})
    assert said(stored) == said(unstored)
    assert len(stored) > 10
    coat = [json.loads(events[-3][1])["choices"][0]["delta"]["coat"] for events in (stored, unstored)]
    assert coat[0] == coat[1]


async def test_a_stream_says_how_long_it_takes_if_asked(ingresses: Clients) -> None:
    """In a stored one each token has a chunk of its own, whatever the machine does."""
    asked = {"min_tokens": LENGTH, "messages": THINKING, "add_generation_prompt": False, "continue_final_message": True}
    events = await ingresses.make(ingresses.named(), coat={"eta": True}, **asked)
    told = [eta for eta in map(eta_of, events) if eta]
    assert len(told) >= 1
    assert 0 <= told[0][0] <= told[0][1] <= told[0][2]
    assert not any(map(eta_of, await ingresses.make(ingresses.named(), **asked)))
    waiting = ingresses.named()
    asking, _ = await ingresses.begin(waiting, 20)
    left_s = ingresses.servers[0].core.left_s()
    assert left_s is not None
    assert 0 <= left_s["p10"] <= left_s["p50"] <= left_s["p90"]
    ingresses.replicas[0].allowed = LENGTH
    await asking


async def test_a_client_that_leaves_ends_nothing(ingresses: Clients) -> None:
    whole = await ingresses.make(ingresses.named())
    headers = ingresses.named()
    asking, _ = await ingresses.begin(headers, 9)
    asking.cancel()
    watching = [asyncio.create_task(ingresses.resume(headers, 3, ingress)) for ingress in (0, 1)]
    ingresses.replicas[0].allowed = 10**6
    for rest in await asyncio.gather(*watching):
        assert [number for number, _ in rest] == list(range(4, len(whole)))
        assert said(rest) == said(whole[4:])


async def test_another_ingress_goes_on_with_what_its_holder_has_left(ingresses: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = await ingresses.make(ingresses.named())
    first, second = ingresses.replicas
    asked = len(second.asked)
    headers = ingresses.named()
    asking, run = await ingresses.begin(headers, 11)
    await ingresses.lose(run, monkeypatch)
    rest = await ingresses.resume(headers, 6)
    first.allowed = 10**6
    assert said(rest) == said(whole[7:])
    assert await asking == await ingresses.resume(headers)
    assert len(second.asked) == asked + 1


async def test_a_failed_chat_says_why_to_all(ingresses: Clients) -> None:
    replicas = ingresses.replicas[0]
    headers = ingresses.named()
    asking, _ = await ingresses.begin(headers, 9)
    prompt = replicas.asked[-1].prompt_token_ids or ()
    replicas.deadly, replicas.allowed = len(prompt) + 9, 10**6
    events = await asking
    replicas.deadly = 10**6
    assert "replicas died with this request" in json.loads(events[-2][1])["error"]["message"]
    assert events[-1][1] == "[DONE]"
    assert len(events) > 5
    assert await ingresses.resume(headers) == events


async def test_deleted_is_ended_and_gone(ingresses: Clients) -> None:
    headers = ingresses.named()
    asking, _ = await ingresses.begin(headers, 9)
    path = f"{PATH}/{headers['x-request-id']}"
    deleted = await ingresses.servers[0].http.delete(path)
    assert deleted.json() == {"id": headers["x-request-id"], "object": "chat.completion.deleted", "deleted": True}
    events = await asking
    ingresses.replicas[0].allowed = 10**6
    assert events[-1][1] == "[DONE]"
    for ask in (ingresses.servers[1].http.delete, ingresses.servers[0].http.get):
        gone = await ask(path)
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "chat_not_found")


async def test_chats_of_another_key_are_not_there(ingresses: Clients) -> None:
    headers = ingresses.named()
    mine = await ingresses.make(headers)
    name = client_of.set("bob")
    try:
        with pytest.raises(AssertionError, match="chat_not_found"):
            await ingresses.resume(headers)
        theirs = await ingresses.make(headers)  # ids are each key's own
        assert said(theirs) == said(mine)
    finally:
        client_of.reset(name)
    with pytest.raises(AssertionError, match="a stored chat has this id"):
        await ingresses.make(headers)


async def test_of_two_chats_at_once_under_one_id_one_is_refused(ingresses: Clients) -> None:
    headers = ingresses.named()
    asking = [ingresses.servers[number].http.post(PATH, json=body(), headers=headers) for number in (0, 0, 1)]
    replies = await asyncio.gather(*asking)
    assert sorted(reply.status_code for reply in replies) == [200, 409, 409]
    assert {reply.json()["error"]["code"] for reply in replies if reply.status_code == 409} == {"already_stored"}


async def test_an_id_may_be_used_again_when_its_time_is_over_or_it_was_deleted(ingresses: Clients) -> None:
    headers = ingresses.named()
    first = await ingresses.make(headers)
    chat = f"chatcmpl-{headers['x-request-id']}"
    over = update(responses).where(responses.c.request.contains(headers["x-request-id"])).values(expires_at=1.0)
    journal = ingresses.servers[0].responses.store._journal
    assert await journal.write(lambda connection: connection.execute(over).rowcount) == 1
    with pytest.raises(AssertionError, match="chat_not_found"):
        await ingresses.resume(headers)
    again = await ingresses.make(headers)
    assert await ingresses.resume(headers) == again
    assert (await ingresses.servers[1].http.delete(f"{PATH}/{chat}")).status_code == 200
    assert said(await ingresses.make(headers)) == said(again) == said(first)


async def test_a_name_may_have_the_prefix_of_ids(ingresses: Clients) -> None:
    events = await ingresses.make({"x-satori-resume": "1", "x-request-id": "chatcmpl-prefixed"})
    assert json.loads(events[0][1])["id"] == "chatcmpl-prefixed"
    for name in ("chatcmpl-prefixed", "prefixed"):
        assert await ingresses.resume({"x-request-id": name}) == events


async def test_so_many_clients_may_read_one_chat(ingresses: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.ingress.responses.WATCHERS", 2)
    headers = ingresses.named()
    asking, _ = await ingresses.begin(headers, 9)
    reading = [asyncio.create_task(ingresses.resume(headers, None, 1)) for _ in range(2)]
    watching = ingresses.servers[1].responses._watching
    await until_async(lambda: watching.total(), "both read", holds=lambda count: count == 2)
    with pytest.raises(AssertionError, match="2 clients are reading this reply here already"):
        await ingresses.resume(headers, None, 1)
    ingresses.replicas[0].allowed = 10**6
    events = await asking
    assert await asyncio.gather(*reading) == [events, events]
    assert not watching
    assert await ingresses.resume(headers, None, 1) == events


async def test_a_chat_that_cannot_be_made_again_has_failed(ingresses: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an upgrade with which a template fails: nobody tries for ever, and a client is told."""
    headers = ingresses.named()
    asking, run = await ingresses.begin(headers, 9)
    other = ingresses.servers[1].responses

    async def failing(_: Any) -> Any:
        raise ValueError("the template fails")

    monkeypatch.setattr(other.makers["chat"].__self__, "_made", failing)  # type: ignore[attr-defined]
    await ingresses.lose(run, monkeypatch)
    events = await asking
    ingresses.replicas[0].allowed = 10**6
    assert events[-1][1] == "[DONE]"
    stored = await other.find(run.stored.id)
    assert stored is not None
    assert stored.status == "failed"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stream": False, "stream_options": None}, "stream: only a stream can be resumed"),
        ({"n": 2, "temperature": 1}, "n: a reply with it cannot be resumed"),
        ({"coat": {"vote": {"samples": 3}}}, "coat.vote: a reply with it cannot be resumed"),
        ({"logprobs": True}, "logprobs: a reply with it cannot be resumed"),
        ({"max_tokens": 10**6}, "max_tokens"),
    ],
)
async def test_what_cannot_be_resumed_is_refused(ingresses: Clients, options: dict[str, Any], words: str) -> None:
    headers = ingresses.named()
    refused = await ingresses.servers[0].http.post(PATH, json=body(**options), headers=headers)
    assert refused.status_code == 400
    assert words in refused.json()["error"]["message"]
    with pytest.raises(AssertionError, match="chat_not_found"):
        await ingresses.resume(headers)


async def test_the_header_is_0_or_1(ingresses: Clients) -> None:
    refused = await ingresses.servers[0].http.post(PATH, json=body(), headers={"x-satori-resume": "yes"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-satori-resume")
    with pytest.raises(openai.NotFoundError):
        await ingresses.first.chat.completions.retrieve("none")


async def test_a_server_without_a_store_says_so() -> None:
    async with served() as server:
        refused = await server.http.post(PATH, json=body(), headers={"x-satori-resume": "1"})
        assert refused.status_code == 400
        assert "x-satori-resume: replies are not kept here (store.url)" in refused.json()["error"]["message"]
        assert (await server.http.get(f"{PATH}/none")).status_code == 404
