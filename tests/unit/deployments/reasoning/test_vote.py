"""Self-consistency: which answers agree, who wins, and when no further vote can change that."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.reasoning.vote import Election, same


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


def winner(votes):
    """Return who wins when all votes are in: most votes, of equals the one whose first vote came first."""
    answers = [answer for answer in votes if answer is not None]
    return max(answers, key=answers.count, default=None)


VOTES = st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=8)


@given(VOTES, st.integers(0, 4))
def test_a_vote_is_decided_when_no_completion_has_another_winner(votes, left):
    size = len(votes) + left
    election = Election(size, agree=str.__eq__)
    for sample, answer in enumerate(votes):
        election.add(sample, answer)
    leader = election.leader
    assert (leader.answer if leader else None) == winner(votes)
    completions = itertools.product(["a", "b", "c", "new", None], repeat=left)
    assert election.decided == (len({winner([*votes, *rest]) for rest in completions}) == 1)


@given(VOTES)
def test_who_wins_when_a_vote_is_decided_wins_at_its_end(votes):
    election = Election(len(votes), agree=str.__eq__)
    stopped = None
    for sample, answer in enumerate(votes):
        election.add(sample, answer)
        if election.decided and stopped is None:
            stopped = (election.leader.answer, election.leader.samples[0]) if election.leader else (None, None)
    assert stopped is not None
    assert stopped[0] == winner(votes)
    if stopped[0] is not None:
        assert stopped[1] == votes.index(stopped[0]), "the first sample with that answer"
