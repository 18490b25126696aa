"""Tool calls that a request asks for: a thought, and then arguments; in whole replies and streams."""

import json
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError

from deployments.reasoning.calls import ForcedCalls
from deployments.reasoning.parser import CoatParser, reads_formats
from deployments.reasoning.request import CoatChatRequest
from tests.unit.deployments.reasoning.test_formatted import FORMATS, THOUGHT, TOKENIZER, text_of, tokens

SCHEMA = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("add", "note")]
NAMED = {"type": "function", "function": {"name": "note"}}
CALLS = '[{"name":"add","parameters":{"answer":19}},{"name":"note","parameters":{"answer":7}}]'


def request(choice: Any, **fields: Any) -> CoatChatRequest:
    """Return a request as it is when it has been rendered."""
    asked = {"messages": [{"role": "user", "content": "12+7"}], "tools": TOOLS, "tool_choice": choice} | fields
    return parser().adjust_request(CoatChatRequest.model_validate(asked))


def parser() -> CoatParser:
    return reads_formats(FORMATS)(TOKENIZER)


@pytest.mark.parametrize(
    ("choice", "written", "calls"),
    [
        ("required", CALLS, [("add", {"answer": 19}), ("note", {"answer": 7})]),
        (NAMED, '{"answer":19}', [("note", {"answer": 19})]),
    ],
)
@pytest.mark.parametrize("step", [1, 4, 1000])
def test_calls_come_behind_the_thought(choice: Any, written: str, calls: list[Any], step: int) -> None:
    asked, ids = request(choice), tokens(answer=written)
    reasoning, content, found = parser().parse(text_of(ids), asked, model_output_token_ids=ids)
    assert (reasoning, content) == (THOUGHT.replace("<|continue|>", "").replace("<|reflect|>", "\n"), None)
    assert [(call.name, json.loads(call.arguments)) for call in found or ()] == calls
    streaming, shown, deltas = parser(), "", []
    for at in range(0, len(ids), step):
        text = text_of(ids[: at + step])
        text = shown if text.endswith("\ufffd") else text
        deltas.append(streaming.parse_delta(text[len(shown) :], ids[at : at + step], asked, [1], finished=at + step >= len(ids)))
        shown = text
    chunks = [delta for delta in deltas if delta is not None]
    assert "".join(chunk.reasoning or "" for chunk in chunks) == reasoning
    assert not any(chunk.content for chunk in chunks)
    streamed = [call for chunk in chunks for call in chunk.tool_calls]
    assert [(call.index, call.function.name, json.loads(call.function.arguments)) for call in streamed] == [
        (index, *call) for index, call in enumerate(calls)
    ]
    assert len({call.id for call in streamed}) == len(calls)


def test_calls_are_made_without_a_thought_where_nothing_is_parsed() -> None:
    ids = TOKENIZER.encode('{"answer":19}', add_special_tokens=False)
    asked = request(NAMED, coat={"parse": False})
    reasoning, content, [call] = parser().parse(text_of(ids), asked, model_output_token_ids=ids)
    assert (reasoning, content, call.arguments) == (None, None, '{"answer":19}')
    chunk = parser().parse_delta(text_of(ids), ids, asked, [1], finished=True)
    assert [one.function.arguments for one in chunk.tool_calls] == ['{"answer":19}']


def test_the_format_is_that_of_the_calls() -> None:
    assert request(NAMED).structured_outputs.json == SCHEMA
    assert request("required", parallel_tool_calls=False).structured_outputs.json["maxItems"] == 1
    assert request("none").structured_outputs is None


def test_a_model_calls_no_tools_by_itself() -> None:
    with pytest.raises(VLLMValidationError, match="tool_choice"):
        request("auto")
    assert ForcedCalls(TOKENIZER).adjust_request(CoatChatRequest(messages=[])).structured_outputs is None
