"""Errors in the shape of the API that was asked, on every path to them, and how streams end: vLLM's real app on a scripted core."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest
import pytest_asyncio
import yaml

from deployments.access.keys import digest
from deployments.errors import EngineUnavailableError
from deployments.ingress.middleware.dialects import TYPES
from tests.support.in_process import Server, served
from tests.support.until import until_async

pytestmark = pytest.mark.asyncio(loop_scope="module")
USER: list[Any] = [{"role": "user", "content": "1+1"}]
MESSAGES: dict[str, Any] = {"model": "nano", "messages": USER, "max_tokens": 5}
RESPONSES: dict[str, Any] = {"model": "nano", "input": "1+1"}
UNAVAILABLE = EngineUnavailableError("no LLM replica could take the request")
TOLD = "engine_unavailable: no LLM replica could take the request"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Server]:
    async with served(http__max_body_bytes=100_000) as server:
        yield server


def client_of(server: Server, key: str = "none") -> anthropic.AsyncAnthropic:
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(server.app, raise_app_exceptions=False))
    return anthropic.AsyncAnthropic(base_url="http://localhost", api_key=key, max_retries=0, http_client=http)


@pytest.fixture
def claude(server: Server) -> anthropic.AsyncAnthropic:
    return client_of(server)


@pytest.fixture
def gpt(server: Server) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none", max_retries=0, http_client=server.http)


async def failing(server: Server, call: Any) -> Any:
    """Return what comes of a call whose request the engine fails."""
    server.core.holds = True
    try:
        before, task = len(server.core.requests), asyncio.ensure_future(call)
        await until_async(lambda: len(server.core.requests) > before, "the engine has the request")
        server.core.fail(server.core.requests[-1], UNAVAILABLE)
        return await task
    finally:
        server.core.holds = False


REFUSED: dict[str, tuple[Any, int]] = {
    "no JSON": (b"{", 400),
    "no max_tokens": ({"model": "nano", "messages": USER}, 400),
    "no tokens": (MESSAGES | {"max_tokens": 0}, 400),
    "too many tokens": (MESSAGES | {"max_tokens": 10**6}, 400),
    "an unknown role": (MESSAGES | {"messages": [{"role": "bogus", "content": "x"}]}, 400),
    "an unknown type of content": (MESSAGES | {"messages": [{"role": "user", "content": [{"type": "bogus"}]}]}, 400),
    "a thought longer than the reply": (MESSAGES | {"thinking": {"type": "enabled", "budget_tokens": 1024}}, 400),
    "an unknown model": (MESSAGES | {"model": "x"}, 404),
    "a long stop sequence": (MESSAGES | {"stop_sequences": ["x" * 5000]}, 400),
    "many stop sequences": (MESSAGES | {"stop_sequences": ["x"] * 5000}, 400),
    "a large body": (MESSAGES | {"metadata": {"user_id": "x" * 100_000}}, 413),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_a_refused_message(server: Server, name: str, path: str) -> None:
    body, status = REFUSED[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = await server.http.post(path, content=content, headers={"content-type": "application/json"})
    if path.endswith("count_tokens") and answer.status_code == 200:
        assert not {"no JSON", "an unknown role", "a large body"} & {name}
        return
    assert answer.status_code == status
    error = answer.json()
    assert error.keys() == {"type", "error"}
    assert error["error"].keys() == {"type", "message"}
    assert (error["type"], error["error"]["type"]) == ("error", TYPES[status])
    assert not any(part in error["error"]["message"] for part in ("Error(", "validation error", "{'"))
    assert answer.headers["content-length"] == str(len(answer.content))


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "kind"),
    [
        ("GET", "/v1/messages", {}, 405, "invalid_request_error"),
        ("POST", "/v1/messages/nowhere", {}, 404, "not_found_error"),
        ("POST", "/v1/messages", {"x-request-timeout-s": "never"}, 400, "invalid_request_error"),
    ],
)
async def test_what_comes_before_vllm(
    server: Server, method: str, path: str, headers: dict[str, str], status: int, kind: str
) -> None:
    answer = await server.http.request(method, path, json=MESSAGES, headers=headers)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)


async def test_a_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(yaml.safe_dump({"keys": [{"name": "a", "sha256": digest("s"), "requests_per_minute": 1}]}))
    async with served(access__keys=str(keys)) as server:
        claude = client_of(server, "wrong")
        with pytest.raises(anthropic.AuthenticationError):
            await claude.messages.create(**MESSAGES)
        claude.api_key = "s"
        await claude.messages.create(**MESSAGES)
        with pytest.raises(anthropic.RateLimitError) as caught:
            await claude.messages.create(**MESSAGES)
        assert int(caught.value.response.headers["retry-after"]) > 0
        assert caught.value.body["error"]["type"] == "rate_limit_error"  # type: ignore[index]


async def test_a_message_whose_engine_is_lost(server: Server, claude: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.APIStatusError, match=TOLD) as whole:
        await failing(server, claude.messages.create(**MESSAGES))
    assert whole.value.status_code == 503
    with pytest.raises(anthropic.APIStatusError, match=TOLD) as streamed:
        async for _ in await failing(server, claude.messages.create(**MESSAGES, stream=True)):
            pass
    assert streamed.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_late_message(server: Server, claude: anthropic.AsyncAnthropic, stream: bool) -> None:
    async def read() -> None:
        reply: Any = await claude.messages.create(**MESSAGES, stream=stream, extra_headers={"x-request-timeout-s": "0.2"})
        async for _ in reply:
            pass

    server.core.holds = True
    try:
        with pytest.raises(anthropic.APIStatusError, match="not finished within") as caught:
            await read()
    finally:
        server.core.holds = False
    assert caught.value.body["error"]["type"] == "timeout_error"  # type: ignore[index]


async def test_a_response_that_is_cut_says_so(gpt: openai.AsyncOpenAI) -> None:
    events = [event async for event in await gpt.responses.create(**RESPONSES, max_output_tokens=2, stream=True)]
    assert [event.type for event in events if event.type.startswith("response.c")] == ["response.created"]
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.incomplete_details.reason == "max_output_tokens"
    assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_a_response_whose_engine_is_lost_ends_with_an_error(server: Server, gpt: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.APIError, match=TOLD):
        async for _ in await failing(server, gpt.responses.create(**RESPONSES, stream=True)):
            pass
    raw = await failing(server, server.http.post("/v1/responses", json=RESPONSES | {"stream": True}))
    name, data = raw.text.strip().split("\n\n")[-1].split("\n")
    error = json.loads(data.removeprefix("data: "))
    assert (name, error["type"], error["code"], error["sequence_number"]) == ("event: error", "error", "engine_unavailable", 2)


async def test_a_response_is_not_stored(gpt: openai.AsyncOpenAI) -> None:
    reply = await gpt.responses.create(**RESPONSES, store=True)
    assert reply.model_dump()["store"] is False
    with pytest.raises(openai.NotFoundError):
        await gpt.responses.retrieve(reply.id)
    with pytest.raises(openai.BadRequestError, match="background: replies are not kept"):
        await gpt.responses.create(**RESPONSES, background=True)


async def test_head_is_answered_like_get(server: Server) -> None:
    assert {(await server.http.head(path)).status_code for path in ("/health", "/v1/models", "/version")} == {200}
    assert (await server.http.head("/v1/completions")).status_code == 405


async def test_other_apis_keep_openais_shape(server: Server, gpt: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await gpt.chat.completions.create(model="nano", messages=USER, temperature=99)
    assert caught.value.param == "temperature"
    stream = await failing(server, gpt.chat.completions.create(model="nano", messages=USER, stream=True))
    with pytest.raises(openai.APIError, match=TOLD):
        async for _ in stream:
            pass
