"""Stored responses, by OpenAI's own client: two ingresses (the real app and engine client), one store, scripted replicas."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from pydantic import TypeAdapter

from deployments.access.usage import client as client_of
from tests.support.in_process import served
from tests.support.ingresses import Ingresses, two_ingresses
from tests.support.until import until_async

LENGTH = 40
QUESTION = "What is 12 + 30?"


class Clients(Ingresses):
    """What clients ask of the two."""

    async def make(self, **options: Any) -> Any:
        asked = {"model": "nano", "input": QUESTION, "max_output_tokens": LENGTH, "temperature": 0} | options
        return await self.first.responses.create(**asked)

    async def ended(self, response_id: str) -> Any:
        found: list[Any] = []

        async def status() -> str:
            found.append(await self.second.responses.retrieve(response_id))
            return str(found[-1].status)

        while await status() in ("queued", "in_progress"):
            await asyncio.sleep(0.02)
        return found[-1]

    async def events(self, response_id: str, after: int = -1, of: openai.AsyncOpenAI | None = None) -> list[dict[str, Any]]:
        options = {} if after < 0 else {"starting_after": after}
        stream = await (of or self.second).responses.retrieve(response_id, stream=True, **options)
        return [event.model_dump() async for event in stream]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ingresses(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Clients]:
    async with two_ingresses(tmp_path_factory.mktemp("store") / "responses.sqlite") as made:
        yield Clients(*made)


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_response_in_the_background_is_polled_from_another_ingress(ingresses: Clients) -> None:
    made = await ingresses.make(background=True)
    assert (made.status, made.background, made.store) == ("queued", True, True)
    done = await ingresses.ended(made.id)
    assert done.status == "incomplete"
    assert done.usage.output_tokens == LENGTH
    assert done.output_text
    assert done.created_at == made.created_at
    assert await ingresses.first.responses.retrieve(made.id) == done


async def test_events_are_the_same_whoever_makes_them(ingresses: Clients) -> None:
    made = await ingresses.make(store=True, stream=True)
    events = [event.model_dump() async for event in made]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events][:2] == ["response.created", "response.in_progress"]
    assert events[-1]["type"] == "response.incomplete"
    response_id = events[0]["response"]["id"]
    assert await ingresses.events(response_id) == events
    for after in (0, 7, len(events) - 1):
        assert await ingresses.events(response_id, after) == events[after + 1 :]
        assert await ingresses.events(response_id, after, ingresses.first) == events[after + 1 :]
    with pytest.raises(openai.BadRequestError, match=f"starting_after={len(events)}: the last event of this response is"):
        await ingresses.events(response_id, len(events))
    whole = await ingresses.second.responses.retrieve(response_id)
    assert whole.model_dump() == events[-1]["response"]
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert whole.output_text == "".join(deltas)
    assert len(deltas) > 3


async def test_a_stored_response_has_its_chain(ingresses: Clients) -> None:
    """As an unstored one has it, whoever makes it, and with the limits of its request."""
    limits = {"extra_body": {"coat": {"max_reflections": 0, "max_reasoning_tokens": 1000}}}
    plain, stored = await ingresses.make(**limits), await ingresses.make(store=True, **limits)
    assert stored.coat == plain.coat
    events = await ingresses.events(stored.id)
    assert events[-1]["response"]["coat"] == plain.coat
    for request in ingresses.replicas[0].asked[-2:]:
        assert request.sampling_params.extra_args["coat"]["max_reasoning_tokens"] == 1000


async def test_a_stream_in_the_background_begins_queued(ingresses: Clients) -> None:
    events = [event.model_dump() async for event in await ingresses.make(background=True, stream=True)]
    states = [(event["type"], event["response"]["status"]) for event in events if "response" in event]
    assert states == [
        ("response.created", "queued"),
        ("response.queued", "queued"),
        ("response.in_progress", "in_progress"),
        ("response.incomplete", "incomplete"),
    ]
    assert await ingresses.events(events[0]["response"]["id"]) == events


async def test_another_ingress_goes_on_with_what_its_holder_has_left(ingresses: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is undisturbed says what is right: each ingress makes the tokens that follow from those before."""
    whole = await ingresses.make(store=True)
    first, second = ingresses.replicas
    first.allowed, asked = 11, len(second.asked)
    made = await ingresses.make(background=True)
    run = ingresses.servers[0].responses._runs[made.id]
    await until_async(lambda: len(run.chain.tokens), "tokens are in the store", holds=lambda there: there == 11)
    await ingresses.lose(run, monkeypatch)
    watching = asyncio.create_task(ingresses.events(made.id))
    done = await ingresses.ended(made.id)
    first.allowed = 10**6
    assert (done.status, done.output_text, done.usage.output_tokens) == ("incomplete", whole.output_text, LENGTH)
    assert [len(request.prompt_token_ids or ()) for request in second.asked[asked:]] == [whole.usage.input_tokens + 11]
    assert await watching == await ingresses.events(made.id)


async def test_a_client_that_leaves_ends_nothing(ingresses: Clients) -> None:
    ingresses.replicas[0].allowed = 5
    asking = asyncio.create_task(ingresses.make(store=True, metadata={"mark": "left"}))
    responses = ingresses.servers[0].responses
    await until_async(lambda: len(responses._runs), "it runs", holds=lambda runs: runs == 1)
    [response_id] = responses._runs
    asking.cancel()
    ingresses.replicas[0].allowed = 10**6
    done = await ingresses.ended(response_id)
    assert (done.usage.output_tokens, done.metadata) == (LENGTH, {"mark": "left"})


async def test_cancelled_is_cancelled_for_all(ingresses: Clients) -> None:
    ingresses.replicas[0].allowed = 6
    made = await ingresses.make(background=True)
    chain = ingresses.servers[0].responses._runs[made.id].chain
    await until_async(lambda: len(chain.tokens), "tokens are in the store", holds=lambda there: there == 6)
    cancelled = await ingresses.second.responses.cancel(made.id)
    assert cancelled.status == "cancelled"
    assert await ingresses.first.responses.cancel(made.id) == cancelled, "again"
    ingresses.replicas[0].allowed = 10**6
    events = await ingresses.events(made.id)
    assert (events[-1]["type"], events[-1]["sequence_number"]) == ("response.cancelled", len(events) - 1)
    assert await ingresses.events(made.id, of=ingresses.first) == events
    running = ingresses.servers[0].responses._runs
    await until_async(lambda: len(running), "the first ingress has stopped it", holds=lambda runs: runs == 0)
    done = await ingresses.make(store=True)
    with pytest.raises(openai.BadRequestError, match="only a response with `background: true` can be cancelled"):
        await ingresses.first.responses.cancel(done.id)


async def test_a_failed_response_says_why_to_all(ingresses: Clients) -> None:
    whole = await ingresses.make(store=True)
    replicas = ingresses.replicas[0]
    replicas.allowed = 9
    asking = asyncio.create_task(ingresses.make(background=True, stream=True))
    running = ingresses.servers[0].responses._runs
    await until_async(lambda: len(running), "it runs", holds=lambda runs: runs == 1)
    [chain] = [run.chain for run in running.values()]
    await until_async(lambda: len(chain.tokens), "tokens are in the store", holds=lambda there: there == 9)
    replicas.deadly, replicas.allowed = whole.usage.input_tokens + 9, 10**6
    events = [event.model_dump() async for event in await asking]
    replicas.deadly = 10**6
    last = events[-1]
    assert (last["type"], last["response"]["error"]["code"]) == ("response.failed", "server_error")
    assert "replicas died with this request" in last["response"]["error"]["message"]
    assert len([event for event in events if event["type"].endswith(".delta")]) > 3
    assert await ingresses.events(last["response"]["id"]) == events
    assert (await ingresses.second.responses.retrieve(last["response"]["id"])).status == "failed"


async def test_deleted_is_gone(ingresses: Clients) -> None:
    made = await ingresses.make(store=True)
    await ingresses.second.responses.delete(made.id)
    for ask in (ingresses.first.responses.retrieve, ingresses.first.responses.delete, ingresses.first.responses.cancel):
        with pytest.raises(openai.NotFoundError, match="there is no stored response"):
            await ask(made.id)


async def test_a_conversation_goes_on_over_both_ingresses(ingresses: Clients) -> None:
    one = await ingresses.make(store=True)
    options = {"model": "nano", "previous_response_id": one.id, "max_output_tokens": 4, "temperature": 0}
    two = await ingresses.second.responses.create(**options, input="And 2 more?", store=True)
    assert two.previous_response_id == one.id
    assert two.usage.input_tokens > one.usage.input_tokens
    items = [item.model_dump() async for item in ingresses.first.responses.input_items.list(two.id, order="asc", limit=2)]
    texts = [part["text"] for item in items for part in item["content"] or () if "text" in part]
    assert [texts[0], texts[-1]] == [QUESTION, "And 2 more?"]
    assert one.output_text in texts
    assert len({item["id"] for item in items}) == len(items)
    unstored = await ingresses.first.responses.create(**options, input="And 2 more?")
    assert (unstored.model_dump()["store"], unstored.previous_response_id) == (False, one.id)
    assert unstored.usage.input_tokens == two.usage.input_tokens
    with pytest.raises(openai.NotFoundError, match="there is no stored response 'resp_none'"):
        await ingresses.first.responses.create(model="nano", input="x", previous_response_id="resp_none")


async def test_items_of_any_type_are_stored(ingresses: Clients) -> None:
    given: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "12 + 30"}]},
        {"type": "function_call", "call_id": "call_1", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "42"},
    ]
    made = await ingresses.make(input=given, store=True, max_output_tokens=4)
    items = [item.model_dump() async for item in ingresses.second.responses.input_items.list(made.id, order="asc")]
    assert [item["type"] for item in items] == ["message", "reasoning", "function_call", "function_call_output"]
    assert items[1]["id"] == "rs_1"
    options = {"max_output_tokens": 4, "previous_response_id": made.id}
    for store in (True, False):
        assert (await ingresses.make(input=given[:3], store=store, **options)).usage.output_tokens == 4


async def test_responses_of_another_key_are_not_there(ingresses: Clients) -> None:
    made = await ingresses.make(store=True)
    name = client_of.set("bob")
    try:
        for ask in (ingresses.second.responses.retrieve, ingresses.second.responses.delete, ingresses.events):
            with pytest.raises(openai.NotFoundError):
                await ask(made.id)
    finally:
        client_of.reset(name)
    assert (await ingresses.second.responses.retrieve(made.id)).id == made.id


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"background": True, "store": False}, "background can only be used when `store` is true"),
        ({"store": True, "include": ["message.output_text.logprobs"]}, "include: a response with it cannot be stored"),
        ({"store": True, "max_output_tokens": 10**6}, "max_output_tokens"),
        ({"store": True, "extra_body": {"coat": {"vote": {}}}}, "coat.vote: a response with it cannot be stored"),
    ],
)
async def test_what_cannot_be_stored_is_refused(ingresses: Clients, options: dict[str, Any], words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        await ingresses.make(**options)


async def test_what_is_not_to_be_stored_leaves_nothing(ingresses: Clients) -> None:
    plain, refused = await ingresses.make(), await ingresses.make(store=False)
    for reply in (plain, refused):
        assert reply.model_dump()["store"] is False
        with pytest.raises(openai.NotFoundError):
            await ingresses.first.responses.retrieve(reply.id)


async def test_a_server_without_a_store_says_so() -> None:
    async with served() as server:
        gpt = openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="x", max_retries=0, http_client=server.http)
        with pytest.raises(openai.BadRequestError, match=r"background: replies are not kept here \(store.url\)"):
            await gpt.responses.create(model="nano", input="1", background=True)
        with pytest.raises(openai.NotFoundError):
            await gpt.responses.retrieve("resp_1")
        assert (await gpt.responses.create(model="nano", input="1", store=True)).model_dump()["store"] is False


EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


async def test_all_is_as_openais_schema_says(ingresses: Clients) -> None:
    """Its types are made from the schema that OpenAI publishes. Here they are checked, which the client itself does not do."""
    http = ingresses.servers[1].http
    made = [await ingresses.make(store=True), await ingresses.make(background=True), await ingresses.make(background=True)]
    await ingresses.first.responses.cancel(made[2].id)
    for one in made:
        await ingresses.ended(one.id)
        told = await http.get(f"/v1/responses/{one.id}")
        Response.model_validate_json(told.content)
        items = await http.get(f"/v1/responses/{one.id}/input_items")
        ResponseItemList.model_validate_json(items.content)
        stream = await http.get(f"/v1/responses/{one.id}", params={"stream": "true"})
        events = [line.removeprefix("data: ") for line in stream.text.splitlines() if line.startswith("data: {")]
        assert len(events) > 2
        for event in events:
            if '"response.cancelled"' in event:  # the schema has a state of that name, and no event for it
                Response.model_validate(json.loads(event)["response"])
            else:
                EVENT.validate_json(event)
