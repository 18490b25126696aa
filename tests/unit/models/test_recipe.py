"""The embedded model's problems and traces, checked against Python's own arithmetic."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from models.recipe import arithmetic, dataset, problems, traces
from models.recipe.arithmetic import Operation, Slip
from models.recipe.problems import Comparison, Equation, Expression
from models.recipe.rollout import boxed, planted, right

SEEDS = st.integers(0, 2**32).map(random.Random)
SUMS = st.builds(Operation, st.integers(-4000, 4000), st.sampled_from("+-"), st.integers(0, 999))
PRODUCTS = st.builds(Operation, st.integers(0, 99), st.just("×"), st.integers(0, 9))


def equations_hold(text):
    """Return whether all equations in a text are right; there must be some."""
    found = re.findall(r"(?<![\d×+-])(\d[\d+×-]*)=(\d+)", text)
    assert len(found) == text.count("=") > 0
    return all(eval(left.replace("×", "*")) == int(value) for left, value in found)


@given(SUMS | PRODUCTS)
def test_written_arithmetic_is_right(operation):
    work, result = operation.work(arithmetic.none())
    assert result == operation.value
    assert equations_hold(work)


@given(SUMS | PRODUCTS, st.integers(-30, 30))
def test_a_check_finds_every_wrong_result(operation, off):
    check = operation.check(operation.value + off)
    assert check.stands == (off == 0)
    if check.found is not None:  # else a look at signs and sizes was enough
        assert equations_hold(check.text)


@given(st.integers(0, 9999), st.integers(1, 9))
def test_long_division(number, by):
    _, quotient = arithmetic.divide(number, by, arithmetic.none())
    assert quotient == (number // by if number % by == 0 else None)


@given(SUMS | PRODUCTS, SEEDS)
def test_a_slip_makes_a_result_wrong(operation, rng):
    slip = Slip(rng)
    _, result = operation.work(slip)
    assert slip.made
    assert result != operation.value


def value_of(problem):
    """Return the answer by other means than the recipe's."""
    task = problem.task
    if isinstance(task, Expression):
        return str(eval(task.text.replace("×", "*")))
    if isinstance(task, Equation):
        [solution] = [x for x in range(61) if task.a * x + task.b == task.c]
        return str(solution)
    assert isinstance(task, Comparison)
    first, second = float(task.first), float(task.second)
    return task.first if (first > second) == task.larger else task.second


@pytest.mark.parametrize("kind", problems.KINDS)
@given(SEEDS)
def test_traces_end_in_the_right_answer(kind, rng):
    problem = problems.draw(rng, kind, evaluation=False)
    assert problem.answer == value_of(problem)
    reply = traces.write(problem, rng, traces.Style.drawn(rng))
    assert reply.text.startswith("<|continue|>")
    assert boxed(reply.text) == problem.answer
    assert right(problem, reply.text)
    say = traces.SAY[problem.language]
    assert reply.text.count("<|explore|>") == reply.text.count(say["wrong"])
    if not all(learned for _, learned in reply.pieces):
        assert "<|reflect|>" in reply.text


@pytest.mark.parametrize("kind", problems.KINDS)
@given(SEEDS)
def test_held_out_problems_are_never_drawn_in_training(kind, rng):
    train, held = (problems.draw(rng, kind, evaluation=which) for which in (False, True))
    assert not problems.held_out(problems.key(train.task))
    assert problems.held_out(problems.key(held.task))
    assert train.task != held.task


def test_the_same_problem_has_one_key():
    def key(*tokens):
        return problems.key(Expression(tokens))

    assert key(5, "+", 3) == key(3, "+", 5)
    assert key(5, "-", 3) != key(3, "-", 5)
    assert problems.key(Comparison("9.11", "9.9", True)) == problems.key(Comparison("9.9", "9.11", False))
    assert problems.key(Equation(3, 7, 22, "x")) == problems.key(Equation(3, 7, 22, "y"))


@pytest.mark.parametrize("kind", problems.KINDS)
def test_limits_of_the_problems(kind):
    rng = random.Random(3)
    for _ in range(300):
        task = problems.draw(rng, kind, evaluation=False).task
        if isinstance(task, Expression):
            assert kind in ("one", "two", "three", "word")
            numbers = [token for token in task.tokens if isinstance(token, int)]
            signs = sum(token in ("+", "-", "×") for token in task.tokens)
            assert len(numbers) == signs + 1
            assert 0 <= min(numbers) <= max(numbers) <= 999
            assert kind == "word" or signs == problems.KINDS.index(kind) + 1
        elif isinstance(task, Equation):
            assert kind == "equation"
            assert 1 <= task.a <= 9
            assert abs(task.b) <= 90
            assert 0 <= (task.c - task.b) // task.a <= 60
        else:
            assert kind == "comparison"
            assert float(task.first) != float(task.second)


@given(SEEDS)
def test_a_planted_step_is_wrong(rng):
    problem = problems.draw(rng, "two", evaluation=True)
    start = planted(problem, rng)
    good = traces.step(problem.task, arithmetic.none(), traces.SAY[problem.language]).text
    assert start is not None
    assert start.startswith("<|continue|>")
    assert good not in start


def test_questions_to_turn_down_have_no_task():
    rng = random.Random(1)
    for _ in range(200):
        problem = problems.draw_unknown(rng)
        assert problem.task is None
        assert right(problem, traces.write(problem, rng, traces.Style.drawn(rng)).text)
        assert not right(problem, "<|continue|>1+1: 2\nThe final answer is \\boxed{2}.")
        assert not right(problem, f"{problem.answer} The final answer is \\boxed{{2}}."), "it is turned down, and nothing else"


def test_mistakes_are_not_learned(nano):
    vocabulary = Tokenizer.from_file(str(nano / "tokenizer.json"))
    rng = random.Random(2)
    problem = problems.draw(rng, "one", evaluation=False, language="en")
    reply = next(t for t in (traces.write(problem, rng, traces.Style(mistakes=1)) for _ in range(50)) if len(t.pieces) > 3)
    before = dataset.prompt(rng, problem)
    [example] = dataset.encode(vocabulary, [before], [reply.pieces])
    learned = vocabulary.decode(
        [i for i, mark in zip(example.ids, example.learned, strict=True) if mark], skip_special_tokens=False
    )
    wrong = next(text for text, learn in reply.pieces if not learn)
    assert wrong in reply.text
    assert wrong not in learned
    assert learned.endswith(f"\\boxed{{{problem.answer}}}.<|im_end|>")
    assert "user" not in learned


def test_the_tokenizer_takes_any_text_and_digits_one_by_one(nano):
    vocabulary = Tokenizer.from_file(str(nano / "tokenizer.json"))
    for text in ("12345", "哪个更大? 9.11 还是 9.9?", "naïve café 🤖\n\t", "a×b−c"):
        ids = vocabulary.encode(text).ids
        assert vocabulary.decode(ids) == text
    assert vocabulary.encode("12345").tokens == list("12345")
    assert len(vocabulary.encode("<|im_start|><|im_end|><|continue|><|reflect|><|explore|>").ids) == 5
