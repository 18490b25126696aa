"""What the limits of a chain, and what must be written again, make of the next token: on token ids alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.reasoning.limits import ARGUMENT, REPEAT, Chain, Constraint, Repetition
from deployments.reasoning.rules import rules_of
from tests.support.vocabulary import BOXED, CONTINUE, END, EXPLORE, NEWLINE, REFLECT, SIZE, THE, TOKENS, WORD

NOTHING = Constraint(banned=[], target=REFLECT)


def after(*output, **limits):
    """Return what the next token may be after this output."""
    return Chain(TOKENS | limits, list(output)).constraint()


def test_without_limits_every_token_may_come():
    assert after() == after(CONTINUE, REFLECT, EXPLORE, NEWLINE, THE) == NOTHING


def test_an_action_is_banned_when_it_is_used_up():
    assert after(REFLECT, max_reflections=2) == NOTHING
    assert after(REFLECT, CONTINUE, REFLECT, max_reflections=2).banned == [REFLECT]
    assert after(max_explorations=0).banned == [EXPLORE]
    assert after(max_reflections=0, max_explorations=0).banned == [REFLECT, EXPLORE]


def test_what_would_begin_the_answer_becomes_a_reflection():
    assert after(CONTINUE, WORD, min_reflections=1) == Constraint(banned=[], redirected=[END, BOXED], target=REFLECT)
    assert after(CONTINUE, WORD, NEWLINE, min_reflections=1).redirected == [END, BOXED, THE]
    assert after(NEWLINE, REFLECT, min_reflections=1) == NOTHING
    assert after(NEWLINE, REFLECT, min_reflections=2).redirected == [END, BOXED]


def test_an_opening_of_one_token_is_redirected_anywhere():
    chain = Chain(TOKENS | {"openings": [[THE]], "min_reflections": 1}, [CONTINUE])
    assert chain.constraint().redirected == [END, BOXED, THE]


def test_the_answer_is_written_when_the_reasoning_tokens_are_spent():
    output = [CONTINUE]
    chain = Chain(TOKENS | {"max_reasoning_tokens": 2}, output)
    assert chain.constraint() == NOTHING
    output.append(WORD)
    for token in TOKENS["answer"]:
        assert chain.constraint() == Constraint(forced=token)
        output.append(token)
    for _ in range(3):
        assert chain.constraint() == Constraint(banned=TOKENS["actions"]), "no action follows the answer"
        output.append(WORD)


def test_no_reasoning_tokens_are_an_answer_at_once():
    assert after(max_reasoning_tokens=0) == Constraint(forced=NEWLINE)


def test_an_answer_that_has_begun_is_not_begun_again():
    assert after(CONTINUE, BOXED, WORD, WORD, max_reasoning_tokens=3) == NOTHING
    assert after(CONTINUE, BOXED, REFLECT, max_reasoning_tokens=3).forced == NEWLINE, "it was no answer: an action followed"


def test_the_constraint_is_the_same_however_often_it_is_asked_for():
    output = [CONTINUE, WORD]
    chain = Chain(TOKENS | {"max_reasoning_tokens": 2}, output)
    assert chain.constraint() == chain.constraint() == Constraint(forced=NEWLINE)


@given(
    tokens=st.lists(st.integers(0, SIZE - 1), max_size=12),
    cut=st.integers(0, 12),
    limits=st.fixed_dictionaries(
        {},
        optional={
            "max_reasoning_tokens": st.integers(0, 12),
            "max_reflections": st.integers(0, 3),
            "max_explorations": st.integers(0, 3),
            "min_reflections": st.integers(0, 3),
        },
    ),
)
def test_a_chain_that_goes_on_elsewhere_has_the_same_limits(tokens, cut, limits):
    moved = Chain(TOKENS | limits | {"before": tokens[:cut]}, tokens[cut:])
    assert moved.constraint() == Chain(TOKENS | limits, tokens).constraint()


def test_a_repetition_forces_its_tokens_and_then_nothing():
    output = []
    again = Repetition([THE, BOXED], output)
    for token in (THE, BOXED):
        assert again.constraint() == Constraint(forced=token)
        output.append(token)
    assert again.constraint() == Constraint()


def test_the_rules_of_a_request_are_in_its_extra_arguments():
    output = [CONTINUE]
    given = {ARGUMENT: TOKENS | {"max_reflections": 0}, REPEAT: {"tokens": [THE, BOXED]}}
    chain, again = rules_of(given, output)
    assert isinstance(chain, Chain)
    assert isinstance(again, Repetition)
    assert (chain.constraint().banned, again.constraint().forced) == ([REFLECT], BOXED)
    output.append(BOXED)
    assert again.constraint().forced is None, "it reads the engine's own list"


@pytest.mark.parametrize("given", [None, {}, {"another": {"x": 1}}, {ARGUMENT: "text"}, {ARGUMENT: [1]}, {REPEAT: 3}])
def test_foreign_arguments_are_no_rules(given):
    assert rules_of(given, []) == []


def test_a_limit_that_nobody_knows_is_an_error():
    with pytest.raises(TypeError, match="max_words"):
        Chain(TOKENS | {"max_words": 3}, [])
