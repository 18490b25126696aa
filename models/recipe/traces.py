"""Traces in Chain of Action-Thought for a problem: steps, checks that recompute, and after a mistake a second attempt.

`<|continue|>` opens a step, `<|reflect|>` a check of all steps since the last check, `<|explore|>` the repair of a step that a
check found wrong. The last line states the answer. Some traces have planted mistakes. Their working is marked as not to be learned,
so a model that imitates the traces learns to find mistakes but not to make them.
"""

import random
from dataclasses import dataclass, field

from models.recipe import arithmetic
from models.recipe.arithmetic import Check, Slip
from models.recipe.problems import Comparison, Equation, Expression, Problem

CONTINUE, REFLECT, EXPLORE = "<|continue|>", "<|reflect|>", "<|explore|>"
SAY: dict[str, dict[str, str]] = {
    "en": {
        "word": "The question asks for {0}.",
        "check": "Let me check.",
        "more": "Let me check once more.",
        "expected": ", expected {0}",
        "same": "same",
        "not": "not",
        "right": "Right.",
        "wrong": "Wrong.",
        "again": "Let me try again.",
        "fraction": "not a whole number",
        "whole": "whole part",
        "larger": "larger",
        "smaller": "smaller",
        "place": "tenths hundredths thousandths",
        "answer": "The final answer is \\boxed{{{0}}}.",
    },
    "zh": {
        "word": "题目要求 {0}。",
        "check": "检查一下。",
        "more": "再检查一次。",
        "expected": ",应为 {0}",
        "same": "同",
        "not": "不同",
        "right": "正确。",
        "wrong": "不对。",
        "again": "重新计算。",
        "fraction": "不是整数",
        "whole": "整数部分",
        "larger": "较大",
        "smaller": "较小",
        "place": "十分位 百分位 千分位",
        "answer": "最终答案是 \\boxed{{{0}}}。",
    },
}


@dataclass(frozen=True)
class Divide:
    """What is left of an equation after the constant has moved to the other side: a x = c."""

    equation: Equation
    right: int


@dataclass(frozen=True)
class Solved:
    """A state with nothing left to do."""

    value: str


State = Expression | Comparison | Equation | Divide | Solved


@dataclass(frozen=True)
class Step:
    """A written step: the state before it, its text, and the state after it."""

    before: State
    text: str
    after: State


def step(state: State, slip: Slip, say: dict[str, str]) -> Step:
    """Return the next step from a state that is not solved."""
    if isinstance(state, Expression):
        operation = state.operation()
        assert operation
        work, result = operation.work(slip)
        head = f"{state.text}\n" if len(state.tokens) > 3 else ""
        return Step(state, f"{head}{operation.text}: {work} → {result}", _solved(state.after(result)))
    if isinstance(state, Equation):
        operation = arithmetic.Operation(state.c, "-" if state.b >= 0 else "+", abs(state.b))
        if not state.b:
            return step(Divide(state, state.c), slip, say)
        work, result = operation.work(slip)
        after = Divide(state, result)
        left = f"{state.a if state.a > 1 else ''}{state.letter}"
        return Step(
            state, f"{state.text}\n{left}={operation.text}: {work} → {result}", after if state.a > 1 else Solved(str(result))
        )
    if isinstance(state, Divide):
        if state.right < 0:
            return Step(state, f"{state.equation.letter}={state.right}÷{state.equation.a}<0 → {say['fraction']}", Solved(""))
        work, quotient = arithmetic.divide(state.right, state.equation.a, slip)
        shown = say["fraction"] if quotient is None else str(quotient)
        text = f"{state.equation.letter}={state.right}÷{state.equation.a}: {work} → {shown}"
        return Step(state, text, Solved("" if quotient is None else str(quotient)))
    assert isinstance(state, Comparison)
    return _compare(state, slip, say)


def _solved(state: Expression) -> State:
    return Solved(str(state.tokens[0])) if len(state.tokens) == 1 else state


def _padded(state: Comparison) -> tuple[str, str, int]:
    """Return both numbers with the same number of decimal places, and that number."""
    places = max(len(n.partition(".")[2]) for n in (state.first, state.second))
    first, second = (
        f"{whole}.{part:0<{places}}" if places else whole
        for whole, _, part in (n.partition(".") for n in (state.first, state.second))
    )
    return first, second, places


def _compare(state: Comparison, slip: Slip, say: dict[str, str]) -> Step:
    """Compare whole parts, and then decimals one by one; a slip reverses the last sign."""
    first, second, places = _padded(state)
    lines = [f"{first}, {second}"]
    (a, _, x), (b, _, y) = first.partition("."), second.partition(".")
    pairs = [(say["whole"], int(a), int(b)), *((say["place"].split()[i], int(x[i]), int(y[i])) for i in range(places))]
    found = []
    more = False
    for name, left, right in pairs:
        more = left > right
        if left != right:
            if slip.rng and not slip.made:
                more, slip.made = not more, True
            found.append(f"{name} {left}{'>' if more else '<'}{right}")
            break
        found.append(f"{name} {left}={right}")
    answer = state.first if more == state.larger else state.second
    told = f" → {state.first}{'>' if more else '<'}{state.second}, {say[_asked(state)]} {answer}"
    return Step(state, "\n".join([*lines, ", ".join(found) + told]), Solved(answer))


def _asked(state: Comparison) -> str:
    return "larger" if state.larger else "smaller"


def check(done: Step, say: dict[str, str]) -> Check:
    """Return an independent recomputation of a step."""
    before, after = done.before, done.after
    if isinstance(before, Expression):
        operation = before.operation()
        assert operation
        return operation.check(int(after.value) if isinstance(after, Solved) else _claimed(before, after))
    if isinstance(before, Comparison):
        assert isinstance(after, Solved)
        first, second, _ = _padded(before)
        a, b = int(first.replace(".", "")), int(second.replace(".", ""))
        return Check(f"{a}{'>' if a > b else '<'}{b}, {say[_asked(before)]} {before.answer}", before.answer, after.value)
    assert isinstance(before, Equation | Divide)
    equation = before if isinstance(before, Equation) else before.equation
    if isinstance(after, Solved) and not (isinstance(before, Equation) and equation.a == 1):
        return _substitute(equation, after.value)
    assert isinstance(after, Divide | Solved)
    operation = arithmetic.Operation(equation.c, "-" if equation.b >= 0 else "+", abs(equation.b))
    return operation.check(after.right if isinstance(after, Divide) else int(after.value))


def compared(made: Check, say: dict[str, str]) -> str:
    """Return the found value beside the wanted one, up to the first character that differs: `, expected 531: 5/5 same, 5/3 not.`

    A small model finds it hard to compare two whole numbers, but not two characters.
    """
    if made.found is None or made.wanted is None:
        return "."
    width = max(len(made.found), len(made.wanted))
    found, wanted = made.found.rjust(width, "0"), made.wanted.rjust(width, "0")
    told = []
    for one, other in zip(found, wanted, strict=True):
        told.append(f"{one}/{other} {say['same' if one == other else 'not']}")
        if one != other:
            break
    return f"{say['expected'].format(made.wanted)}: {', '.join(told)}."


def _claimed(before: Expression, after: State) -> int:
    assert isinstance(after, Expression)
    place = before.place()
    assert place is not None
    return int(after.tokens[place - 1 - ("(" in before.tokens)])


def _substitute(equation: Equation, value: str) -> Check:
    """Return a check that puts the solution into the equation and compares the result with its right side."""
    if not value:
        return Check(equation.text, None, None)
    work, product = arithmetic.multiply(int(value), equation.a, arithmetic.none())
    text = f"{equation.a}×{value}: {work} → {product}"
    if equation.b:
        operation = arithmetic.Operation(product, "+" if equation.b > 0 else "-", abs(equation.b))
        columns, product = operation.work(arithmetic.none())
        text += f"\n{operation.text}: {columns} → {product}"
    return Check(text, str(product), str(equation.c))


@dataclass
class Trace:
    """A reply to a problem, in pieces: a text and whether it is learned."""

    pieces: list[tuple[str, bool]] = field(default_factory=list)

    def write(self, text: str, learned: bool = True) -> None:
        """Add a piece."""
        self.pieces.append((text, learned))

    @property
    def text(self) -> str:
        """The whole reply."""
        return "".join(text for text, _ in self.pieces)


@dataclass(frozen=True)
class Style:
    """How a trace is written: the chance of a check after each step, the chance of a mistake in each step, and the number of checks
    at the end (0: no checks at all).
    """

    early: float = 0.35
    mistakes: float = 0.0
    checks: int = 1

    @classmethod
    def drawn(cls, rng: random.Random) -> "Style":
        """Return a style as the model imitates them: half of the traces may have mistakes, a few have no check or several."""
        if rng.random() < 0.5:
            return cls(mistakes=rng.choice([0.3, 0.6]), checks=1 + (rng.random() < 0.05))
        return cls(checks=rng.choices([0, 1, 2, 3], [8, 84, 6, 2])[0], early=0 if rng.random() < 0.4 else 0.35)


def opening(problem: Problem) -> str:
    """Return the text before the first step: the expression that a word problem asks for, and nothing for other problems."""
    if problem.kind != "word":
        return ""
    assert isinstance(problem.task, Expression)
    return SAY[problem.language]["word"].format(problem.task.text) + "\n"


def write(problem: Problem, rng: random.Random, style: Style) -> Trace:
    """Return a reply to a problem; it always ends in the right answer."""
    trace = Trace()
    if problem.task is None:
        trace.write(problem.answer)
        return trace
    say = SAY[problem.language]
    _Writer(problem, trace, rng, style, say).run()
    trace.write("\n" + say["answer"].format(problem.answer))
    return trace


class _Writer:
    def __init__(self, problem: Problem, trace: Trace, rng: random.Random, style: Style, say: dict[str, str]) -> None:
        self.trace, self.rng, self.style, self.say = trace, rng, style, say
        assert problem.task is not None
        self.state: State = problem.task
        self.opening = opening(problem)
        self.steps: list[Step] = []
        self.unchecked = 0
        self.mistakes_left = 2

    def run(self) -> None:
        action = CONTINUE
        while True:
            while not isinstance(self.state, Solved):
                self.step(action)
                action = CONTINUE
                if (
                    self.style.checks
                    and not isinstance(self.state, Solved)
                    and self.rng.random() < self.style.early
                    and not self.reflect()
                ):
                    action = EXPLORE
            if not self.style.checks or (self.unchecked == 0 and self.steps) or self.reflect():
                break
            action = EXPLORE
        for _ in range(self.style.checks - 1):
            self.unchecked = len(self.steps)
            self.reflect("more")

    def step(self, action: str) -> None:
        wrong = self.mistakes_left > 0 and self.rng.random() < self.style.mistakes
        slip = Slip(self.rng) if wrong else arithmetic.none()
        done = step(self.state, slip, self.say)
        self.mistakes_left -= slip.made
        opening = ""
        if action == EXPLORE:
            opening = self.say["again"] + "\n"
        elif not self.steps:
            opening = self.opening
        self.trace.write(f"{action}{opening}")
        self.trace.write(done.text, learned=not slip.made)
        self.steps.append(done)
        self.unchecked += 1
        self.state = done.after

    def reflect(self, opening: str = "check") -> bool:
        """Check the steps since the last check, and go back to before a wrong one. Return whether all were right."""
        lines = [f"{REFLECT}{self.say[opening]}"]
        first = len(self.steps) - self.unchecked
        last = self.steps[-1].before
        if isinstance(last, Divide) and first < len(self.steps) - 1 and self.steps[-1].after.value:  # type: ignore[union-attr]
            first = len(self.steps) - 1  # substituting the solution checks the whole equation
        back = None
        for index in range(first, len(self.steps)):
            made = check(self.steps[index], self.say)
            lines.append(f"{made.text}{compared(made, self.say)} {self.say['right' if made.stands else 'wrong']}")
            if not made.stands:
                whole = isinstance(self.steps[index].before, Divide)
                back = 0 if whole else index
                break
        self.trace.write("\n".join(lines))
        self.unchecked = 0
        if back is None:
            return True
        self.state = self.steps[back].before
        del self.steps[back:]
        return False
