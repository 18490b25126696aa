"""Self-consistency: which answers agree, who wins, and when no further vote can change that."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.reasoning.equality import key, same
from deployments.reasoning.vote import Election, rank

ANSWERS = ["0.5", r"\frac{1}{2}", "1/2", "50\\%", "50", "(1,2)", "1, 2", "(2,1)", "x=1 or x=2", "no", "on", None]
KEYS = sorted("abc", key=rank)
OTHERS = sorted("defghijklmnopqrstuvwxyz", key=rank)
NEW = [OTHERS[0], OTHERS[-1]]
"""An answer that wins every draw, and one that loses it."""


def election(answers, size=None):
    counted = Election(size or len(answers))
    for sample, answer in answers if answers and isinstance(answers[0], tuple) else enumerate(answers):
        counted.add(sample, answer, answer and key(answer))
    return counted


def winner(counted):
    return counted.leader and counted.leader.key


def test_most_votes_win_and_equal_answers_count_together():
    counted = election(["1/2", "3", None, "0.5", "1/2"], 6)
    assert counted.leader is not None
    assert (counted.leader.answer, counted.leader.sample) == ("1/2", 0)
    assert counted.progress() == {
        "samples": 6,
        "counted": 5,
        "votes": [{"answer": "1/2", "votes": 3}, {"answer": "3", "votes": 1}],
        "decided": True,
    }


def test_an_answer_is_shown_as_most_write_it():
    assert election([r"\frac12", "0.5", "0.5"]).leader.answer == "0.5"
    assert election([r"\frac12", "0.5"]).leader.answer == "0.5", "of equally frequent ways the shortest"


def test_nobody_votes():
    counted = Election(2)
    counted.add(0, None, None)
    assert not counted.decided
    counted.add(1, None, None)
    assert counted.decided
    assert counted.leader is None


@given(st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=8), st.randoms(use_true_random=False), st.integers(0, 3))
def test_nothing_depends_on_the_order_of_samples(answers, random, left):
    first = election(answers, len(answers) + left)
    shuffled = random.sample(answers, len(answers))
    second = election(shuffled, len(answers) + left)
    assert first.progress() == second.progress()
    assert winner(first) == winner(second)


@given(st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_which_chain_ends_first_changes_not_even_the_sample(answers, random):
    numbered = list(enumerate(answers))
    first, second = election(numbered), election(random.sample(numbered, len(numbered)))
    assert first.progress() == second.progress()
    assert (first.leader and first.leader.sample) == (second.leader and second.leader.sample)


@given(st.lists(st.sampled_from(ANSWERS), max_size=8))
def test_groups_are_the_classes_of_the_equality(answers):
    groups = election(answers, 8).groups
    voted = [answer for answer in answers if answer is not None]
    assert sorted(sample for group in groups for sample in group.answers) == [
        at for at, one in enumerate(answers) if one is not None
    ]
    for group in groups:
        assert [answer for answer in voted if same(answer, group.answer)] == [group.answers[at] for at in sorted(group.answers)]


def voted(votes, size=None):
    counted = Election(size or len(votes))
    for sample, vote in enumerate(votes):
        counted.add(sample, vote, vote)
    return counted


@settings(deadline=None)
@given(st.lists(st.sampled_from([*KEYS, None]), max_size=7), st.integers(0, 4))
def test_a_vote_is_decided_when_no_completion_has_another_winner(votes, left):
    """All completions, with known answers, none, and new ones that win or lose a draw: up to 8 samples."""
    left = min(left, 8 - len(votes))
    now = voted(votes, len(votes) + left)
    completions = itertools.product([*KEYS, None, *NEW], repeat=left)
    assert rank(NEW[0]) < rank(KEYS[0])
    assert rank(NEW[1]) > rank(KEYS[-1])
    assert now.decided == (len({winner(voted([*votes, *rest])) for rest in completions}) <= 1)


@given(st.lists(st.sampled_from([*KEYS, *NEW, None]), min_size=1, max_size=8))
def test_who_wins_when_a_vote_is_decided_wins_at_its_end(votes):
    counted, stopped = Election(len(votes)), None
    for sample, vote in enumerate(votes):
        counted.add(sample, vote, vote)
        if counted.decided and stopped is None:
            stopped = (winner(counted),)
    assert stopped == (winner(counted),)
