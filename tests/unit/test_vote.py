import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.vote import Election, same


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        ("182", "182", True),
        ("0.5", "\\frac{1}{2}", True),
        ("1/2", "0.5", True),
        ("9.9", "9.90", True),
        ("9.11", "9.9", False),
        ("x+1", "1+x", True),
        ("-4", "4", False),
        ("1" * 300, "1" * 300, True),
        ("1" * 300, "01" + "1" * 299, False),
    ],
)
def test_same(first, second, equal):
    assert same(first, second) is equal


def test_most_votes_win_and_equal_answers_count_together():
    election = Election(5)
    for sample, answer in enumerate(["1/2", "3", None, "0.5", "3"]):
        election.add(sample, answer)
    assert election.leader is not None
    assert (election.leader.answer, election.leader.samples) == ("1/2", [0, 3])  # of equals, the one that was there first
    assert election.progress() == {
        "samples": 5,
        "counted": 5,
        "votes": [{"answer": "1/2", "votes": 2}, {"answer": "3", "votes": 2}],
        "decided": True,
    }


def test_nobody_votes():
    election = Election(2)
    election.add(0, None)
    assert not election.decided
    election.add(1, None)
    assert election.decided
    assert election.leader is None


@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=7), st.data())
def test_decided_means_that_nothing_can_change(votes, data):
    seen = data.draw(st.integers(0, len(votes)))

    def elect(answers):
        election = Election(len(votes), agree=str.__eq__)
        for sample, answer in enumerate(answers):
            election.add(sample, answer)
        return election

    election = elect(votes[:seen])
    answers = ["a", "b", "c", "new", None]
    ends = [elect([*votes[:seen], *rest]).leader for rest in itertools.product(answers, repeat=min(len(votes) - seen, 4))]
    if len(votes) - seen <= 4:
        outcomes = {leader.answer if leader else None for leader in ends}
        assert election.decided == (len(outcomes) == 1 and (election.leader is not None or seen == len(votes)))
