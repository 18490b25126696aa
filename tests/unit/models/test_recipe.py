"""The embedded model's problems and traces, checked against Python's own arithmetic."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from models.recipe import arithmetic, dataset, forms, outside, problems, talks, traces
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
    assert learned.endswith(f"\\boxed{{{problem.answer}}}.<|im_end|>\n")
    assert "user" not in learned


def test_the_tokenizer_takes_any_text_and_digits_one_by_one(nano):
    vocabulary = Tokenizer.from_file(str(nano / "tokenizer.json"))
    for text in ("12345", "哪个更大? 9.11 还是 9.9?", "naïve café 🤖\n\t", "a×b−c"):
        ids = vocabulary.encode(text).ids
        assert vocabulary.decode(ids) == text
    assert vocabulary.encode("12345").tokens == list("12345")
    assert len(vocabulary.encode("<|im_start|><|im_end|><|continue|><|reflect|><|explore|>").ids) == 5


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_grammar_has_hundreds_of_forms_and_holds_out_a_fifth(language):
    rng, found = random.Random(1), {True: set(), False: set()}
    for _ in range(300):
        for kind in forms.KINDS:
            for which in found:
                task = problems.draw(rng, kind, evaluation=which, language=language).task
                form = forms.ask(rng, task, language, evaluation=which)
                assert form.held_out == which
                found[which].add(form.key)
    assert min(map(len, found.values())) > 400
    assert not found[True] & found[False]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("kind", ["one", "two", "three"])
@given(SEEDS)
def test_a_form_has_the_numbers_of_its_expression(kind, language, rng):
    task = problems.draw(rng, kind, evaluation=False, language=language).task
    text = forms.ask(rng, task, language, evaluation=False).text
    digits = text.translate(str.maketrans("０１２３４５６７８９", "0123456789"))
    words = digits.lower()
    for word, number in sorted(((word, at) for at, word in enumerate(forms.COUNT[language])), key=lambda pair: -len(pair[0])):
        words = words.replace(word, f" {number} ") if language == "zh" else re.sub(rf"\b{word}\b", str(number), words)
    numbers = [str(token) for token in task.tokens if isinstance(token, int)]
    written = re.findall(r"\d+", words)
    assert len(set(numbers) - set(written)) <= sum(int(number) <= 20 for number in numbers), text  # a word may be misspelt


def test_a_form_says_what_its_expression_says():
    """Sentences with one meaning, each of them found among many drawn."""
    wanted = {
        "add 12 and 30": (12, "+", 30),
        "take 12 from 30": (30, "-", 12),
        "multiply 47 by 6": (47, "×", 6),
        "12加上30": (12, "+", 30),
        "从30里减去12": (30, "-", 12),
    }
    rng, missing = random.Random(4), dict(wanted)
    for _ in range(20_000):
        text, tokens = rng.choice(list(wanted.items()))
        language = "en" if text.isascii() else "zh"
        if text in forms.ask(rng, Expression(tokens), language, evaluation=False).text.lower():
            missing.pop(text, None)
        if not missing:
            break
    assert missing == {}


@given(SEEDS)
def test_follow_ups_start_from_what_was_said(rng):
    turns, problem = talks.draw(rng, evaluation=False)
    assert 1 <= len(turns) <= 3
    assert problem.answer == (value_of(problem) if not isinstance(problem.task, Comparison) else problem.task.answer)
    assert boxed(turns[-1][1]) is not None
    reply = traces.write(problem, rng, traces.Style.drawn(rng))
    assert boxed(reply.text) == problem.answer
    task = problem.task
    if isinstance(task, Expression) and len(task.tokens) == 3 and boxed(turns[-1][1]) == str(task.tokens[0]):
        assert task.tokens[1] in "+-×"


def test_questions_from_outside_are_held_out_by_their_template():
    rng = random.Random(6)
    train, held = ({outside.draw(rng, which).question for _ in range(400)} for which in (False, True))
    assert len(train) > 300
    assert len(held) > 200
    assert not [text for text in train & held if len(text) > 6]
    assert all(outside.draw(rng, which).task is None for which in (True, False))


@given(SEEDS)
def test_training_asks_in_all_ways_and_in_none_that_is_held_out(rng):
    asked = []
    with pytest.MonkeyPatch.context() as patched:
        for module, name in ((forms, "asked"), (talks, "draw"), (outside, "draw")):
            called = getattr(module, name)
            patched.setattr(module, name, lambda *given, called=called, **named: asked.append(named) or called(*given, **named))
        for _ in range(30):
            before, problem = dataset.draw_way(rng)
            assert before.endswith("<|im_end|>\n<|im_start|>assistant\n")
            assert problem.question in before
    assert asked
    assert all(named == {"evaluation": False} for named in asked)
