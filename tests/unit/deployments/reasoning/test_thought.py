"""The rule of a request that thinks first: where its thought ends, and what its answer may hold."""

import pytest

from deployments.engine.vocabulary import ModelVocabulary
from deployments.reasoning.limits import ARGUMENT, REPEAT, Chain, Constraint, Repetition
from deployments.reasoning.rules import rules_of
from deployments.reasoning.thought import ARGUMENT as THOUGHT
from deployments.reasoning.thought import Thought, answer_begins
from tests.support.vocabulary import BOXED, CONTINUE, END, EXPLORE, NEWLINE, REFLECT, THE, TOKENS, WORD

SEPARATOR = [10, THE]
GIVEN = {"separator": SEPARATOR, "special": [CONTINUE, REFLECT, EXPLORE, END, 10], "copy": 1.0, "is_json": True}


def rule(output: list[int], *, copy: float = 0.0, vocabulary: ModelVocabulary | None = None, **limits: int) -> Thought:
    arguments = {THOUGHT: GIVEN | {"copy": copy}} | ({ARGUMENT: TOKENS | limits} if limits else {})
    [made] = rules_of(arguments, output, [END], lambda: vocabulary)
    assert isinstance(made, Thought)
    return made


def test_a_thought_ends_with_the_separator_instead_of_the_turn() -> None:
    output = [CONTINUE, WORD]
    made = rule(output)
    assert made.constraint() == Constraint(redirected=[END], target=10), "a marker that is banned could take nothing over"
    output.append(10)
    assert made.constraint() == Constraint(forced=THE)
    output.append(THE)
    answering = made.constraint()
    assert answering.banned == [CONTINUE, REFLECT, EXPLORE, 10], "an action may not stand in an answer, its end may"
    assert (answering.forced, answering.redirected) == (None, ())


def test_limits_hold_in_the_thought_and_not_in_the_answer() -> None:
    output = [CONTINUE]
    made = rule(output, max_reasoning_tokens=2, min_reflections=1)
    assert made.constraint().target == REFLECT, "the turn may not end before a reflection"
    assert 10 in made.constraint().banned
    output.append(REFLECT)
    assert made.constraint() == Constraint(forced=TOKENS["answer"][0])
    output += TOKENS["answer"]
    assert made.constraint() == Constraint(banned=TOKENS["actions"], redirected=[END], target=10)
    output += [WORD, *SEPARATOR]
    assert made.constraint().forced is None
    assert made.constraint().banned == [CONTINUE, REFLECT, EXPLORE, 10]


def test_reflections_are_banned_in_the_thought() -> None:
    made = rule([CONTINUE, REFLECT], max_reflections=1)
    assert made.constraint() == Constraint(banned=[REFLECT], redirected=[END], target=10)


def test_an_answer_copies_the_box_of_its_thought() -> None:
    texts = [b"<c>", b"<r>", b"<x>", b"", b"\n", b"the", b"\\boxed{", b"7}", b"7", b'"', b"<s>"]
    output = [0, 6, 7, 10, 5]
    made = Thought(
        GIVEN | {"separator": [10, 5], "special": [0, 1, 2, 3, 10]}, output, None, [3], ModelVocabulary(texts, [0, 1, 2, 3, 10])
    )
    constraint = made.constraint()
    assert constraint.weight == 1.0
    assert next(iter(constraint.preferred)) == [8]


def test_a_repetition_comes_last_and_an_own_argument_is_no_rule() -> None:
    given = {THOUGHT: GIVEN, REPEAT: {"tokens": [WORD]}}
    assert [type(made) for made in rules_of(given, [])] == [Thought, Repetition]
    assert [type(made) for made in rules_of({THOUGHT: "text", ARGUMENT: TOKENS}, [])] == [Chain]


@pytest.mark.parametrize(
    ("output", "begins"), [([], None), ([WORD, NEWLINE], None), ([10], 2), ([WORD, 10], 3), ([WORD, 10, THE, BOXED, 10], 3)]
)
def test_where_the_answer_begins(output: list[int], begins: int | None) -> None:
    assert answer_begins(output, SEPARATOR) == begins
