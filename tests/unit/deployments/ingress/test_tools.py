"""Tools in all APIs, with their official clients: vLLM's real app on a scripted core, which calls or does not."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx2
import openai
import pytest
import pytest_asyncio
from vllm.tokenizers import get_tokenizer
from vllm.v1.engine import FinishReason

from deployments.reasoning import calls
from tests.support.in_process import Server, served
from tests.support.paths import NANO

pytestmark = pytest.mark.asyncio(loop_scope="module")
TOKENIZER: Any = get_tokenizer(str(NANO))
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
CHAT_TOOLS: Any = [{"type": "function", "function": {"name": "add", "parameters": SCHEMA}}]
TOOLS: Any = [{"type": "function", "name": "add", "parameters": SCHEMA}]
CLAUDES: Any = [{"name": "add", "input_schema": SCHEMA}]
USER: Any = [{"role": "user", "content": "1+1"}]
CHAIN = "<|continue|>1+1 = 2\n\nThe final answer is \\boxed{2}."
STATEMENT = "The final answer is \\boxed{2}."
SEPARATOR = "<|im_start|>assistant\n"
CALL = '<tool_call>\n{"name": "add", "arguments": {"a":5}}\n</tool_call>'
WRITTEN = [("T", []), (CALL, [5]), (CALL + "\n" + CALL, [5, 5])]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Server]:
    async with served() as server:
        server.core.reason = FinishReason.STOP
        yield server


@pytest.fixture
def gpt(server: Server) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none", max_retries=0, http_client=server.http)


@pytest.fixture
def claude(server: Server) -> anthropic.AsyncAnthropic:
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(server.app, raise_app_exceptions=False))
    return anthropic.AsyncAnthropic(base_url="http://localhost", api_key="none", max_retries=0, http_client=http)


def says(server: Server, written: str) -> None:
    """Have the core answer with a chain, and this behind it."""
    server.core.tokens = TOKENIZER.encode(CHAIN + SEPARATOR + written + "<|im_end|>", add_special_tokens=False)


@pytest.mark.parametrize(("written", "called"), WRITTEN)
async def test_chats(server: Server, gpt: openai.AsyncOpenAI, written: str, called: list[int]) -> None:
    says(server, written)
    done = (await gpt.chat.completions.create(model="nano", messages=USER, tools=CHAT_TOOLS)).choices[0]
    assert done.message.content == STATEMENT
    assert [json.loads(call.function.arguments)["a"] for call in done.message.tool_calls or ()] == called  # type: ignore[union-attr]
    assert done.finish_reason == ("tool_calls" if called else "stop")
    async with gpt.chat.completions.stream(model="nano", messages=USER, tools=CHAT_TOOLS) as events:
        kinds = {event.type async for event in events}
        streamed = (await events.get_final_completion()).choices[0]
    assert ("tool_calls.function.arguments.done" in kinds) == bool(called)
    assert streamed.message.content == STATEMENT
    assert [call.function.name for call in streamed.message.tool_calls or ()] == ["add"] * len(called)
    assert streamed.finish_reason == done.finish_reason
    params = server.core.requests[-1].sampling_params
    assert params is not None
    assert calls.choice(params.structured_outputs) == calls.TEXT


@pytest.mark.parametrize(("written", "called"), WRITTEN)
async def test_responses(server: Server, gpt: openai.AsyncOpenAI, written: str, called: list[int]) -> None:
    says(server, written)
    whole = await gpt.responses.create(model="nano", input="1+1", tools=TOOLS)
    kinds = ["reasoning", "message", *["function_call"] * len(called)]
    assert [item.type for item in whole.output] == kinds
    assert whole.output_text == STATEMENT
    assert [json.loads(item.arguments)["a"] for item in whole.output if item.type == "function_call"] == called
    async with gpt.responses.stream(model="nano", input="1+1", tools=TOOLS) as events:
        told = [event.type async for event in events]
        streamed = await events.get_final_response()
    assert [item.type for item in streamed.output] == kinds
    assert told.count("response.function_call_arguments.done") == len(called)
    assert told[-1] == "response.completed"


@pytest.mark.parametrize(("written", "called"), WRITTEN)
async def test_messages(server: Server, claude: anthropic.AsyncAnthropic, written: str, called: list[int]) -> None:
    says(server, written)
    whole = await claude.messages.create(model="nano", max_tokens=400, messages=USER, tools=CLAUDES)
    kinds = ["thinking", "text", *["tool_use"] * len(called)]
    assert [block.type for block in whole.content] == kinds
    assert [block.input["a"] for block in whole.content if block.type == "tool_use"] == called
    assert whole.stop_reason == ("tool_use" if called else "end_turn")
    async with claude.messages.stream(model="nano", max_tokens=400, messages=USER, tools=CLAUDES) as events:
        streamed = await events.get_final_message()
    assert [block.type for block in streamed.content] == kinds
    assert [block.input["a"] for block in streamed.content if block.type == "tool_use"] == called
    assert streamed.stop_reason == whole.stop_reason


@pytest.mark.parametrize("fields", [{"stop": ["never"]}, {"n": 2}, {"parallel_tool_calls": False}, {"tool_choice": None}])
async def test_other_parameters_beside_tools(server: Server, fields: dict[str, Any]) -> None:
    says(server, CALL)
    answer = await server.chat(*USER, tools=CHAT_TOOLS, **fields)
    assert answer.status_code == 200, answer.text
    for choice in answer.json()["choices"]:
        assert [call["function"]["arguments"] for call in choice["message"]["tool_calls"]] == ['{"a":5}']


@pytest.mark.parametrize("fields", [{"ignore_eos": True}, {"min_tokens": 3}])
async def test_what_cannot_be_beside_tools_is_named(server: Server, fields: dict[str, Any]) -> None:
    answer = await server.chat(*USER, tools=CHAT_TOOLS, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(fields)))


async def test_a_schema_that_is_not_followed_leaves_any_object(server: Server) -> None:
    """Where it is left to the model whether it calls; a call that is asked for follows its schema, or is refused."""
    unique = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    tools = [{"type": "function", "function": {"name": "add", "parameters": unique}}]
    says(server, CALL)
    answer = await server.chat(*USER, tools=tools)
    assert answer.json()["choices"][0]["finish_reason"] == "tool_calls"
    assert (await server.chat(*USER, tools=tools, tool_choice="required")).status_code == 400


async def test_a_former_turn_with_calls_is_read(server: Server, gpt: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic) -> None:
    says(server, "T")
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    turn: Any = [*USER, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c", "content": "2"}]
    assert (await gpt.chat.completions.create(model="nano", messages=turn, tools=CHAT_TOOLS)).choices[0].message.content
    items: Any = [
        *USER,
        {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "2"},
    ]
    assert (await gpt.responses.create(model="nano", input=items, tools=TOOLS)).output_text
    blocks: Any = [
        *USER,
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "add", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "2"}]},
    ]
    assert (await claude.messages.create(model="nano", max_tokens=50, messages=blocks, tools=CLAUDES)).content


async def test_a_model_whose_calls_are_not_read_says_so() -> None:
    """Other models: vLLM's parsers read them, where a setting names one."""
    async with served(engine__reasoning_parser="qwen3") as server:
        error = (await server.chat(*USER, tools=CHAT_TOOLS)).json()["error"]
        assert "api.tool_call_parser" in error["message"]
        assert "--" not in error["message"]
    async with served(engine__reasoning_parser="qwen3", api__tool_call_parser="hermes") as server:
        server.core.reason = FinishReason.STOP
        server.core.tokens = TOKENIZER.encode(f"</think>{CALL}<|im_end|>", add_special_tokens=False)
        choice = (await server.chat(*USER, tools=CHAT_TOOLS)).json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]) == {"a": 5}
