"""Replies in a format, told apart by their tokens: however they are cut, whatever their text looks like."""

import itertools
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import StructuredOutputsParams

from deployments.observability import metrics
from deployments.reasoning.ballot import Ballot
from deployments.reasoning.formatted import Formats, FormattedAnswers, thinks_first
from deployments.reasoning.parser import reads_formats
from deployments.reasoning.request import CoatChatRequest, Vote
from deployments.settings import CoatSettings
from tests.support.paths import ROOT

TOKENIZER: Any = AutoTokenizer.from_pretrained(ROOT / "models/nano")
FORMATS = Formats.of(TOKENIZER, CoatSettings())
THOUGHT = "<|continue|>12+7 → 19<|reflect|>Right. é\nThe final answer is \\boxed{19}."
ANSWER = '{"answer":"<|continue|> is text"}'


def plain(text: str) -> list[int]:
    """Return the tokens of a text in which special tokens stay text."""
    return list(itertools.chain.from_iterable(TOKENIZER.encode(character, add_special_tokens=False) for character in text))


def text_of(ids: list[int]) -> str:
    """Return the text of tokens as the engine's front end writes it."""
    return str(TOKENIZER.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def tokens(thought: str = THOUGHT, answer: str = ANSWER) -> list[int]:
    assert FORMATS is not None
    return TOKENIZER.encode(thought, add_special_tokens=False) + FORMATS.separator + plain(answer)


def request(**fields: Any) -> CoatChatRequest:
    message = {"role": "user", "content": "12+7"}
    return CoatChatRequest.model_validate({"messages": [message], "structured_outputs": {"regex": ".*"}} | fields)


def whole(ids: list[int], prompt: list[int] | None = None) -> tuple[str | None, str | None, dict[str, Any]]:
    parser = reads_formats(FORMATS)(TOKENIZER)
    parser.set_prompt_token_ids(prompt or [])
    reasoning, content, _ = parser.parse(text_of(ids), request(), model_output_token_ids=ids)
    return reasoning, content, parser.summary()


def test_thought_and_answer() -> None:
    reasoning, content, summary = whole(tokens())
    assert reasoning == "12+7 → 19\nRight. é\nThe final answer is \\boxed{19}."
    assert content == ANSWER
    assert summary["answer"] == "19"
    assert [segment["action"] for segment in summary["segments"]] == ["continue", "reflect"]
    assert sum(segment["tokens"] for segment in summary["segments"]) == len(tokens()) - len(plain(ANSWER))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 1000])
@pytest.mark.parametrize("prompt", [[], TOKENIZER.encode("<|continue|>Well, ", add_special_tokens=False)])
def test_a_stream_reads_the_same_however_it_is_cut(size: int, prompt: list[int]) -> None:
    ids, shown, sent = tokens(), {"reasoning": "", "content": ""}, 0
    ids = ids[1:] if prompt else ids
    parser, last = reads_formats(FORMATS)(TOKENIZER), None
    for start in range(0, len(ids), size):
        finished = start + size >= len(ids)
        text = text_of(ids[: start + size]).rstrip("\ufffd")
        last = parser.parse_delta(text[sent:], ids[start : start + size], request(), prompt, finished=finished)
        sent = len(text)
        shown["reasoning"] += (last and last.reasoning) or ""
        shown["content"] += (last and last.content) or ""
    reasoning, content, summary = whole(ids, prompt)
    assert shown == {"reasoning": reasoning, "content": content}
    assert content == ANSWER
    assert last is not None
    assert {name: last.coat[name] for name in summary} == summary


def test_a_text_like_the_separator_is_not_one() -> None:
    text = "<|im_start|>assistant\nstill a thought"
    assert whole(plain(text))[:2] == (text, None)


def test_a_reply_that_was_cut_has_no_answer_yet() -> None:
    assert FORMATS is not None
    assert whole(tokens()[:5])[1] is None
    assert whole(tokens(answer=""))[1] is None
    assert whole(FORMATS.separator)[:2] == (None, None)


def test_a_thought_without_an_action_is_no_segment() -> None:
    reasoning, content, summary = whole(tokens("19, \\boxed{19}"))
    assert (reasoning, content) == ("19, \\boxed{19}", ANSWER)
    assert summary == {"segments": [], "answer": "19"}


def test_a_box_that_opens_in_the_prompt() -> None:
    prompt = TOKENIZER.encode("<|continue|>It is \\boxed{1", add_special_tokens=False)
    reasoning, content, summary = whole(tokens("9}."), prompt)
    assert (reasoning, content, summary["answer"]) == ("9}.", ANSWER, "19")
    assert [segment["action"] for segment in summary["segments"]] == ["continue"]


def test_the_separator_begins_with_a_special_token() -> None:
    assert FORMATS is not None
    assert text_of(FORMATS.separator) == "<|im_start|>assistant\n"
    assert FORMATS.separator[0] in FORMATS.special
    assert Formats.of(TOKENIZER, CoatSettings(separator="text")) is None
    assert Formats.of(TOKENIZER, CoatSettings(separator="<|im_end|>")) is None, "it ends a turn"
    assert Formats.of(TOKENIZER, CoatSettings(separator="<|reflect|>")) is None, "it is an action"


def answers(**asked: Any) -> FormattedAnswers:
    assert FORMATS is not None
    return FormattedAnswers(FORMATS, StructuredOutputsParams(**asked))


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        ('{"a":1,"b":[2]}', '{"b": [2.0], "a": 1e0}', True),
        ("100", "1e2", True),
        ("0", "-0.00", True),
        ('{"a":1}', '{"a":"1"}', False),
        ('{"a":1}', '{"a":"1e0"}', False),
        ("[1,2]", "[2,1]", False),
        ("[]", "{}", False),
        ("true", '"True"', False),
        ("1." + "0" * 40 + "1", "1", False),
        ("1e999999999", "1e999999998", False),
        ("1e9999999999999999999999", "1e9999999999999999999998", False),
    ],
)
def test_equal_json_values_agree(first: str, second: str, equal: bool) -> None:
    made = answers(json={})
    assert made.key(first) is not None
    assert (made.key(first) == made.key(second)) is equal


@pytest.mark.parametrize(("asked", "answer"), [({"regex": "1"}, "1"), ({"json": {}}, "{"), ({"json": {}}, "[" * 100_000)])
def test_what_is_no_json_has_no_key_of_its_own(asked: dict[str, Any], answer: str) -> None:
    assert answers(**asked).key(answer) is None


@pytest.mark.asyncio
async def test_a_vote_counts_complete_answers_by_their_values() -> None:
    replies = [('{"a":1,"b":2}', "stop"), ('{"b":2.0,"a":1}', "stop"), ('{"a":1,"b":2', "length"), ('{"a":3}', "stop")]

    async def results() -> AsyncGenerator[RequestOutput, None]:
        for number, (answer, end) in enumerate(replies):
            ids = tokens(answer=answer)
            yield RequestOutput(
                "r", None, [], None, [CompletionOutput(number, text_of(ids), ids, None, None, finish_reason=end)], finished=False
            )

    comparer: Any = SimpleNamespace(prepare=lambda: None)
    assert FORMATS is not None
    vote = Vote(samples=4, stop_when_decided=False, chains=True)
    ballot = Ballot(vote, "nano", comparer, FORMATS.vocabulary, answers(json={}))
    async for _ in ballot.count(results()):
        pass
    outcome = ballot.result()
    assert [(group["answer"], group["votes"]) for group in outcome["votes"]] == [('{"a":1,"b":2}', 2), ('{"a":3}', 1)]
    assert [(chain["content"], chain["answer"]) for chain in outcome["chains"]] == [
        (answer, answer if end == "stop" else None) for answer, end in replies
    ]
    assert [[segment["action"] for segment in chain["segments"]] for chain in outcome["chains"]] == [["continue", "reflect"]] * 4


@pytest.mark.parametrize(
    ("asked", "parsed", "thinks"), [(None, True, False), ({"regex": "a"}, True, True), ({"regex": "a"}, False, False)]
)
def test_which_requests_think_first(asked: dict[str, Any] | None, parsed: bool, thinks: bool) -> None:
    params = None if asked is None else StructuredOutputsParams(**asked)
    assert thinks_first(SimpleNamespace(parsed=parsed, extract_structured_outputs=lambda: params)) is thinks


def test_all_tokens_are_counted_those_before_the_first_action_too() -> None:
    ids = tokens(thought="12+7 is 19." + THOUGHT)

    def counted() -> dict[str, float]:
        [family] = metrics.COAT_TOKENS.collector.collect()
        return {str(one.labels): one.value for one in family.samples if one.name.endswith("_total")}

    before = counted()
    whole(ids)
    grown = {labels: value - before.get(labels, 0) for labels, value in counted().items()}
    assert grown["{'model': '', 'action': 'none'}"] == len(TOKENIZER.encode("12+7 is 19.", add_special_tokens=False))
    assert sum(grown.values()) == len(ids)
