"""What clients are told, in the real app of vLLM's on a scripted core: always an error of OpenAI's shape, before any work."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from deployments.ingress.error_handlers import Misread
from tests.support.in_process import Server, served

pytestmark = pytest.mark.asyncio(loop_scope="module")
HI = {"role": "user", "content": "hi"}
UNIQUE = {"type": "array", "uniqueItems": True}
PERSON = {"type": "object", "properties": {"name": {"type": "string"}}}
NOWHERE = ("/nowhere", "/v1/models/..%2f..%2fetc", "/v1/%ff", "/v1/responses/..%2fx", "/v1/responses/resp_x", "/v1//models")
CHAT = {"model": "nano", "messages": [HI]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Server]:
    async with served() as server:
        yield server


async def refused(server: Server, path: str, body: Any, status: int = 400, **headers: str) -> dict[str, Any]:
    """Post what is to be refused; return the error."""
    before = len(server.core.requests)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await server.http.post(path, content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert len(server.core.requests) == before, "nothing reaches the engine"
    assert len(answer.content) < 3000
    error = answer.json()["error"]
    assert error.keys() >= {"message", "type", "param", "code"}
    assert error["message"]
    assert "Traceback" not in error["message"]
    return dict(error)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b"5",
        b"null",
        b'"x"',
        b'{"model": "nano", "messages": [{"role": "user", "content": "\xff"}]}',
        b'{"model": "nano", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "nano", "temperature": NaN, "messages": [{"role": "user", "content": "x"}]}',
        b'{"model": "nano", "max_tokens": 1' + b"0" * 400 + b', "messages": [{"role": "user", "content": "x"}]}',
        b'{"model": "nano", "messages": ' + b"[" * 100_000,
        b'{"model": "nano", "messages": []}',
        b'{"messages": "x"}',
    ],
    ids=range(13),
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize"])
async def test_odd_bodies(server: Server, path: str, body: bytes) -> None:
    await refused(server, path, body)


async def test_another_media_type(server: Server) -> None:
    assert "application/json" in (await refused(server, "/v1/chat/completions", CHAT, content_type="text/plain"))["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("n", 129, "n"),
        ("logit_bias", {"5000": 1}, "logit_bias"),
        ("top_logprobs", 10**6, "logprobs"),
        ("stop_token_ids", [-1], "stop_token_ids"),
        ("allowed_token_ids", [5000], "allowed_token_ids"),
        ("max_tokens", 10**9, "max_tokens"),
        ("structured_outputs", {"regex": "(("}, None),
        ("structured_outputs", {"grammar": "root ::= ("}, None),
        ("structured_outputs", {"regex": "(a*)*"}, "structured_outputs.regex"),
        (
            "structured_outputs",
            {"json": UNIQUE},
            "structured_outputs.json.uniqueItems",
        ),
        ("messages", [{"role": "user", "content": "x " * 5000}], "input_tokens"),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}], None),
        ("chat_template", "{{ 1 }}", None),
        ("chat_template_kwargs", {"chat_template": "{{ 1 }}"}, None),
        ("chat_template_kwargs", {"messages": []}, None),
        ("kv_transfer_params", {"prompt_token_ids": [1]}, "kv_transfer_params"),
        ("mm_processor_kwargs", {"a": 1}, None),
        ("cache_salt", "../x", "cache_salt"),
    ],
    ids=range(18),
)
async def test_hostile_fields_of_a_chat(server: Server, field: str, value: Any, param: str | None, stream: bool) -> None:
    """Streams too: a status that says so, where vLLM would begin with 200 and say it in the stream."""
    error = await refused(server, "/v1/chat/completions", {"logprobs": True} | CHAT | {field: value, "stream": stream})
    assert param is None or error["param"] == param


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "strange"}}}},
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"pattern": "(a*)*"}}}},
        {"logit_bias": {"5000": 1}},
        {"input": "x " * 5000},
    ],
    ids=range(4),
)
async def test_hostile_fields_of_a_response(server: Server, fields: dict[str, Any], stream: bool) -> None:
    await refused(server, "/v1/responses", {"model": "nano", "input": "x", "stream": stream} | fields)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", [[5000], [-1], "x " * 5000, ["x"] * 1025, ""])
async def test_hostile_prompts(server: Server, prompt: Any, stream: bool) -> None:
    await refused(server, "/v1/completions", {"model": "nano", "prompt": prompt, "stream": stream})


@pytest.mark.parametrize("side", [None, "left"])
async def test_long_texts_are_not_tokenized_to_be_cut(server: Server, side: str | None) -> None:
    asked = {"model": "nano", "prompt": "x " * 100_000, "truncate_prompt_tokens": 5, "truncation_side": side}
    if side:  # vLLM cuts the text first
        assert (await server.http.post("/v1/completions", json=asked)).status_code == 200
    else:
        assert (await refused(server, "/v1/completions", asked))["param"] == "prompt"
    await refused(server, "/tokenize", {"model": "nano", "prompt": "x " * 100_000})


@pytest.mark.parametrize("model", ["../../etc/passwd", "http://169.254.169.254/", "a\n\x1b[31m", "nano:lora", ""])
async def test_models_that_are_not_here(server: Server, model: str) -> None:
    answer = await server.http.post("/v1/chat/completions", json=CHAT | {"model": model})
    assert answer.status_code == (404 if model else 200)
    await refused(server, "/v1/chat/completions", CHAT | {"model": "x" * 10**6})


@pytest.mark.parametrize("path", NOWHERE)
async def test_paths_that_are_not_there(server: Server, path: str) -> None:
    answer = await server.http.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"]


async def test_a_wrong_method(server: Server) -> None:
    answer = await server.http.get("/v1/chat/completions")
    assert (answer.status_code, answer.json()["error"]["code"], answer.headers["allow"]) == (405, 405, "POST")


async def test_failures_inside_tell_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("secret of /home/somebody")

    monkeypatch.setattr(server.engine, "generate", fail)
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", {"model": "nano", "prompt": "x"})):
        error = await refused(server, path, body, 500)
        assert "secret" not in json.dumps(error)
        assert error["code"] == "internal_error"


async def test_the_messages_api_has_anthropics_shape(server: Server) -> None:
    for fields in ({"vllm_xargs": {"coat": "x"}}, {"max_tokens": 10**6}):
        answer = await server.http.post("/v1/messages", json={"model": "nano", "messages": [HI], "max_tokens": 2} | fields)
        assert (answer.status_code, answer.json()["type"]) == (400, "error")
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_no_client_gives_the_engine_its_own_arguments(server: Server, path: str) -> None:
    asked = CHAT | {"prompt": "x"}
    for given in ("x", {"tokens": [5]}, ["x"]):
        assert (await refused(server, path, asked | {"vllm_xargs": {"satori_repeat": given}}))[
            "param"
        ] == "vllm_xargs.satori_repeat"
    await server.http.post(path, json=asked | {"extra_args": {"satori_repeat": {"tokens": [5]}}, "sampling_params": {}})
    assert server.core.requests[-1].sampling_params.extra_args is None


async def test_ordinary_requests_pass(server: Server) -> None:
    for path, body in (
        (
            "/v1/chat/completions",
            CHAT | {"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}},
        ),
        ("/v1/chat/completions", CHAT | {"n": 3, "stop": ["x"], "logit_bias": {"5": 1}, "request_id": "mine", "stream": True}),
        ("/v1/completions", {"model": "nano", "prompt": ["a", "b"], "n": 2, "echo": True, "logprobs": None}),
        ("/v1/chat/completions", CHAT | {"structured_outputs": {"choice": ["yes", "no"]}, "stream": True}),
        ("/v1/responses", {"model": "nano", "input": "hi"}),
        ("/v1/responses", {"model": "nano", "input": "hi", "stream": True}),
        ("/v1/messages", {"model": "nano", "messages": [HI], "max_tokens": 2}),
        ("/tokenize", {"model": "nano", "prompt": "hi"}),
    ):
        answer = await server.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        assert '"error":{' not in answer.text


async def test_parts_of_a_message_that_are_read_late_are_named_in_words(server: Server) -> None:
    said = await refused(server, "/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": ["hi"]}]})
    assert "pydantic" not in said["message"]
    assert "\n" not in said["message"]
    assert 'got "hi"' in said["message"]


async def test_what_cannot_be_read_is_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        request_body_to_args()

    def request_body_to_args() -> None:
        raise AttributeError("of a\nvalue")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await Misread(failing)({"type": "http", "path": "/v1/x", "method": "POST", "headers": []}, None, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == 400
    [line] = [caplog.handler.format(record) for record in caplog.records if "could not be read" in record.message]
    assert "\n" not in line
    assert "test_error_handlers.py:" in line
