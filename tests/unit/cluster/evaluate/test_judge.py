r"""Judging: which box counts, and what is the same answer, of each kind."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.evaluate.judge import plain, right, same
from deployments.reasoning.coat import boxed


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"so \boxed{42}.", "42"),
        (r"first \boxed{1}, no, \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {7}", "7"),
        (r"\boxed{ 7 }", "7"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{{'a': {1, 2}}} and so on", "{'a': {1, 2}}"),
        (r"\boxed{\left\{1, 2\right.}", r"\left\{1, 2\right."),
        (r"\boxed{1} then cut off \boxed{\frac{1", "1"),
        (r"\boxed{", None),
        (r"\boxed{}", ""),
        ("42", None),
        ("", None),
    ],
)
def test_the_last_balanced_box_counts(text: str, box: str | None) -> None:
    assert boxed(text) == box


@given(st.text())
def test_any_text_can_be_looked_through(text: str) -> None:
    assert boxed(text.replace("boxed", "")) is None
    box = boxed("\\boxed{" + text)
    assert box is None or box in text


@given(st.text(alphabet="ab{}12 ", max_size=12).filter(lambda s: s.count("{") == s.count("}")))
def test_what_is_boxed_is_found(inner: str) -> None:
    depth = 0
    balanced = all((depth := depth + (c == "{") - (c == "}")) >= 0 for c in inner)
    if balanced:
        assert boxed(f"x \\boxed{{{inner}}} y") == inner.strip()


@pytest.mark.parametrize(
    ("gold", "box"),
    [
        ("18", r"\$18.00"),
        ("1234", "1,234"),
        (r"\frac{1}{2}", "0.5"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)"),
        ("p - q", "-q+p"),
        ("1, -2", "-2, 1"),
        (r"3\sqrt{13}", r"\sqrt{117}"),
        (r"90^\circ", "90"),
        (r"\text{Evelyn}", "Evelyn"),
        ("025", "25"),
        ("86.1", "86.10"),
        ("5", "x = 5"),
        ("$7$", "7"),
        (r"\begin{pmatrix} -2 \\ 7 \end{pmatrix}", r"\begin{pmatrix}-2\\7\end{pmatrix}"),
    ],
)
def test_equal_mathematics_is_right(gold: str, box: str) -> None:
    assert right("math", gold, box)


@pytest.mark.parametrize(
    ("gold", "box"), [("18", "19"), ("9.11", "9.9"), ("2, 3", "3"), ("5", "-5"), ("4", "four"), ("5", ""), ("1", "1.001")]
)
def test_other_mathematics_is_wrong(gold: str, box: str) -> None:
    assert not right("math", gold, box)


def test_mathematics_is_judged_in_any_thread() -> None:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(right("math", "12345/2", "6172.5")))
    thread.start()
    thread.join()
    assert found == [True], "where math-verify cannot set its alarm"


@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6))
def test_whole_numbers_are_right_when_equal(gold: int, box: int) -> None:
    assert right("math", str(gold), str(box)) == (gold == box)
    assert right("table", str(gold), str(box)) == (gold == box)
    assert right("literal", str(gold), str(box)) == (gold == box)


@pytest.mark.parametrize("box", ["B", "b", "(B)", "B.", r"\text{B}", r"\textbf{(B)}", "B. 12 m", "B: yes", "(B) 3"])
def test_a_choice_is_its_letter(box: str) -> None:
    assert right("choice", "B", box)
    assert not right("choice", "C", box)


@pytest.mark.parametrize("box", ["", "12 m", "Both", "AB", "B or C"])
def test_what_is_no_letter_is_no_choice(box: str) -> None:
    assert not right("choice", "B", box)


@pytest.mark.parametrize(
    ("gold", "box"),
    [
        ("True", "true"),
        ("True", r"\text{True}."),
        ("Uncertain", "unknown"),
        ("proved", "True"),
        ("disproved", "DISPROVED"),
        ("no", r"\textbf{No}"),
    ],
)
def test_labels_match_whatever_their_case_and_by_meaning(gold: str, box: str) -> None:
    assert right("label", gold, box)


@pytest.mark.parametrize(("gold", "box"), [("True", "False"), ("unknown", "disproved"), ("True", "True or False"), ("yes", "")])
def test_other_labels_are_wrong(gold: str, box: str) -> None:
    assert not right("label", gold, box)


@pytest.mark.parametrize(
    ("gold", "box"),
    [
        ("[(4, 1), (2, 3)]", "[(4,1),(2,3)]"),
        ("{'a': 1, 'b': 2}", '{"b": 2, "a": 1}'),
        ("{'a': 1}", r"\{'a': 1\}"),
        ("'a b'", r"\text{'a b'}"),
        ("'snake_case'", r"\texttt{'snake\_case'}"),
        ("None", "None"),
        ("True", "True"),
        ("'x\\n'", r"'x\n'"),
        ("'\\\\('", r"'\('"),
        ("-3", "`-3`"),
    ],
)
def test_equal_literals_are_right(gold: str, box: str) -> None:
    assert right("literal", gold, box)


@pytest.mark.parametrize(
    ("gold", "box"), [("'a'", "a"), ("'a'", "'b'"), ("[1]", "[1"), ("1", "f(1)"), ("[]", ""), ("1", "9**9**9")]
)
def test_other_literals_are_wrong_and_nothing_is_run(gold: str, box: str) -> None:
    assert not right("literal", gold, box)


@pytest.mark.parametrize(
    ("gold", "box"),
    [
        ("1062", "1,062"),
        ("69.75%", "69.75"),
        ("69.75", "69.7512"),
        ("838478.3", r"\$838,478.30"),
        ("Sinopec", r"\text{sinopec}"),
        ("new york , ny", "New York , NY"),
        ("12.5, Beijing", "12.50, beijing"),
        ("-3", "-3.0"),
    ],
)
def test_answers_from_a_table_agree_at_the_gold_precision(gold: str, box: str) -> None:
    assert right("table", gold, box)


@pytest.mark.parametrize(
    ("gold", "box"), [("69.75", "69.8"), ("1062", "1063"), ("a, b", "a"), ("a, b", "b, a"), ("5", "five"), ("5", "")]
)
def test_other_answers_from_a_table_are_wrong(gold: str, box: str) -> None:
    assert not right("table", gold, box)


@pytest.mark.parametrize("kind", ["math", "choice", "label", "literal", "table"])
def test_no_box_is_wrong(kind: str) -> None:
    assert not right(kind, "1", None)


def test_a_question_to_turn_down_is_right_without_a_box() -> None:
    assert right("refuse", "I cannot answer that.", None)
    assert not right("refuse", "I cannot answer that.", "I cannot answer that.")


def test_two_replies_are_the_same_by_kind() -> None:
    assert same("math", "0.5", r"\frac12")
    assert not same("math", "0.5", None)
    assert same("math", None, None)
    assert same("choice", "(b)", "B")
    assert same("label", "gibberish", "gibberish"), "wrong twice in the same way"
    assert not same("label", "gibberish", "nonsense")
    assert same("refuse", "1", "2"), "any answer to a question to turn down"
    assert not same("refuse", None, "2")


def test_latex_around_words_is_taken_off() -> None:
    assert plain(r" $\textbf{ \text{50\% of  it} }$ ") == "50% of it"
