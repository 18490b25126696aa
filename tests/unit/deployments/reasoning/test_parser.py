"""The parser `coat` on scripted text, with the embedded model's own tokenizer and vLLM's request types."""

import itertools
import types

import pytest
from transformers import AutoTokenizer

from deployments.reasoning import parser as parser_module
from deployments.reasoning.parser import CoatParser
from deployments.reasoning.request import CoatChatRequest
from deployments.routing import prospect

THOUGHT = "<|continue|>47×6-100\n47×6: 7×6=42 → 282<|continue|>282-100: 2 → 182<|reflect|>Let me check.\n182+100 → 282 Right.\n"
ANSWER = "The final answer is \\boxed{182}."


@pytest.fixture(scope="module")
def tokenizer(nano):
    return AutoTokenizer.from_pretrained(nano)


def request(**more):
    return CoatChatRequest(messages=[{"role": "user", "content": "What is 47 × 6 - 100?"}], **more)


def parser(tokenizer, **more):
    made = CoatParser(tokenizer)
    made.begin(request(**more))
    return made


def stream(tokenizer, text, step=1, **more):
    """Return the chunks of a reply that comes `step` tokens at a time."""
    made, asked = parser(tokenizer, **more), request(**more)
    ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    chunks, shown = [], ""
    for at in range(0, len(ids), step):
        whole = tokenizer.decode([token for token in ids[: at + step] if token != tokenizer.eos_token_id])
        new = "" if whole.endswith("\ufffd") else whole[len(shown) :]
        shown += new
        last = at + step >= len(ids)
        chunks.append(made.parse_delta(new, ids[at : at + step], asked, [1, 2], finished=last))
    return [chunk.model_dump(exclude_unset=True) for chunk in chunks if chunk is not None], made, ids


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_a_stream_equals_the_whole(tokenizer, step):
    chunks, made, ids = stream(tokenizer, THOUGHT + ANSWER, step)
    whole = parser(tokenizer)
    reasoning, content, _ = whole.parse(THOUGHT + ANSWER, request(), model_output_token_ids=ids)
    assert whole.count_reasoning_tokens(ids) == made.count_reasoning_tokens(ids)
    assert "".join(chunk.get("reasoning") or "" for chunk in chunks) == reasoning
    assert "".join(chunk.get("content") or "" for chunk in chunks) == content == ANSWER
    summary = chunks[-1]["coat"]
    assert summary["segments"] == whole.summary()["segments"]
    assert [segment["action"] for segment in summary["segments"]] == ["continue", "continue", "reflect"]
    assert summary["answer"] == "182"


def test_a_stream_says_how_long_it_takes_only_where_that_is_asked_for(tokenizer, monkeypatch):
    seconds, reply = itertools.count(100, 0.3), types.SimpleNamespace(eta_s=lambda now: [1.0, 2.0, 9.5] if now > 103 else None)
    monkeypatch.setattr(parser_module, "time", types.SimpleNamespace(monotonic=lambda: next(seconds)))
    token = prospect.current.set(reply)
    plain, *_ = stream(tokenizer, THOUGHT + ANSWER)
    asking, *_ = stream(tokenizer, THOUGHT + ANSWER, stream=True, coat={"eta": True})
    prospect.current.reset(token)
    told = [at for at, chunk in enumerate(asking) if "eta_s" in chunk.get("coat", {})]
    assert len(told) > 3
    assert min(after - before for before, after in itertools.pairwise(told)) > 1, "not in each chunk"
    assert [asking[at]["coat"].pop("eta_s") for at in told] == [[1.0, 2.0, 9.5]] * len(told)
    assert asking == plain, "and nothing else is changed"


def test_each_chunk_tells_its_segment(tokenizer):
    chunks, *_ = stream(tokenizer, THOUGHT + ANSWER)
    thought = [chunk for chunk in chunks if chunk.get("reasoning") is not None]
    begun = [(chunk["coat"]["index"], chunk["coat"]["actions"]) for chunk in thought if "actions" in chunk["coat"]]
    assert begun == [(0, ["continue"]), (1, ["continue"]), (2, ["reflect"])]
    assert [chunk["coat"]["index"] for chunk in thought] == sorted(chunk["coat"]["index"] for chunk in thought)
    assert all(chunk["reasoning_content"] == chunk["reasoning"] for chunk in thought)


def added_up(into, delta):
    """Add a chunk to the chunks before, as OpenAI's client does (openai 2, lib/streaming/_deltas.py)."""
    for key, value in delta.items():
        before = into.get(key)
        if before is None or key in ("index", "type"):
            into[key] = value
        elif isinstance(before, str | int | float):
            into[key] = before + value
        elif isinstance(before, dict):
            added_up(before, value)
        elif all(isinstance(one, str | int | float) for one in before):
            before.extend(value)
        else:
            raise TypeError(f"{key}: a list of objects that are not numbered came twice")
    return into


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_chunks_can_be_added_up(tokenizer, step):
    whole = parser(tokenizer)
    chunks, _, ids = stream(tokenizer, THOUGHT + ANSWER, step)
    reasoning, content, _ = whole.parse(THOUGHT + ANSWER, request(), model_output_token_ids=ids)
    message = {}
    for chunk in chunks:
        added_up(message, chunk)
    assert (message["reasoning"], message["content"]) == (reasoning, content)
    assert message["coat"].pop("index") in (0, 2)
    assert message["coat"] == whole.summary() | {"actions": ["continue", "continue", "reflect"]}


def test_segments_stand_on_lines_of_their_own(tokenizer):
    reasoning, *_ = parser(tokenizer).parse(
        THOUGHT + ANSWER, request(), model_output_token_ids=tokenizer.encode(THOUGHT + ANSWER, add_special_tokens=False)
    )
    assert reasoning is not None
    assert reasoning.splitlines()[:3] == ["47×6-100", "47×6: 7×6=42 → 282", "282-100: 2 → 182"]


def test_tokens_add_up(tokenizer):
    ids = tokenizer.encode(THOUGHT, add_special_tokens=False)
    closing = [*tokenizer.encode(ANSWER, add_special_tokens=False), tokenizer.eos_token_id]
    made = parser(tokenizer)
    made.parse(THOUGHT + ANSWER, request(), model_output_token_ids=[*ids, *closing])
    assert made.count_reasoning_tokens([]) == len(ids)
    assert sum(segment["tokens"] for segment in made.summary()["segments"]) == len(ids)


def test_a_reply_without_actions_is_all_content(tokenizer):
    chunks, made, ids = stream(tokenizer, "I only know a little arithmetic.")
    assert "".join(chunk.get("content") or "" for chunk in chunks) == "I only know a little arithmetic."
    assert chunks[-1]["coat"] == {"segments": [], "answer": None}
    assert made.count_reasoning_tokens(ids) == 0


def test_a_reply_that_was_cut_off(tokenizer):
    chunks, made, ids = stream(tokenizer, "<|continue|>47×6: 7×6")
    assert chunks[-1]["coat"]["segments"][0]["text"] == "47×6: 7×6"
    assert made.count_reasoning_tokens(ids) == len(ids)
    whole = parser(tokenizer)
    whole.parse("<|continue|>47×6: 7×6", request(), model_output_token_ids=ids)
    assert whole.summary() == chunks[-1]["coat"] | {"segments": whole.summary()["segments"]}


def test_raw_text_on_request(tokenizer):
    chunks, *_ = stream(tokenizer, THOUGHT + ANSWER, coat={"parse": False})
    assert "".join(chunk["content"] for chunk in chunks) == THOUGHT + ANSWER
    assert not any("coat" in chunk or "reasoning" in chunk for chunk in chunks)


def test_reasoning_stays_hidden_where_it_is_not_wanted(tokenizer):
    chunks, *_ = stream(tokenizer, THOUGHT + ANSWER, include_reasoning=False)
    assert "282" not in str(chunks)
    assert chunks[-1]["coat"] == {"answer": "182"}
