"""A reply's text, read as it comes: its segments, and where the answer begins."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deployments.reasoning.coat import ACTIONS, HELD_CHARACTERS, Delta, Reader, Splitter, TokenSplitter, boxed

NAMES = {name: token for token, name in ACTIONS.items()}
FRAGMENTS = st.sampled_from(
    [
        *ACTIONS,
        "<|",
        "<|ref",
        "lect|>",
        "<",
        "|>",
        "<|im_end|>",
        "\n",
        "The final answer is ",
        "the final",
        "最终答案是 ",
        "\\boxed{1}",
        "\\box",
        "$",
        "$$\n",
        "\\(",
        "x=3",
        " so ",
        "y" * 300,
    ]
)
TEXTS = st.lists(FRAGMENTS | st.text(max_size=4), max_size=14).map("".join)


def chunked(text, cuts):
    at = sorted({cut % (len(text) + 1) for cut in cuts})
    return [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]


def pieces_of(chunks):
    splitter = Splitter()
    return [piece for chunk in chunks for piece in splitter.feed(chunk)] + splitter.finish()


def merged(deltas):
    """Join what adjoins: the same text given out in fewer parts."""
    out: list[Delta] = []
    for d in deltas:
        if out and d.text and out[-1].text and (out[-1].content, out[-1].number) == (d.content, d.number):
            out[-1] = Delta(d.content, d.action, d.number, out[-1].text + d.text)
        else:
            out.append(d)
    return out


def read(chunks):
    reader = Reader()
    return merged([delta for chunk in chunks for delta in reader.feed(chunk)] + reader.finish())


@given(TEXTS, st.lists(st.integers(0, 400), max_size=8))
def test_segments_join_to_the_text(text, cuts):
    joined = "".join(p.text or NAMES[p.action] for p in pieces_of(chunked(text, cuts)))
    assert joined == text


@given(TEXTS, st.lists(st.integers(0, 400), max_size=8))
def test_chunks_do_not_matter(text, cuts):
    assert read(chunked(text, cuts)) == read([text])


@given(TEXTS)
@example("<|ref<|continue|>lect|>")  # whose ends join to an action
def test_reading_loses_nothing(text):
    spliced = "".join(d.text for d in read(list(text)))
    assert spliced == "".join(p.text for p in pieces_of([text]))
    assert spliced == re.sub("|".join(map(re.escape, ACTIONS)), "", text)


def test_a_chain():
    text = "<|continue|>2+2: 4\n<|reflect|>Check.\n4-2=2 Right.\nThe final answer is \\boxed{4}."
    assert read([text]) == [
        Delta(False, "continue", 0, ""),
        Delta(False, "continue", 0, "2+2: 4\n"),
        Delta(False, "reflect", 1, ""),
        Delta(False, "reflect", 1, "Check.\n4-2=2 Right.\n"),
        Delta(True, "reflect", 1, "The final answer is \\boxed{4}."),
    ]


def test_text_without_actions_is_one_segment_and_all_content():
    assert [(p.action, p.number) for p in pieces_of(["What ", "is ", "this?"])] == [(None, 0)] * 3
    assert read(["So the answer is \\boxed{1}"]) == [Delta(True, None, 0, "So the answer is \\boxed{1}")]


def test_an_answer_that_an_action_follows_was_reasoning():
    deltas = read(["<|continue|>The final answer is \\boxed{5}.<|reflect|>No.\nThe final answer is \\boxed{6}."])
    assert "".join(d.text for d in deltas if d.content) == "The final answer is \\boxed{6}."


def test_a_box_inside_a_line_opens_the_answer_with_its_math_sign():
    deltas = read(["<|continue|>We get $\\boxed{7}$."])
    assert [d.text for d in deltas] == ["", "We get ", "$\\boxed{7}$."]


def test_a_long_answer_streams():
    reader = Reader()
    reader.feed("<|continue|>x\nThe final answer is ")
    assert reader.feed("a" * HELD_CHARACTERS)[-1].content
    assert reader.feed("b") == [Delta(True, "continue", 0, "b")]


def test_reasoning_is_not_held_longer_than_needed():
    reader = Reader()
    assert [d.text for d in reader.feed("<|continue|>47×6: 7×6=42, ")] == ["", "47×6: 7×6=42, "]
    assert [d.text for d in reader.feed("costs $5")] == ["costs $5"]


def test_tokens_are_counted_by_segment():
    counter = TokenSplitter({3: "continue", 4: "reflect"})
    for token in (3, 9, 9, 4, 4, 9):
        counter.feed([token])
    assert counter.counts == [("continue", 3), ("reflect", 1), ("reflect", 2)]
    plain = TokenSplitter({3: "continue"})
    plain.feed([1, 2, 3])
    assert plain.counts == [(None, 2), ("continue", 1)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\\boxed{42}", "42"),
        ("\\boxed{1} and \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{1} and \\boxed{2", "1"),
        ("\\boxed { 3 }", "3"),
        ("no box", None),
    ],
)
def test_boxed(text, found):
    assert boxed(text) == found
