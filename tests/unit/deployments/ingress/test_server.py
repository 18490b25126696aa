"""The API server: what it is made of, no route but the allowed ones, and chunks that cost less and are written as ever."""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel
from vllm.entrypoints.generate.base.protocol import DeltaFunctionCall, DeltaMessage, DeltaToolCall
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponseStreamChoice, ChatCompletionStreamResponse
from vllm.entrypoints.openai.completion.protocol import CompletionResponseStreamChoice, CompletionStreamResponse
from vllm.entrypoints.serve.engine.protocol import OpenAIBaseModel, UsageInfo

from deployments.access.keys import digest
from deployments.errors import EngineUnavailableError, SettingsError
from deployments.ingress.middleware.intake import AT_ONCE
from deployments.ingress.server import ALLOWED, CHECK, CHUNKS, make_chunks_without_check
from deployments.reasoning.request import CoatChatRequest
from tests.support.in_process import served
from tests.support.until import until_async

QUESTION = {"role": "user", "content": "1+1"}
RESPONSE = "/v1/responses/{response_id}"
OURS = {"/docs", "/docs/assets", "/metrics", "/metrics/targets", "/ready", "/status", "/v1/models/{model:path}"}
OURS |= {RESPONSE, f"{RESPONSE}/cancel", f"{RESPONSE}/input_items"}
OURS |= {"/v1/chat/completions/{completion_id:path}", "/v1/files", "/v1/files/{file_id}", "/v1/files/{file_id}/content"}
OURS |= {"/v1/batches", "/v1/batches/{batch_id}", "/v1/batches/{batch_id}/cancel"}
DOCUMENTED = OURS | {"/v1/models/{model}", "/v1/chat/completions/{completion_id}"}
CONTROL = (
    "/inference/v1/abort_requests /inference/v1/generate /scale_elastic_ep /invocations /v1/load_lora_adapter /adapters /sleep"
    " /wake_up /collective_rpc /reset_prefix_cache /update_weights /pause /abort_requests /start_profile /server_info"
).split()


async def test_only_allowed_routes_whatever_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    async with served() as server:
        assert {route.path for route in server.app.router.routes} <= ALLOWED | OURS
        assert set(server.app.openapi()["paths"]) <= ALLOWED | DOCUMENTED
        for path in CONTROL:
            statuses = {(await server.http.request(method, path, json={})).status_code for method in ("GET", "POST", "DELETE")}
            assert statuses == {404}, path


async def test_every_allowed_route_is_vllms() -> None:
    """A name that vLLM changes would otherwise silently be missing."""
    async with served() as server:
        assert {route.path for route in server.app.router.routes} == (ALLOWED | OURS) - {"/tokenizer_info"}
        assert (await server.http.get("/v1/models")).status_code == 200
        assert (await server.chat(QUESTION)).status_code == 200


async def test_metrics_say_in_prometheus_own_format_where_the_others_are() -> None:
    async with served() as server:
        told = await server.http.get("/metrics", headers={"accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"})
    assert (told.status_code, told.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    comment = told.text[: told.text.index("# HELP")]
    assert {line[:2] for line in comment.splitlines()} == {"# "}
    assert "/metrics/targets" in comment
    names = {family.name for family in text_string_to_metric_families(told.text)}
    assert any(name.startswith("vllm:") for name in names)
    assert told.text.removeprefix(comment).startswith("# HELP")


async def test_routes_and_origins_that_settings_ask_for() -> None:
    asked = {
        "api__enable_tokenizer_info_endpoint": True,
        "api__allowed_origins": ["https://a.example"],
    }
    async with served(**asked) as server:
        info = await server.http.get("/tokenizer_info")
        assert (info.status_code, info.json()["chat_template"][:2]) == (200, "{%")
        ask = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
        allowed = await server.http.options("/v1/chat/completions", headers=ask | {"origin": "https://a.example"})
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://a.example")
        refused = await server.http.options("/v1/chat/completions", headers=ask | {"origin": "https://b.example"})
        assert refused.status_code == 400


async def test_the_docs_load_nothing_from_elsewhere() -> None:
    async with served() as server:
        page = await server.http.get("/docs")
        policy = page.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
        assert "http" not in policy
        for asset in re.findall(r'(?:src|href)="(/[^"]+)"', page.text):
            assert (await server.http.get(asset)).status_code == 200
        assert not re.findall(r"https?://", page.text)
        assert (await server.http.get("/redoc")).status_code == 404
    async with served(api__disable_fastapi_docs=True) as server:
        assert [(await server.http.get(path)).status_code for path in ("/docs", "/openapi.json")] == [404, 404]


async def test_parsers_from_a_file_are_known_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "from vllm.tool_parsers import ToolParser, ToolParserManager\n\n\n"
        '@ToolParserManager.register_module("of_a_file")\n'
        "class OfAFile(ToolParser): ...\n"
    )
    with pytest.raises(SettingsError, match=r"api\.tool_call_parser='of_no_file'.*allowed: .*hermes"):
        async with served(api__tool_call_parser="of_no_file"):
            pass
    async with served(api__tool_parser_plugin=str(plugin), api__tool_call_parser="of_a_file") as server:
        assert (await server.chat(QUESTION)).status_code == 200


async def test_requests_are_ongoing_until_they_are_answered_and_leave_the_intake_before() -> None:
    async with served() as server:
        server.core.holds = True
        calls = [asyncio.create_task(server.chat(QUESTION)) for _ in range(2 * AT_ONCE)]
        await until_async(lambda: len(server.core.requests) == 2 * AT_ONCE, "the engine has all requests")
        assert server.ongoing.count == 2 * AT_ONCE
        for request in server.core.requests:
            server.core.answer(request)
        assert {reply.status_code for reply in await asyncio.gather(*calls)} == {200}
        assert server.ongoing.count == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_of_the_engine_client_is_the_answer(stream: bool) -> None:
    async with served() as server:
        server.core.holds = True
        call = asyncio.create_task(server.chat(QUESTION, stream=stream))
        await until_async(lambda: server.core.requests, "the engine has the request")
        server.core.fail(server.core.requests[0], EngineUnavailableError("no LLM replica could take the request"))
        reply = await call
        assert reply.status_code == (200 if stream else 503), "a stream has begun"
        assert "engine_unavailable: no LLM replica could take the request" in reply.text


async def test_a_key_names_the_client_and_pays_for_its_tokens(tmp_path: Path) -> None:
    alice = {"name": "alice", "sha256": digest("secret"), "tokens_per_minute": 1}
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump({"keys": [alice]}))
    async with served(access__keys=str(tmp_path / "keys.yaml")) as server:
        assert (await server.chat(QUESTION)).status_code == 401
        server.http.headers["authorization"] = "Bearer secret"
        assert (await server.chat(QUESTION)).status_code == 200
        assert server.core.clients == ["alice"]
        refused = await server.chat(QUESTION)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")


async def test_a_refusal_for_the_moment_tells_half_the_pace_of_the_engine() -> None:
    async with served(engine__max_num_queued_reqs=1) as server:
        server.core.pace_s = 9.0
        reply = await server.chat(QUESTION, n=2)
        assert (reply.status_code, reply.headers["retry-after"]) == (429, "5")


def chat(**delta: object) -> ChatCompletionStreamResponse:
    choice = ChatCompletionResponseStreamChoice(index=0, delta=DeltaMessage(**delta), logprobs=None, finish_reason=None)
    return ChatCompletionStreamResponse(id="a", created=1, choices=[choice], model="nano")


def completion(text: str) -> CompletionStreamResponse:
    choice = CompletionResponseStreamChoice(index=0, text=text)
    return CompletionStreamResponse(id="a", created=1, choices=[choice], model="nano", usage=UsageInfo(completion_tokens=3))


def written() -> list[str]:
    chunks = [
        chat(role="assistant", content=""),
        chat(content="42 \u2192 <b>"),
        chat(reasoning="6\u00d77", reasoning_content="6\u00d77", coat={"action": "reflect", "index": 2}),
        chat(tool_calls=[DeltaToolCall(index=0, function=DeltaFunctionCall(name="add", arguments="{}"))]),
        completion("42"),
    ]
    return [chunk.model_dump_json(exclude_unset=True) for chunk in chunks]


def checks(model: type[BaseModel]) -> bool:
    return CHECK in model.__pydantic_decorators__.model_validators


@pytest.fixture
def as_vllm_made_them() -> Iterator[None]:
    """Chunks with vLLM's check, whatever has been done to them in this process; afterwards they are as they were before."""
    check = OpenAIBaseModel.__pydantic_decorators__.model_validators[CHECK]
    before = [part.__pydantic_decorators__.model_validators for part in CHUNKS]
    for part in CHUNKS:
        validators = part.__pydantic_decorators__.model_validators
        part.__pydantic_decorators__.model_validators = validators | {CHECK: replace(check, func=getattr(part, CHECK))}
        part.model_rebuild(force=True)
    yield
    for part, validators in zip(CHUNKS, before, strict=True):
        part.__pydantic_decorators__.model_validators = validators
        part.model_rebuild(force=True)


def checked() -> set[type[BaseModel]]:
    """Return the parts for which vLLM's check runs when chunks are made: it keeps the names of a model's fields."""
    for part in CHUNKS:
        part.field_names = None  # type: ignore[attr-defined]
    written()
    return {part for part in CHUNKS if part.field_names is not None}  # type: ignore[attr-defined]


def test_chunks_are_written_as_before(as_vllm_made_them: None) -> None:
    assert all(map(checks, CHUNKS))
    before = written()
    make_chunks_without_check()
    assert written() == before
    assert not any(map(checks, CHUNKS))


def test_the_check_does_not_run(as_vllm_made_them: None) -> None:
    assert checked() == set(CHUNKS)
    make_chunks_without_check()
    assert checked() == set()
    make_chunks_without_check()
    assert checked() == set(), "once more changes nothing"


def test_requests_are_checked_as_before(as_vllm_made_them: None) -> None:
    make_chunks_without_check()
    assert checks(OpenAIBaseModel)
    assert checks(CoatChatRequest)


def test_a_chunk_is_still_validated(as_vllm_made_them: None) -> None:
    make_chunks_without_check()
    with pytest.raises(ValueError, match="reasoning"):
        DeltaMessage(reasoning=42)
