"""Tool calls that a request asks for, and those left to the model; in whole replies and streams."""

import json
from typing import Any

import llguidance
import pytest
from openai.types.responses import FunctionTool
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.sampling_params import StructuredOutputsParams

from deployments.engine import guidance
from deployments.engine.grammar_check import fault, serialized
from deployments.reasoning import calls as module
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


CALL = '<tool_call>\n{"name": "add", "arguments": {"answer":19}}\n</tool_call>'
TWO = CALL + '\n<tool_call>\n{"name": "note", "arguments": {"answer":7}}\n</tool_call>'
STATEMENT = "The final answer is \\boxed{19}."
SHOWN = "12+7 → 19\nRight. é"


def streamed(asked: CoatChatRequest, ids: list[int], step: int) -> tuple[str, str, list[tuple[str, Any]]]:
    """Return the reasoning, the content and the calls of a stream that brings so many tokens at a time."""
    parsing, shown, chunks = parser(), "", []
    for at in range(0, len(ids), step):
        text = text_of(ids[: at + step])
        text = shown if text.endswith("\ufffd") else text
        chunk = parsing.parse_delta(text[len(shown) :], ids[at : at + step], asked, [1], finished=at + step >= len(ids))
        chunks += [chunk] if chunk is not None else []
        shown = text
    calls = [(call.function.name, json.loads(call.function.arguments)) for chunk in chunks for call in chunk.tool_calls]
    return "".join(chunk.reasoning or "" for chunk in chunks), "".join(chunk.content or "" for chunk in chunks), calls


@pytest.mark.parametrize(
    ("written", "calls"),
    [
        ("T", []),
        ("", []),
        (CALL, [("add", {"answer": 19})]),
        (TWO, [("add", {"answer": 19}), ("note", {"answer": 7})]),
        (TWO[:-20], [("add", {"answer": 19})]),
        (CALL[:20], []),
        ("T<tool_call>\n{}", []),
    ],
)
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_what_is_left_to_the_model(written: str, calls: list[Any], step: int) -> None:
    """The statement that closes the chain is the content, as without tools, whatever is written behind the separator."""
    asked, ids = request("auto"), tokens(answer=written)
    whole = parser()
    reasoning, content, found = whole.parse(text_of(ids), asked, model_output_token_ids=ids)
    assert (reasoning.strip(), content) == (SHOWN, STATEMENT)  # type: ignore[union-attr]
    assert [(call.name, json.loads(call.arguments)) for call in found or ()] == calls
    assert whole.summary()["answer"] == "19"
    shown = streamed(asked, ids, step)
    assert (shown[0].strip(), *shown[1:]) == (SHOWN, STATEMENT, calls)
    thought = TOKENIZER.encode(THOUGHT, add_special_tokens=False)
    alone = parser()
    alone.parse(text_of(thought), CoatChatRequest(messages=[]), model_output_token_ids=thought)
    assert whole.summary() == alone.summary(), "the chain is read as without tools"
    assert whole.count_reasoning_tokens(ids) == alone.count_reasoning_tokens(thought)


def test_a_reply_that_ends_within_its_chain_is_read_as_without_tools() -> None:
    thought = TOKENIZER.encode(THOUGHT, add_special_tokens=False)
    reasoning, content, found = parser().parse(text_of(thought), request("auto"), model_output_token_ids=thought)
    assert (reasoning.strip(), content, found) == (SHOWN, STATEMENT, [])  # type: ignore[union-attr]


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(
    ("written", "content", "calls"), [('{"answer":19}', '{"answer":19}', []), (CALL, "", [("add", {"answer": 19})])]
)
def test_calls_or_an_answer_in_a_format(written: str, content: str, calls: list[Any], step: int) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    asked, ids = request("auto", response_format=schema), tokens(answer=written)
    _, whole, found = parser().parse(text_of(ids), asked, model_output_token_ids=ids)
    assert (whole or "") == content
    assert [(call.name, json.loads(call.arguments)) for call in found or ()] == calls
    assert streamed(asked, ids, step)[1:] == (content, calls)


def test_calls_are_not_offered_where_nothing_could_read_them() -> None:
    for fields in (
        {"coat": {"parse": False}},
        {"coat": {"vote": {}}},
        {"tool_choice": "none"},
        {"structured_outputs": {"regex": "x"}},
    ):
        asked = request("auto", **fields)
        assert module.choice(asked.structured_outputs) is None
        ids = TOKENIZER.encode("a", add_special_tokens=False)
        assert parser().parse("a", asked, model_output_token_ids=ids)[2] == []
    assert parser().adjust_request(CoatChatRequest(messages=[])).structured_outputs is None


def test_responses_have_functions_and_formats_of_their_own() -> None:
    tool = {"type": "function", "name": "add", "parameters": SCHEMA}
    form = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}
    for fields, choice in (
        ({}, module.TEXT),
        ({"text": {"format": {"type": "text"}}}, module.TEXT),
        ({"text": form}, module.FORMAT),
    ):
        asked = parser().adjust_request(ResponsesRequest.model_validate({"input": "x", "tools": [tool]} | fields))
        assert module.choice(asked.extract_structured_outputs()) == choice
        assert module.functions(asked) == [("add", SCHEMA)]
    assert module.functions(ResponsesRequest(input="x", tools=[])) == []
    assert isinstance(asked.tools[0], FunctionTool)


ODD = [
    ("add", SCHEMA),
    ('é "quoted" \\ /x/ ::= <|im_end|>', {"type": "object", "properties": {"a": {"const": "</tool_call>"}}, "required": ["a"]}),
    ("nothing", None),
    ("anything", True),
]


@pytest.fixture(scope="module")
def matching() -> Any:
    tokenizer = guidance._tokenizer(None, TOKENIZER, len(TOKENIZER))

    def allowed(grammar: str, text: str) -> str:
        """Return how much of a text the grammar allows, and "." where it may end there."""
        matcher = llguidance.LLMatcher(tokenizer, serialized("GRAMMAR", grammar), log_level=0)
        ids = TOKENIZER.encode(text, add_special_tokens=False)
        count = next((at for at, token in enumerate(ids) if not matcher.consume_token(token)), len(ids)) if ids else 0
        ends = count == len(ids) and not matcher.is_error() and matcher.is_accepting()
        return text_of(ids[:count]) + "." * ends

    return allowed


def test_the_grammar_allows_calls_or_the_beginning_of_a_text(matching: Any) -> None:
    grammar = module.grammar(ODD, lambda schema: schema)
    assert fault("GRAMMAR", grammar) is None
    for text in ("4", "The", "The final", CALL):
        assert matching(grammar, text) == text + "."
    odd = '<tool_call>\n{"name": "é \\"quoted\\" \\\\ /x/ ::= <|im_end|>", "arguments": {"a":"</tool_call>"}}\n</tool_call>'
    assert matching(grammar, plain_text := odd.replace("<|im_end|>", "")) != plain_text + "."
    [call] = module.read(odd)
    assert (call.name, call.arguments) == (ODD[1][0], '{"a":"</tool_call>"}')
    several = CALL + "\n" + CALL
    assert matching(grammar, several) == several + "."
    single = module.grammar(ODD, lambda schema: schema, several=False)
    assert matching(single, several) == CALL
    assert matching(grammar, CALL.replace("19", '"x"')).endswith('"answer":')
    assert matching(grammar, CALL.replace("add", "other")).endswith('"name": "')
    formatted = module.grammar(ODD, lambda schema: schema, SCHEMA)
    assert fault("GRAMMAR", formatted) is None
    assert matching(formatted, '{"answer":5}') == '{"answer":5}.'
    assert matching(formatted, CALL) == CALL + "."
    assert matching(formatted, "T") == ""


def test_any_ordinary_token_may_begin_a_text_that_is_no_call(matching: Any) -> None:
    """So the choice is not between a call and the few tokens that the grammar has room for."""
    grammar = module.grammar([("add", SCHEMA)], lambda schema: schema)
    words = [text_of([token]) for token in range(len(TOKENIZER)) if token not in TOKENIZER.all_special_ids]
    words = [word for word in words if word and "\ufffd" not in word and not word.startswith("<")]
    assert all(matching(grammar, word).startswith(word[:15]) for word in words)


def test_other_grammars_leave_no_choice() -> None:
    assert module.choice(None) is None
    assert module.choice(StructuredOutputsParams(grammar='start: "a"')) is None
    assert module.choice(StructuredOutputsParams(regex="a")) is None
