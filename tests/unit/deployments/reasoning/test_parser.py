"""The parser `coat` on scripted text, with the embedded model's own tokenizer and vLLM's request types."""

import pytest
from transformers import AutoTokenizer

from deployments.reasoning.parser import CoatReasoningParser
from deployments.reasoning.request import CoatChatRequest
from deployments.reasoning.serving import CoatParser

THOUGHT = "<|continue|>47×6-100\n47×6: 7×6=42 → 282<|continue|>282-100: 2 → 182<|reflect|>Let me check.\n182+100 → 282 Right.\n"
ANSWER = "The final answer is \\boxed{182}."


@pytest.fixture(scope="module")
def tokenizer(nano):
    return AutoTokenizer.from_pretrained(nano)


def request(**more):
    return CoatChatRequest(messages=[{"role": "user", "content": "What is 47 × 6 - 100?"}], **more)


def parser(tokenizer, **more):
    made = CoatParser(tokenizer)
    made.begin(request(**more), "test")
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
    assert summary["segments"] == whole.coat.transcript.segments()
    assert [segment["action"] for segment in summary["segments"]] == ["continue", "continue", "reflect"]
    assert summary["answer"] == "182"


def test_each_chunk_tells_its_segment(tokenizer):
    chunks, *_ = stream(tokenizer, THOUGHT + ANSWER)
    seen = [(c["coat"]["action"], c["coat"]["index"]) for c in chunks if c.get("reasoning") is not None]
    assert list(dict.fromkeys(seen)) == [("continue", 0), ("continue", 1), ("reflect", 2)]
    assert all(chunk["reasoning_content"] == chunk["reasoning"] for chunk in chunks if "reasoning" in chunk)


def test_segments_stand_on_lines_of_their_own(tokenizer):
    reasoning, _ = CoatReasoningParser(tokenizer).extract_reasoning(THOUGHT + ANSWER, request())
    assert reasoning is not None
    assert reasoning.splitlines()[:3] == ["47×6-100", "47×6: 7×6=42 → 282", "282-100: 2 → 182"]


def test_tokens_add_up(tokenizer):
    ids = tokenizer.encode(THOUGHT, add_special_tokens=False)
    closing = [*tokenizer.encode(ANSWER, add_special_tokens=False), tokenizer.eos_token_id]
    made = parser(tokenizer)
    made.parse(THOUGHT + ANSWER, request())
    assert made.count_reasoning_tokens([*ids, *closing]) == len(ids)
    assert sum(segment["tokens"] for segment in made.coat.transcript.segments()) == len(ids)


def test_a_reply_without_actions_is_all_content(tokenizer):
    chunks, made, ids = stream(tokenizer, "I only know a little arithmetic.")
    assert "".join(chunk.get("content") or "" for chunk in chunks) == "I only know a little arithmetic."
    assert chunks[-1]["coat"] == {"segments": [], "answer": None}
    assert made.count_reasoning_tokens(ids) == 0


def test_a_reply_that_was_cut_off(tokenizer):
    chunks, made, ids = stream(tokenizer, "<|continue|>47×6: 7×6")
    assert chunks[-1]["coat"]["segments"][0]["text"] == "47×6: 7×6"
    assert made.count_reasoning_tokens(ids) == len(ids)


def test_raw_text_on_request(tokenizer):
    chunks, *_ = stream(tokenizer, THOUGHT + ANSWER, coat={"parse": False})
    assert "".join(chunk["content"] for chunk in chunks) == THOUGHT + ANSWER
    assert not any("coat" in chunk or "reasoning" in chunk for chunk in chunks)


def test_reasoning_stays_hidden_where_it_is_not_wanted(tokenizer):
    chunks, *_ = stream(tokenizer, THOUGHT + ANSWER, include_reasoning=False)
    assert "282" not in str(chunks)
    assert chunks[-1]["coat"] == {"answer": "182"}
