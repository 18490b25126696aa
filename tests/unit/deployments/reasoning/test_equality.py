r"""Equality of answers: a table of pairs with the right verdict, and that it is an equivalence whatever the answers are."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.reasoning.answers.written import text_key
from deployments.reasoning.coat import boxed
from deployments.reasoning.equality import LONGEST, key, marks, same
from tests.support.answers import pairs

TABLE = pairs()


def test_the_table_is_large_and_half_of_it_is_unequal() -> None:
    unequal = sum(not pair.equal for pair in TABLE)
    assert len(TABLE) >= 300
    assert 0.4 <= unequal / len(TABLE) <= 0.6
    assert len({frozenset((pair.first, pair.second)) for pair in TABLE}) == len(TABLE)


@pytest.mark.parametrize("kind", dict.fromkeys(pair.kind for pair in TABLE))
def test_pairs_of_the_table(kind: str) -> None:
    wrong = [
        f"{pair.first}   {pair.second}"
        for pair in TABLE
        if pair.kind == kind
        and (same(pair.first, pair.second), same(pair.second, pair.first), same(pair.first, pair.first))
        != (pair.equal, pair.equal, True)
    ]
    assert not wrong, "\n".join(["", *wrong])


def test_equal_answers_are_right_whichever_is_the_gold_one() -> None:
    assert [pair for pair in TABLE if pair.equal and not (marks(pair.first, pair.second) and marks(pair.second, pair.first))] == []


NUMBERS = st.one_of(
    st.integers(-20, 20).map(str),
    st.builds("{}/{}".format, st.integers(-5, 9), st.integers(1, 6)),
    st.builds(r"\frac{{{}}}{{{}}}".format, st.integers(-5, 9), st.integers(1, 6)),
    st.builds("{}.{}".format, st.integers(0, 3), st.sampled_from(["0", "5", "25", "50", "125"])),
    st.builds(r"{}\%".format, st.sampled_from([5, 12.5, 50, 100])),
    st.builds("{} {}/{}".format, st.integers(1, 3), st.just(1), st.integers(2, 4)),
    st.sampled_from([r"\pi", "2π", r"\sqrt{2}", "√2", r"\sqrt{8}/2", "1e3", "1,000", r"1\,000", r"0.\overline{3}", r"\infty", "½"]),
)
FORMULAS = st.recursive(
    NUMBERS | st.sampled_from(["x", "y", "2x", r"x^2", r"\sin x"]),
    lambda inner: st.one_of(
        st.builds("{} + {}".format, inner, inner),
        st.builds("({})({})".format, inner, inner),
        st.builds(r"\frac{{{}}}{{{}}}".format, inner, inner),
        st.builds("({})^2".format, inner),
    ),
    max_leaves=3,
)
ANSWERS = st.one_of(
    FORMULAS,
    st.builds("x = {}".format, FORMULAS),
    st.builds("{}, {}".format, NUMBERS, NUMBERS),
    st.builds("({}, {})".format, NUMBERS, NUMBERS),
    st.builds("[{}, {}]".format, NUMBERS, NUMBERS),
    st.builds(r"\{{{}, {}\}}".format, NUMBERS, NUMBERS),
    st.builds("x = {} or x = {}".format, NUMBERS, NUMBERS),
    st.builds(r"{} \le x < {}".format, NUMBERS, NUMBERS),
    st.builds("x > {}".format, NUMBERS),
    st.builds(r"\pm {}".format, NUMBERS),
    st.builds("{} {}".format, NUMBERS, st.sampled_from(["km", r"\text{ cm}^2", "dollars", "%", "degrees", "_2", "apples"])),
    st.builds("{}_{}".format, st.sampled_from(["101", "77", "12"]), st.sampled_from([2, 3, 8, 10])),
    st.sampled_from(["no", "on", "Amy", "May", r"\text{yes}", "Yes", "June 20", "20 June", "A", "(A)", r"\emptyset", "3:4", "6:8"]),
)
WRAPPED = st.builds(str.format, st.sampled_from(["{}", "${}$", "{}.", "**{}**", r"\boxed{{{}}}", "{},"]), ANSWERS)


@settings(deadline=None, max_examples=60)
@given(st.lists(WRAPPED, min_size=1, max_size=6))
def test_it_is_an_equivalence(answers: list[str]) -> None:
    for first, second in itertools.product(answers, repeat=2):
        assert same(first, first)
        assert same(first, second) == same(second, first)
    for first, second, third in itertools.product(answers, repeat=3):
        assert not (same(first, second) and same(second, third)) or same(first, third)


@settings(deadline=None)
@given(st.fractions(max_denominator=50), st.fractions(max_denominator=50))
def test_numbers_are_the_same_when_they_are_equal_however_they_are_written(first: Fraction, second: Fraction) -> None:
    def ways(value: Fraction) -> list[str]:
        over, under = value.numerator, value.denominator
        return [f"{over}/{under}", rf"\frac{{{over}}}{{{under}}}", rf"$\dfrac{{{2 * over}}}{{{2 * under}}}$", rf"{over}\div{under}"]

    for one, other in itertools.product(ways(first), ways(second)):
        assert same(one, other) == (first == second)


@settings(deadline=None)
@given(st.text() | st.text(alphabet=r"0123456789.,+-*/^_{}()[]|\ <>=%xyπ√½", max_size=30))
def test_any_text_has_a_key(text: str) -> None:
    assert isinstance(key(text), str)
    assert same(text, text)
    assert marks(text, text)


def test_long_answers_are_compared_as_text() -> None:
    assert same("1" * (LONGEST + 1), "1" * (LONGEST + 1))
    assert not same("1" * (LONGEST + 1), "01" + "1" * LONGEST)
    assert key(" a  b") != text_key("a b"), "an answer that was read is not taken for one that was not"


@pytest.mark.parametrize(
    "nested", ["(" * 500 + "5" + ")" * 500, r"\frac{1}{" * 200 + "2" + "}" * 200, "-" * 900 + "5", "{" * 90 + "5"]
)
def test_what_is_nested_too_deeply_is_text(nested: str) -> None:
    assert same(nested, nested)
    assert not same(nested, "5")


@pytest.mark.parametrize("large", ["10^{15000}", r"2^{50000}", "1e5000"])
def test_numbers_of_too_many_digits_are_still_told_apart(large: str) -> None:
    assert not same(large, large + "+1")
    assert same(large, f"${large}$")


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("50", r"50\%", True),
        (r"50\%", "50", True),
        ("0.5", r"50\%", True),
        ("5", r"50\%", False),
        ("101", "101_2", True),
        ("101_2", "101", True),
        ("101_3", "101_2", False),
        ("110", "101_2", False),
        ("b", "B", True),
        (r"\text{(b)}", "B", True),
        ("c", "B", False),
        ("(2, 1)", "1, 2", True),
        (r"\{2, 1\}", "1, 2", True),
        ("1, 2", "(2, 1)", True),
        ("(2, 1)", "(1, 2)", False),
        ("1, 3", "(1, 2)", False),
        ("5 km", "5", True),
        ("5", r"5\text{ km}", True),
        ("5 km", "5 kilometers", True),
        ("5000 m", "5 km", True),
        ("5 m", "5 km", False),
        ("90 min", "1.5 hours", True),
        ("2 hours", "2 minutes", False),
        ("0.333", "1/3", False),
        (r"3.1415927", r"\pi", False),
        ("Amy", "May", False),
    ],
)
def test_marks_are_lenient_where_it_is_written_down(answer: str, gold: str, right: bool) -> None:
    assert marks(answer, gold) is right


def test_a_box_after_a_space_is_read_as_the_evaluation_reads_it() -> None:
    answers = [boxed(text) for text in (r"\boxed {5}", r"\boxed{5}", r"\boxed{ 5 }", "\\boxed\n{5.0}")]
    assert None not in answers
    assert len({key(answer) for answer in answers if answer}) == 1
