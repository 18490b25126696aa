"""A reply's text, read as it comes: its segments, and where the answer begins."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deployments.reasoning.coat import ACTIONS, HELD_CHARACTERS, SPAN_CHARACTERS, Delta, Reader, answer, boxed, read

FRAGMENTS = st.sampled_from(
    [
        *ACTIONS,
        "<|ref",
        "lect|>",
        "<|im_end|>",
        "\n",
        " ",
        "The final answer is ",
        "the final",
        "最终答案是 ",
        "\\boxed{1}",
        "\\boxed {",
        "\\box",
        "ed{2}",
        "\\fbox{3}",
        "}",
        "{",
        "$",
        "$$",
        "\\(",
        "\\)",
        "\\[",
        "\\]",
        "\\begin{align*}",
        "\\end{align*}",
        "\\be",
        "gin{x}",
        "```",
        "`",
        "**",
        "*",
        "\\",
        "\\$",
        "x=3",
        " so ",
        "y" * 300,
        "z" * 2500,
    ]
)
TEXTS = st.lists(FRAGMENTS | st.text(max_size=4), max_size=14).map("".join)
ACTION = re.compile("|".join(map(re.escape, ACTIONS)))


def chunked(text, cuts):
    at = sorted({cut % (len(text) + 1) for cut in cuts})
    return [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]


def merged(deltas):
    """Join what adjoins: the same text given out in fewer parts."""
    out: list[Delta] = []
    for d in deltas:
        if out and d.text and out[-1].text and (out[-1].content, out[-1].number) == (d.content, d.number):
            out[-1] = Delta(d.content, d.action, d.number, out[-1].text + d.text)
        else:
            out.append(d)
    return out


def cut(text, cuts):
    """Read a text whose segments come in chunks, cut at these places or at every character."""
    reader, deltas, at = Reader(), [], 0
    for match in [*ACTION.finditer(text), None]:
        part = text[at : match.start() if match else len(text)]
        for chunk in list(part) if cuts is None else chunked(part, cuts):
            deltas += reader.feed(chunk) if chunk else []
        if match:
            deltas += reader.act(ACTIONS[match[0]])
            at = match.end()
    return merged(deltas + reader.finish())


@given(TEXTS, st.lists(st.integers(0, 6000), max_size=8))
@example("<|continue|>we get $ \\boxed{3}", [8])
@example("<|continue|>thus   \\boxed{3}", [7])
def test_chunks_do_not_matter(text, cuts):
    whole = merged(read(text))
    assert cut(text, cuts) == whole
    assert cut(text, None) == whole


@given(TEXTS)
def test_reading_loses_nothing(text):
    assert "".join(d.text for d in read(text)) == ACTION.sub("", text)


def test_a_chain():
    text = "<|continue|>2+2: 4\n<|reflect|>Check.\n4-2=2 Right.\nThe final answer is \\boxed{4}."
    assert merged(read(text)) == [
        Delta(False, "continue", 0, ""),
        Delta(False, "continue", 0, "2+2: 4\n"),
        Delta(False, "reflect", 1, ""),
        Delta(False, "reflect", 1, "Check.\n4-2=2 Right.\n"),
        Delta(True, "reflect", 1, "The final answer is \\boxed{4}."),
    ]


def test_text_without_actions_is_all_content():
    text = "What is this? So the answer is \\boxed{1}"
    assert read(text) == [Delta(True, None, -1, text)]
    assert [d.number for d in read("Well.<|reflect|>Hm.")] == [-1, 0, 0]


def test_an_answer_that_an_action_follows_was_thought():
    deltas = read("<|continue|>The final answer is \\boxed{5}.<|reflect|>No.\nThe final answer is \\boxed{6}.")
    assert "".join(d.text for d in deltas if d.content) == "The final answer is \\boxed{6}."
    assert answer(deltas) == "6"
    taken_back = read("<|continue|>The final answer is \\boxed{5}.<|reflect|>No, ")
    assert not any(d.content for d in taken_back)
    assert answer(taken_back) is None


def test_an_answer_that_was_passed_on_already_can_be_taken_back():
    deltas = read(f"<|continue|>The final answer is \\boxed{{5}}{' ' * HELD_CHARACTERS}.<|reflect|>No.\n\\boxed{{6}}")
    assert answer(deltas) == "6"
    assert answer(deltas[:-1]) is None


@pytest.mark.parametrize(
    ("thought", "statement"),
    [
        ("We get ", "$\\boxed{7}$."),
        ("We get ", "$ \\boxed{7} $"),
        ("We get ", "$\n\\boxed{7}\n$"),
        ("We get   ", "\\boxed{7} and so on"),
        ("So\n", "\\[\n\\boxed{7}\n\\]\n"),
        ("So\n", "$$\nx = \\boxed{7}\n$$"),
        ("So ", "\\(x = \\boxed{7}\\)"),
        ("So\n", "\\begin{align*}\nx &= 3 \\\\\n\n&= \\boxed{\\frac{1}{2}}\n\\end{align*}\nDone."),
        ("So\n", "\\[\\begin{aligned} x &= \\boxed {5} \\end{aligned}\\]"),
        ("\\[x\\] \\(y\\) $z$ $$w$$ `c` **b**: ", "\\fbox{7}"),
        ("So\n", "```latex\n\\boxed{7}\n```"),
        ("So ", "`\\boxed{7}`"),
        ("So ", "**Answer: \\boxed{7}**"),
        ("2**3 = ", "\\boxed{8}"),
        ("It costs $5, so ", "$x = \\boxed{3}$"),
        ("It costs $5.\nSo ", "\\boxed{3}"),
        ("\\$5 ", "\\boxed{3}"),
        ("", "**Final Answer**\n\\boxed{3}"),
        ("a\n  ", "So the answer is 3"),
        ("a\n\n", "最终答案是 \\boxed{3}。"),
    ],
)
def test_where_the_answer_begins(thought, statement):
    deltas = read(f"<|continue|>{thought}{statement}")
    assert "".join(d.text for d in deltas if not d.content) == thought
    assert "".join(d.text for d in deltas if d.content) == statement


@pytest.mark.parametrize(
    "text", ["\\[ never closed", "$5 and\n`x", "\\boxed", "\\boxed 5", "The final", "**", "\\begin{align*} x", "so the answer"]
)
def test_what_may_become_an_answer_and_does_not_is_thought(text):
    assert merged(read(f"<|continue|>{text}"))[1:] == [Delta(False, "continue", 0, text)]


def test_a_formula_of_any_length_streams_at_last():
    reader = Reader()
    reader.act("continue")
    assert reader.feed("\\[" + "x" * (SPAN_CHARACTERS - 3)) == []
    assert [d.content for d in reader.feed("xx")] == [False]
    assert [d.text for d in reader.feed("and \\boxed{1}")] == ["and "]


def test_a_long_answer_streams():
    reader = Reader()
    reader.act("continue")
    reader.feed("x\nThe final answer is ")
    assert reader.feed("a" * HELD_CHARACTERS)[-1].content
    assert reader.feed("b") == [Delta(True, "continue", 0, "b")]


def test_reasoning_is_not_held_longer_than_needed():
    reader = Reader()
    reader.act("continue")
    assert [d.text for d in reader.feed("47×6: 7×6=42, ")] == ["47×6: 7×6=42, "]
    assert [d.text for d in reader.feed("it costs $5")] == ["it costs "]
    assert [d.text for d in reader.feed(" more\n")] == ["$5 more\n"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\\boxed{42}", "42"),
        ("\\boxed{1} and \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{1} and \\boxed{2", "1"),
        ("\\boxed { 3 }", "3"),
        ("\\fbox{4}", "4"),
        ("\\boxed{\\left\\{1, {2}\\right\\}} {", "\\left\\{1, {2}\\right\\}"),
        ("x\\\\boxed{5}}", "5"),
        ("\\boxed{\\boxed{6}}", "6"),
        ("\\boxed{" * 20000, None),
        ("no box", None),
    ],
)
def test_boxed(text, found):
    assert boxed(text) == found
