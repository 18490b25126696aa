"""Intervals, pass@k, maj@k and the table: against published and hand-computed values."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.evaluate.scores import Judged, Marked, ks, majority, pass_at, percentile, score, table, wilson


def judged(sample: int, right: bool, tokens: int | None = 10, actions: dict[str, int] | None = None, **other: bool) -> Judged:
    return Judged(sample, None if other.get("no_box") else "1", right, other.get("cut_off", False), tokens, actions)


def marked(*rights: bool, majority: bool = False, group: str = "") -> Marked:
    return Marked("q", group, "1", majority, tuple(judged(i, right) for i, right in enumerate(rights)))


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_values_of_newcombe_1998(hits: int, n: int, low: float, high: float) -> None:
    """Statistics in Medicine 17, table I, method 3."""
    assert wilson(hits / n, n) == pytest.approx((low, high), abs=5e-5)


@given(n=st.integers(1, 10**6), share=st.floats(0, 1))
def test_wilson_holds_the_share_and_stays_within_0_and_1(n: int, share: float) -> None:
    low, high = wilson(share, n)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    assert low < high


def test_pass_at_k_by_hand() -> None:
    assert pass_at(4, 1, 2) == pytest.approx(0.5), "of the 6 pairs, 3 hold the right one"
    assert pass_at(5, 2, 3) == pytest.approx(0.9), "of the 10 triples, 1 holds none of the two"
    assert [pass_at(3, right, 3) for right in range(4)] == [0, 1, 1, 1]


@given(n=st.integers(1, 8), data=st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n: int, data: st.DataObject) -> None:
    right, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(itertools.combinations([True] * right + [False] * (n - right), k))
    assert pass_at(n, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_of_many_samples_does_not_overflow() -> None:
    assert pass_at(10_000, 1, 100) == pytest.approx(0.01)


def test_majority_joins_equal_answers_whatever_their_order() -> None:
    for answers in itertools.permutations(["3", "0.5", "3.0", ".50", "5e-1"]):
        assert majority(answers, lambda answer: str(float(answer))) == ".50", "the shortest of those written equally often"
    assert len({majority(answers, str) for answers in itertools.permutations(["3", "4", "4", "3"])}) == 1
    assert majority([], str) is None
    assert majority([None, "1", None], lambda answer: answer) is None, "no answer is one, too"


@given(st.lists(st.integers(0, 3), min_size=1))
def test_majority_is_the_mode(answers: list[int]) -> None:
    most = majority(answers, str)
    assert most is not None
    assert answers.count(most) == max(map(answers.count, answers))


def test_percentile_is_the_nearest_rank() -> None:
    assert [percentile(range(1, 101), p) for p in (0, 50, 95, 100)] == [1, 50, 95, 100]
    assert percentile([3, 1, 2], 95) == 3


def test_ks_are_powers_of_two_and_all() -> None:
    assert [ks(n) for n in (1, 2, 3, 4, 6, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_a_score_of_four_samples_each() -> None:
    found = score([marked(True, False, False, False), marked(True, True, True, False, majority=True)], samples=4)
    assert found.accuracy == pytest.approx(0.5)
    assert (found.low, found.high) == wilson(0.5, 2), "questions are counted, not samples"
    assert found.pass_at == {1: pytest.approx(0.5), 2: pytest.approx(0.75), 4: pytest.approx(1.0)}
    assert found.majority == pytest.approx(0.5)
    assert (found.questions, found.replies) == (2, 8)


def test_a_question_that_lacks_replies_counts_where_it_can() -> None:
    found = score([marked(True, True, False, False), marked(False, majority=True)], samples=4)
    assert found.accuracy == pytest.approx(0.25), "each question has the same weight"
    assert found.pass_at == {1: pytest.approx(0.25), 2: pytest.approx(5 / 6), 4: pytest.approx(1.0)}
    assert found.majority == 0.0


def test_tokens_shares_and_actions() -> None:
    replies = (
        judged(0, True, 10, {"continue": 2, "reflect": 1, "explore": 0}),
        judged(1, False, None, None, cut_off=True),
        judged(2, False, 40, {"continue": 4, "reflect": 0, "explore": 0}, no_box=True),
        judged(3, False, 20),
    )
    found = score([Marked("q", "", "1", False, replies)], samples=4)
    assert (found.tokens_mean, found.tokens_median, found.tokens_p95) == (pytest.approx(70 / 3), 20, 40)
    assert (found.cut_off, found.no_box) == (0.25, 0.25)
    assert found.actions == {"continue": 1.5, "reflect": 0.25, "explore": 0.0}


def test_what_no_reply_tells_is_none() -> None:
    found = score([Marked("q", "", "1", False, (judged(0, True, None), judged(1, True, None)))], samples=2)
    assert (found.tokens_mean, found.tokens_median, found.tokens_p95, found.actions) == (None, None, None, None)


def test_the_table_of_one_sample() -> None:
    text = table("nano", {"Satori": 93.9}, score([marked(True), marked(False)], samples=1), {})
    assert text.splitlines() == [
        "| model | accuracy % | 95 % | tokens mean | median | p95 | cut off % | no box % | continue | reflect | explore |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| nano | 50.0 | 9.5 to 90.5 | 10 | 10 | 10 | 0.0 | 0.0 |  |  |  |",
        "| Satori, published | 93.9 |  |  |  |  |  |  |  |  |  |",
    ]


def test_the_table_of_four_samples_with_groups() -> None:
    one, other = marked(True, True, True, True, majority=True), marked(False, False, False, True)
    groups = {"easy": score([one], 4), "hard": score([other], 4)}
    lines = table("nano", {}, score([one, other], 4), groups).splitlines()
    assert lines[0].startswith("| model | accuracy % | 95 % | pass@2 % | pass@4 % | maj@4 % | tokens mean |")
    assert lines[2].startswith("| nano | 62.5 | 14.2 to 94.4 | 75.0 | 100.0 | 50.0 | 10 |")
    assert lines[4].startswith("| part | questions | accuracy % |")
    assert lines[6].startswith("| easy | 1 | 100.0 | 20.7 to 100.0 | 100.0 | 100.0 | 100.0 |")
    assert lines[7].startswith("| hard | 1 | 25.0 |")
    assert {line.count("|") for line in lines[:3]} == {15}
    assert {line.count("|") for line in lines[4:]} == {16}
