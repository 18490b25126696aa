"""Batches, by OpenAI's own client: two ingresses (the real app and engine client), one store, scripted replicas."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai.types import Batch, FileDeleted, FileObject
from pydantic import TypeAdapter
from sqlalchemy import update

from deployments.access.usage import client as client_of
from deployments.engine_client.client import ServeEngineClient
from deployments.ingress import batch_run
from deployments.ingress.batches import OF_A_KEY
from deployments.observability import metrics
from deployments.observability.writer import NO_KEY
from deployments.store.schema import batches as table
from deployments.transport.channel import DEFERRED
from tests.support.in_process import Server, served
from tests.support.scripted_replicas import ScriptedReplicas
from tests.support.until import until_async

LEASE_S = "6"
"""Longer than a busy machine holds up a test: else the other ingress takes over."""
COMPLETIONS = "/v1/completions"
pytestmark = pytest.mark.asyncio(loop_scope="module")


class Ingresses:
    """Two ingresses that share a store; the replicas of each, and a client of each. Only the first one runs batches by itself."""

    def __init__(self, servers: list[Server], replicas: list[ScriptedReplicas]) -> None:
        self.servers, self.replicas = servers, replicas
        self.first, self.second = (
            openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="x", http_client=s.http, max_retries=0) for s in servers
        )

    async def make(self, lines: list[dict[str, Any] | str], endpoint: str = COMPLETIONS, **options: Any) -> openai.types.Batch:
        text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
        file = await self.first.files.create(file=("sums.jsonl", io.BytesIO(text.encode())), purpose="batch")
        asked: Any = {"input_file_id": file.id, "endpoint": endpoint, "completion_window": "24h"}
        return await self.first.batches.create(**asked | options)

    async def ended(self, batch: openai.types.Batch, status: str) -> openai.types.Batch:
        found = await until_async(
            lambda: self.second.batches.retrieve(batch.id), "it ends", 60, holds=lambda now: now.status in ENDED, every_s=0.05
        )
        assert found.status == status
        return found

    async def read(self, file: str | None) -> dict[str, dict[str, Any]]:
        """Return a file's lines by their `custom_id`, each of which is there once."""
        assert file is not None
        lines = [json.loads(line) for line in (await self.second.files.content(file)).text.splitlines()]
        found = {line["custom_id"]: line for line in lines}
        assert len(found) == len(lines)
        return found


ENDED = ("completed", "failed", "expired", "cancelled")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ingresses(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ingresses]:
    url = tmp_path_factory.mktemp("store") / "responses.sqlite"
    async with AsyncExitStack() as stack:
        servers, replicas = [], []
        for number in range(2):
            fleet = ScriptedReplicas(lambda position: 40 + position % 50)

            def core(*_: Any, hooks: Any, ports: Any, fleet: ScriptedReplicas = fleet, **options: Any) -> ServeEngineClient:
                return ServeEngineClient(fleet, "127.0.0.1", hooks=hooks, **options)  # type: ignore[arg-type]

            server = await stack.enter_async_context(
                served(core, store__url=str(url), store__lease_s=LEASE_S, llm__silent_after_s="600")
            )
            if number:
                server.batches.close()
            servers.append(server)
            replicas.append(fleet)
        yield Ingresses(servers, replicas)
        for server, fleet in zip(servers, replicas, strict=True):
            server.batches.close()
            server.responses.close()
            fleet.close()


def line(number: int, url: str = COMPLETIONS, **fields: Any) -> dict[str, Any]:
    body = {"model": "nano", "prompt": f"{number} + 1 =", "max_tokens": 3} | fields
    return {"custom_id": f"sum {number}", "method": "POST", "url": url, "body": body}


def of_no_key() -> tuple[float, float]:
    """Return how many requests, and tokens of replies, were counted without a key."""
    return metrics.KEY_REQUESTS.labels(NO_KEY)._value.get(), metrics.KEY_TOKENS.labels(NO_KEY, "output")._value.get()


async def test_each_line_has_its_result(ingresses: Ingresses) -> None:
    bad = [line(98, max_tokens=-1), line(99, model="other")]
    counted = of_no_key()
    made = await ingresses.make([*(line(number) for number in range(20)), *bad], metadata={"of": "ada"})
    assert (made.object, made.status, made.endpoint, made.metadata) == ("batch", "validating", COMPLETIONS, {"of": "ada"})
    assert made.expires_at == made.created_at + 86400
    done = await ingresses.ended(made, "completed")
    assert done.request_counts is not None
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (22, 20, 2)
    assert done.in_progress_at is not None
    assert done.in_progress_at <= (done.finalizing_at or 0) <= (done.completed_at or 0)
    output, errors = await ingresses.read(done.output_file_id), await ingresses.read(done.error_file_id)
    assert sorted(output) == sorted(f"sum {number}" for number in range(20))
    response = output["sum 7"]["response"]
    assert (response["status_code"], output["sum 7"]["error"], response["body"]["usage"]["completion_tokens"]) == (200, None, 3)
    assert set(ingresses.replicas[0].clients) == {DEFERRED}, "they start after all others"
    assert [now - before for now, before in zip(of_no_key(), counted, strict=True)] == [20, 60]
    alone = await ingresses.first.completions.create(**line(7)["body"])
    assert response["body"]["choices"][0]["text"] == alone.choices[0].text
    assert {name: found["response"]["status_code"] for name, found in errors.items()} == {"sum 98": 400, "sum 99": 404}
    assert "max_tokens" in errors["sum 98"]["response"]["body"]["error"]["message"]
    file = await ingresses.first.files.retrieve(done.output_file_id or "")
    assert (file.purpose, file.filename) == ("batch_output", f"{made.id}_output.jsonl")
    assert len((await ingresses.first.files.content(file.id)).content) == file.bytes
    await ingresses.first.files.delete(file.id)
    assert await ingresses.read(done.error_file_id) == errors


@pytest.mark.parametrize(
    ("url", "body", "holds"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "1 + 1"}]}, "choices"),
        ("/v1/responses", {"input": "1 + 1", "max_output_tokens": 3}, "output"),
    ],
)
async def test_the_other_endpoints(ingresses: Ingresses, url: str, body: dict[str, Any], holds: str) -> None:
    good = {"custom_id": "a", "method": "POST", "url": url, "body": {"model": "nano", "max_tokens": 3} | body}
    refused = [{**good, "custom_id": name, "body": good["body"] | {name: True}} for name in batch_run.NOT_IN_LINES]
    unstored = {**good, "custom_id": "b", "body": good["body"] | {"store": False}}
    done = await ingresses.ended(await ingresses.make([good, unstored, *refused], url), "completed")
    output = await ingresses.read(done.output_file_id)
    assert output.keys() == {"a", "b"}
    assert holds in output["a"]["response"]["body"]
    errors = await ingresses.read(done.error_file_id)
    assert errors.keys() == {"stream", "background", "store"}
    for name, result in errors.items():
        error = result["response"]["body"]["error"]
        assert (error["message"], error["param"]) == (f"{name}: not in a batch; leave it out", name)


async def test_an_input_that_is_wrong_fails_with_the_numbers_of_its_lines(ingresses: Ingresses) -> None:
    wrong = [line(1), "", "{", line(1), line(2, "/v1/responses"), {"custom_id": "x", "method": "GET", "url": COMPLETIONS}]
    failed = await ingresses.ended(await ingresses.make(wrong), "failed")
    assert failed.errors is not None
    assert [(error.line, error.code, error.param) for error in failed.errors.data or ()] == [
        (3, "invalid_json_line", None),
        (4, "duplicate_custom_id", "custom_id"),
        (5, "mismatched_url", "url"),
        (6, "invalid_method", "method"),
    ]
    assert (failed.output_file_id, failed.error_file_id, failed.in_progress_at) == (None, None, None)
    empty = await ingresses.ended(await ingresses.make([" "]), "failed")
    assert empty.errors is not None
    assert [(error.code, error.line) for error in empty.errors.data or ()] == [("empty_file", None)]


async def test_cancelled_keeps_what_is_done(ingresses: Ingresses) -> None:
    ingresses.replicas[0].allowed = 5
    made = await ingresses.make([*(line(number) for number in range(4)), *(line(number, max_tokens=9) for number in range(4, 90))])
    await until_async(
        lambda: ingresses.second.batches.retrieve(made.id),
        "four are done, and others run",
        60,
        holds=lambda now: now.request_counts is not None and now.request_counts.completed == 4,
    )
    with pytest.raises(openai.BadRequestError, match=f"is read by {made.id}, which has not ended"):
        await ingresses.first.files.delete(made.input_file_id)
    assert (await ingresses.second.batches.cancel(made.id)).status == "cancelling"
    cancelled = await ingresses.ended(made, "cancelled")
    ingresses.replicas[0].allowed = 10**6
    assert sorted(await ingresses.read(cancelled.output_file_id)) == ["sum 0", "sum 1", "sum 2", "sum 3"]
    assert cancelled.error_file_id is None
    assert (await ingresses.first.batches.cancel(made.id)) == cancelled, "again"
    assert ingresses.servers[0].batches.pace.running == 0
    assert ingresses.servers[0].core.open_requests == []  # type: ignore[attr-defined]


async def test_what_is_late_expires(ingresses: Ingresses, monkeypatch: pytest.MonkeyPatch) -> None:
    ingresses.replicas[0].allowed = 5
    made = await ingresses.make([line(1), line(2, max_tokens=9), line(3, max_tokens=9)])
    await until_async(
        lambda: ingresses.second.batches.retrieve(made.id),
        "one is done",
        60,
        holds=lambda now: now.request_counts is not None and now.request_counts.completed == 1,
    )
    run = ingresses.servers[0].batches._runs[made.id]
    monkeypatch.setattr(run, "_now", lambda: made.expires_at + 1.0)
    await run.beat()
    expired = await ingresses.ended(made, "expired")
    ingresses.replicas[0].allowed = 10**6
    assert list(await ingresses.read(expired.output_file_id)) == ["sum 1"]
    errors = await ingresses.read(expired.error_file_id)
    assert {name: (found["response"], found["error"]["code"]) for name, found in errors.items()} == {
        "sum 2": (None, "batch_expired"),
        "sum 3": (None, "batch_expired"),
    }
    assert expired.expired_at is not None


async def test_another_ingress_goes_on_where_its_holder_was_lost(ingresses: Ingresses, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = ingresses.servers
    ingresses.replicas[0].allowed = 5
    made = await ingresses.make([line(number, max_tokens=3 if number < 4 else 9) for number in range(12)])
    await until_async(
        lambda: ingresses.second.batches.retrieve(made.id),
        "four are done",
        60,
        holds=lambda now: now.request_counts is not None and now.request_counts.completed == 4,
    )
    run = first.batches._runs[made.id]
    with monkeypatch.context() as patch:
        patch.setattr(first.batches, "_look", lambda: asyncio.sleep(0))  # it is dead
        await first.responses.store.batches.release(run.lease)  # as if as much time had passed
        asked = len(ingresses.replicas[1].asked)
        await second.batches._look()
        ingresses.replicas[0].allowed = 10**6  # it comes back: what it writes comes too late
        done = await ingresses.ended(made, "completed")
    assert done.request_counts is not None
    assert (done.request_counts.completed, done.request_counts.failed) == (12, 0)
    assert len(await ingresses.read(done.output_file_id)) == 12
    assert len(ingresses.replicas[1].asked) - asked == 8, "only the lines without a result"
    await until_async(lambda: made.id in first.batches._runs, "the first one gives up", holds=lambda runs: not runs)


async def test_one_keys_batches_leave_places_for_others(ingresses: Ingresses) -> None:
    ingresses.replicas[0].allowed = 5
    mine = [await ingresses.make([line(1, max_tokens=9)]) for _ in range(OF_A_KEY + 1)]

    async def of_bob() -> None:
        client_of.set("bob")
        made = await ingresses.make([line(1, max_tokens=9)])
        await until_async(
            lambda: ingresses.first.batches.retrieve(made.id), "it runs", holds=lambda now: now.status == "in_progress"
        )
        await ingresses.first.batches.cancel(made.id)

    await asyncio.create_task(of_bob())
    *running, waiting = mine
    for batch in running:
        await until_async(
            lambda batch=batch: ingresses.first.batches.retrieve(batch.id), "it runs", holds=lambda now: now.status == "in_progress"
        )
    assert (await ingresses.first.batches.retrieve(waiting.id)).status == "validating"
    await ingresses.first.batches.cancel(waiting.id)
    await ingresses.ended(waiting, "cancelled")
    for batch in running:
        assert (await ingresses.first.batches.retrieve(batch.id)).status == "in_progress"
        await ingresses.first.batches.cancel(batch.id)
    for batch in running:
        await ingresses.ended(batch, "cancelled")
    ingresses.replicas[0].allowed = 10**6


async def test_a_line_for_which_there_is_no_room_waits(ingresses: Ingresses, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times the server is busy, as a client would be told."""
    inner, busy = ingresses.servers[0].batches._inner, 3
    ask = inner.ask

    async def refuse(*arguments: Any) -> Any:
        nonlocal busy
        busy -= 1
        return await ask(*arguments) if busy < 0 else batch_run.Answer("req_1", 429, b"{}")

    monkeypatch.setattr(inner, "ask", refuse)
    monkeypatch.setattr(batch_run, "AGAIN_S", 0.01)
    done = await ingresses.ended(await ingresses.make([line(1), line(2)]), "completed")
    assert sorted(await ingresses.read(done.output_file_id)) == ["sum 1", "sum 2"]


async def test_batches_are_listed_and_are_their_keys_alone(ingresses: Ingresses) -> None:
    made = [await ingresses.make([line(1)]) for _ in range(3)]
    found = [batch.id async for batch in ingresses.second.batches.list(limit=2)]
    assert found[:3] == [batch.id for batch in reversed(made)]
    last = await ingresses.ended(made[-1], "completed")
    for batch in made[:-1]:
        await ingresses.ended(batch, "completed")

    async def ask() -> None:
        client_of.set("eve")
        assert [batch async for batch in ingresses.second.batches.list()] == []
        for asked in (
            ingresses.first.batches.retrieve(last.id),
            ingresses.first.batches.cancel(last.id),
            ingresses.first.files.content(last.output_file_id or ""),
            ingresses.first.batches.list(after=last.id),
            ingresses.first.batches.create(input_file_id=last.input_file_id, endpoint=COMPLETIONS, completion_window="24h"),
        ):
            with pytest.raises(openai.NotFoundError):
                await asked

    await asyncio.create_task(ask())
    with pytest.raises(openai.BadRequestError, match=r"the batch has ended \(completed\), so it cannot be cancelled"):
        await ingresses.first.batches.cancel(last.id)


async def test_what_is_asked_for_is_checked(ingresses: Ingresses) -> None:
    for wrong, said in (
        ({"endpoint": "/v1/embeddings"}, "endpoint: .*allowed: /v1/chat/completions"),
        ({"completion_window": "1y"}, "completion_window"),
        ({"metadata": {"a": "b" * 513}}, "metadata: .*allowed: 16 pairs"),
        ({"output_expires_after": {"anchor": "now", "seconds": 7200}}, r"output_expires_after\.anchor: allowed: created_at"),
    ):
        with pytest.raises(openai.BadRequestError, match=said):
            await ingresses.make([line(1)], **wrong)
    with pytest.raises(openai.NotFoundError, match="there is no file 'file-x'") as missing:
        await ingresses.first.batches.create(input_file_id="file-x", endpoint=COMPLETIONS, completion_window="24h")
    assert missing.value.param == "input_file_id"


async def test_batches_go_when_their_time_is_over(ingresses: Ingresses) -> None:
    done = await ingresses.ended(await ingresses.make([line(1)]), "completed")
    store = ingresses.servers[0].responses.store
    over = update(table).where(table.c.id == done.id).values(expires_at=0)
    await store._journal.write(lambda connection: connection.execute(over).rowcount)
    await store.expire()
    with pytest.raises(openai.NotFoundError):
        await ingresses.first.batches.retrieve(done.id)
    assert len(await ingresses.read(done.output_file_id)) == 1, "which has its own time"


async def test_all_is_as_openais_schema_says(ingresses: Ingresses) -> None:
    """Its types are made from the schema that OpenAI publishes. Here they are checked, which the client itself does not do."""
    http = ingresses.servers[1].http
    ended = await ingresses.ended(await ingresses.make([line(1), line(2, max_tokens=-1)]), "completed")
    cancelled = await ingresses.make([line(1)])
    await ingresses.first.batches.cancel(cancelled.id)
    refused = await ingresses.ended(await ingresses.make(["nonsense"]), "failed")
    for name in (ended.id, cancelled.id, refused.id):
        Batch.model_validate_json((await http.get(f"/v1/batches/{name}")).content)
    for name in (ended.input_file_id, ended.output_file_id, ended.error_file_id):
        FileObject.model_validate_json((await http.get(f"/v1/files/{name}")).content)
    batches = json.loads((await http.get("/v1/batches")).content)
    files = json.loads((await http.get("/v1/files")).content)
    assert TypeAdapter(list[Batch]).validate_python(batches["data"])
    assert TypeAdapter(list[FileObject]).validate_python(files["data"])
    assert {"object", "data", "has_more", "first_id", "last_id"} <= batches.keys() & files.keys()
    FileDeleted.model_validate_json((await http.delete(f"/v1/files/{ended.output_file_id}")).content)
