"""A reply read from its tokens, however tokens and text are cut, with the embedded model's tokenizer and vLLM's own detokenizer."""

import gzip
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

from deployments.reasoning import coat
from deployments.reasoning.reading import Reading, vocabulary
from tests.support.paths import NANO

TOKENIZER = AutoTokenizer.from_pretrained(NANO)
VOCABULARY = vocabulary(TOKENIZER)
END = TOKENIZER.eos_token_id
CONTINUE, REFLECT, EXPLORE = (TOKENIZER.convert_tokens_to_ids(token) for token in coat.ACTIONS)
RECORDED = json.loads(gzip.decompress((Path(__file__).parent / "chains.json.gz").read_bytes()))
"""Chains as the embedded model wrote them, as token ids; `dev/LOG.md` says how."""

WORDS = [
    *("<|continue|>", "<|reflect|>", "<|explore|>", "<|im_end|>", "<|endoftext|>"),
    *(
        "\n",
        " ",
        "The final answer is ",
        "最终答案是 ",
        "检查",
        "\\boxed{1}",
        "\\boxed {",
        "\\fbox{2}",
        "}",
        "$",
        "$$\n",
        "\\[\n",
        "\n\\]",
    ),
    *("\\begin{align*}", "\\end{align*}", "```\n", "**", "x=3", "47×6: 7×6=42 → 282", "😀", "y" * 250),
]
SPELLED = st.sampled_from(["<|reflect|>", "<|im_end|>", "<|", "|>"])


def tokens(text, special=True):
    if not special:  # as the model would spell it
        return [token for part in (text[:1], text[1:]) for token in TOKENIZER.encode(part, add_special_tokens=False)]
    return TOKENIZER.encode(text, add_special_tokens=False)


CHAINS = st.lists(
    st.one_of(
        st.sampled_from(WORDS).map(tokens),
        SPELLED.map(lambda text: tokens(text, special=False)),
        st.integers(0, 1023).map(lambda token: [token]),  # halves of characters, too
    ),
    max_size=14,
).map(lambda parts: [token for part in parts for token in part])
CUTS = st.lists(st.integers(0, 1 << 16), max_size=8)


def chunks(ids, cuts=None, *, stop=(), include=False, prompt=(0,)):
    """Return what vLLM's frontend gives out for tokens that come in steps: text and tokens of each. None cuts at every token."""
    params = SimpleNamespace(
        stop=list(stop),
        min_tokens=0,
        include_stop_str_in_output=include,
        skip_special_tokens=False,
        spaces_between_special_tokens=True,
    )
    request = SimpleNamespace(sampling_params=params, prompt_token_ids=list(prompt), request_id="r")
    detokenizer = FastIncrementalDetokenizer(TOKENIZER, request)
    bounds = range(len(ids) + 1) if cuts is None else sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    out, told = [], 0
    for first, last in itertools.pairwise(bounds):
        ended = last == len(ids)
        stopped = detokenizer.update(ids[first:last], ended and ids[-1] == END)
        text = detokenizer.get_next_output_text(ended or stopped is not None, delta=True)
        out.append((text, detokenizer.output_token_ids[told:]))
        told = len(detokenizer.output_token_ids)
        if stopped is not None:
            break
    return out


def actions(ids):
    return [VOCABULARY.actions[token] for token in ids if token in VOCABULARY.actions]


def merged(deltas):
    """Join what adjoins: the same text given out in fewer parts."""
    out = []
    for delta in deltas:
        if out and delta.text and out[-1].text and (out[-1].content, out[-1].number) == (delta.content, delta.number):
            out[-1] = out[-1]._replace(text=out[-1].text + delta.text)
        else:
            out.append(delta)
    return out


def read(parts, planted=(), late=False, **options):
    """Return all that a reading says, after checking that its count never goes backwards."""
    reading, deltas, counted = Reading(VOCABULARY, planted, late=late, **options), [], 0
    for text, ids in parts:
        deltas += reading.feed(text, ids)
        assert counted <= reading.thought_tokens
        counted = reading.thought_tokens
    deltas += reading.finish()
    assert counted <= reading.thought_tokens == sum(segment["tokens"] for segment in reading.segments())
    return merged(deltas), reading.segments(), reading.answer, reading.content, reading.thought_tokens


def assert_cuts_do_not_matter(ids, cuts, **options):
    whole = read(chunks(ids, [], **options))
    late = bool(options.get("stop"))
    assert read(chunks(ids, cuts, **options), late=late) == whole
    assert read(chunks(ids, None, **options), late=late) == whole
    return whole


@pytest.mark.parametrize("ids", RECORDED[::5], ids=range(0, len(RECORDED), 5))
def test_every_cut_of_recorded_chains(ids):
    """In two, at each token; and in all tokens at once."""
    whole = read(chunks(ids, []))
    assert all(read(chunks(ids, [cut])) == whole for cut in range(0, len(ids), 7))
    assert read(chunks(ids)) == whole


def test_recorded_chains_streamed():
    for ids in RECORDED:
        deltas, segments, answer, content, thought = assert_cuts_do_not_matter(ids, [len(ids) // 3, len(ids) // 2])
        assert [segment["action"] for segment in segments] == actions(ids)
        assert "".join(delta.text for delta in deltas) == VOCABULARY.decode(ids)
        assert answer == coat.answer(coat.read(TOKENIZER.decode([token for token in ids if token != END])))
        assert thought == len(ids) if not content else thought < len(ids)


@settings(max_examples=800, deadline=None)
@given(CHAINS, CUTS)
@example(tokens("<|continue|>we get  \\boxed{3}"), [3])
@example([CONTINUE, *tokens("<|reflect|>", special=False), REFLECT, *tokens("\\boxed{1}")], [5])
@example([CONTINUE, *tokens("检")[:1], REFLECT], [1])
def test_cuts_of_made_chains(ids, cuts):
    deltas, segments, *_, thought = assert_cuts_do_not_matter(ids, cuts)
    assert [segment["action"] for segment in segments] == [
        VOCABULARY.actions[token] for token in ids if token in VOCABULARY.actions
    ]
    assert thought <= len(ids)
    assert "\ufffd" in VOCABULARY.decode(ids) or "".join(delta.text for delta in deltas) == VOCABULARY.decode(ids)


@settings(max_examples=100, deadline=None)
@given(CHAINS, CUTS, st.sampled_from(["<|reflect|>", "answer", "\n", "{", "y\\"]), st.booleans())
def test_cuts_of_chains_with_a_stop(ids, cuts, stop, include):
    assert_cuts_do_not_matter(ids, cuts, stop=[stop], include=include)


@settings(max_examples=100, deadline=None)
@given(CHAINS, CUTS, st.integers(0, 30))
def test_a_chain_goes_on_from_the_prompt_as_if_it_had_been_written_there(ids, cuts, cut):
    planted, rest = [CONTINUE, *ids[:cut]], ids[cut:]
    if any(token in VOCABULARY.special and token not in VOCABULARY.actions for token in planted):
        return
    if "\ufffd" in VOCABULARY.decode(planted) + VOCABULARY.decode(rest):
        return  # a character that is half in the prompt
    options = {"planted": planted, "echo": True}
    echoed = read(chunks(rest, cuts, prompt=planted), **options)
    assert echoed[0] == merged(read(chunks(planted + rest, []))[0])
    own = read(chunks(rest, cuts, prompt=planted), planted)
    assert own == read(chunks(rest, None, prompt=planted), planted)
    assert own[2] == echoed[2]
    assert own[4] == echoed[4]


def test_text_that_spells_an_action_is_text():
    spelled = tokens("<|reflect|>", special=False)
    _, segments, *_ = assert_cuts_do_not_matter([CONTINUE, *spelled, *tokens("x\n")], [4])
    assert segments == [{"action": "continue", "text": "<|reflect|>x\n", "tokens": 1 + len(spelled) + 2}]


def test_other_special_tokens_are_no_text_and_the_end_counts_to_the_answer():
    thought, answer = tokens("<|continue|>1+1: 2\n"), tokens("The final answer is \\boxed{2}.")
    for include in (False, True):
        ids = [*thought, *answer, END]
        _, segments, box, content, count = assert_cuts_do_not_matter(ids, [3], include=include)
        assert (content, box, count) == ("The final answer is \\boxed{2}.", "2", len(thought))
        assert segments[0]["tokens"] == len(thought)
    _, segments, *_ = assert_cuts_do_not_matter([*thought, END, *thought], [3])  # ignore_eos
    assert [segment["text"] for segment in segments] == ["1+1: 2\n", "1+1: 2\n"]


def test_an_action_that_stops_the_reply_is_no_segment():
    ids = tokens("<|continue|>so \\boxed{2}<|reflect|>")
    parts = [(TOKENIZER.decode(ids[:-1]), ids)]  # vLLM leaves out the text of a stop token
    _, segments, box, *_ = read(parts)
    assert ([segment["action"] for segment in segments], box) == (["continue"], "2")


@pytest.mark.parametrize(
    ("planted", "written", "thought", "content", "answer"),
    [
        ("<|continue|>47×6: ", "282\nThe final answer is \\boxed{5}.", "282\n", "The final answer is \\boxed{5}.", "5"),
        ("<|continue|>x<|reflect|>", "Let me check.\n", "Let me check.\n", "", None),
        ("<|continue|>x\nThe final ans", "wer is \\boxed{5}.", "", "wer is \\boxed{5}.", "5"),
        ("<|continue|>x\n\\boxed{", "5}", "", "5}", "5"),
        ("<|continue|>x\nThe final ", "step is\n", "step is\n", "", None),
        ("<|reflect|>so\n\\[\n", "\\boxed{5}\n\\]", "", "\\boxed{5}\n\\]", "5"),
    ],
)
def test_a_planted_chain_goes_on(planted, written, thought, content, answer):
    before, ids = VOCABULARY.planted([1, *tokens("assistant\n"), *tokens(planted)]), tokens(written)
    assert before == tokens(planted)
    _, [segment], box, shown, count = read(chunks(ids, None, prompt=before), before)
    assert (segment["text"], shown, box) == (thought, content, answer)
    assert count == segment["tokens"] == len(tokens(thought))


def test_a_prompt_that_ends_a_message_plants_nothing():
    assert VOCABULARY.planted([1, *tokens("<|continue|>x<|im_end|>\n<|im_start|>assistant\n")]) == []
