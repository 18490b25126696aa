"""The problems of the nano model: drawn from a seed, phrased in many ways, in English and Chinese, held out by construction.

A problem is held out when the CRC-32 of its key (the expression itself, whatever the words around it) is a multiple of 10: training
never draws those, evaluation draws nothing else.
"""

import random
import zlib
from dataclasses import dataclass

from models.recipe.arithmetic import Operation
from models.recipe.phrases import ASK, CARD, COMPARE, EQUATION, OPERATORS, REFUSE, WORD, unknown_question

KINDS = ("one", "two", "three", "comparison", "equation", "word")
"""Expressions of 1, 2 and 3 operations, comparisons of two numbers, linear equations, word problems."""


@dataclass(frozen=True)
class Expression:
    """An expression of whole numbers with + - × and brackets. `tokens` are in written order; only the first can be negative."""

    tokens: tuple[int | str, ...]

    @property
    def text(self) -> str:
        """The expression without spaces, 47×6+215."""
        return "".join(map(str, self.tokens))

    def place(self) -> int | None:
        """Return the index of the sign to compute next (brackets, then ×, then from the left), None where one number is left."""
        tokens = self.tokens
        if len(tokens) == 1:
            return None
        if "(" in tokens:
            return tokens.index("(") + 2
        return tokens.index("×") if "×" in tokens else 1

    def operation(self) -> Operation | None:
        """Return the operation to compute next."""
        place = self.place()
        if place is None:
            return None
        left, sign, right = self.tokens[place - 1 : place + 2]
        return Operation(int(left), str(sign), int(right))

    def after(self, result: int) -> "Expression":
        """Return the expression that is left when the next operation has given `result`."""
        place = self.place()
        assert place is not None
        bracket = "(" in self.tokens
        return Expression((*self.tokens[: place - 1 - bracket], result, *self.tokens[place + 2 + bracket :]))

    @property
    def value(self) -> int:
        """The value of the expression."""
        expression = self
        while operation := expression.operation():
            expression = expression.after(operation.value)
        return int(expression.tokens[0])


@dataclass(frozen=True)
class Comparison:
    """Two different numbers as written (decimals), and whether the larger is asked for."""

    first: str
    second: str
    larger: bool

    @property
    def answer(self) -> str:
        """The number that is asked for, as written."""
        return (max if self.larger else min)(self.first, self.second, key=float)


@dataclass(frozen=True)
class Equation:
    """a x + b = c with 1 <= a <= 9 and b of either sign."""

    a: int
    b: int
    c: int
    letter: str = "x"

    @property
    def text(self) -> str:
        """The equation in its plain form, 3x+7=22."""
        return f"{self.a if self.a > 1 else ''}{self.letter}{f'{self.b:+d}' if self.b else ''}={self.c}"

    @property
    def answer(self) -> str:
        """The solution."""
        return str((self.c - self.b) // self.a)


@dataclass(frozen=True)
class Problem:
    """A question in words, and its task; `task` is None where the model should say that it cannot answer."""

    kind: str
    language: str
    question: str
    task: Expression | Comparison | Equation | None
    answer: str


def held_out(key: str) -> bool:
    """Return whether the problem with this key is kept for evaluation (about one in ten)."""
    return zlib.crc32(key.encode()) % 10 == 0


def key(task: Expression | Comparison | Equation) -> str:
    """Return a key that is equal for equal problems: 5+3 is 3+5, and "9.11 or 9.9" is "9.9 or 9.11"."""
    if isinstance(task, Comparison):
        return " ".join(sorted((task.first, task.second)))
    if isinstance(task, Equation):
        return f"{task.a}x{task.b:+d}={task.c}"
    if len(task.tokens) == 3 and task.tokens[1] != "-":
        return str(task.tokens[1]).join(map(str, sorted(map(int, task.tokens[::2]))))
    return task.text


def _number(rng: random.Random) -> int:
    """Return a number from 0 to 999: 20 % have one digit, 40 % two and 40 % three."""
    low, high = rng.choices([(0, 9), (10, 99), (100, 999)], [2, 4, 4])[0]
    return rng.randint(low, high)


def _product(rng: random.Random) -> list[int | str]:
    pair = [
        rng.randint(2, 99) if rng.random() < 0.85 else rng.randint(0, 9),
        rng.randint(2, 9) if rng.random() < 0.95 else rng.randint(0, 1),
    ]
    if rng.random() < 0.3:
        pair.reverse()
    return [pair[0], "×", pair[1]]


def _bracket(rng: random.Random) -> list[int | str]:
    """Return (a+b) or (a-b), with a value from 1 to 99."""
    if rng.random() < 0.5:
        value = rng.randint(4, 99)
        part = rng.randint(1, value - 1)
        return ["(", part, "+", value - part, ")"]
    a = rng.randint(3, 99)
    return ["(", a, "-", rng.randint(1, a - 1), ")"]


def expression(rng: random.Random, operations: int) -> Expression:
    """Return an expression of 1 to 3 operations: numbers up to 999, products of a two-digit and a one-digit number."""
    if operations > 1 and rng.random() < 0.15:
        start: list[int | str] = [*_bracket(rng), "×", rng.randint(2, 9)]
        if rng.random() < 0.4:
            start = [rng.randint(2, 9), "×", *_bracket(rng)]
        if rng.random() < 0.25:
            start = [_number(rng), rng.choice("+-"), *_bracket(rng)]
        left = operations - 2
    elif rng.random() < 0.4:
        start, left = _product(rng), operations - 1
    else:
        start, left = [_number(rng)], operations
    while left:
        sign = rng.choice("+-")
        if left > 1 and rng.random() < 0.4:
            start += [sign, *_product(rng)]
            left -= 2
        else:
            start += [sign, _number(rng)]
            left -= 1
    made = Expression(tuple(start))
    return made if rng.random() < 0.15 or _stays_positive(made) else expression(rng, operations)


def _stays_positive(expression: Expression) -> bool:
    while operation := expression.operation():
        if operation.value < 0:
            return False
        expression = expression.after(operation.value)
    return True


def comparison(rng: random.Random) -> Comparison:
    """Return two different numbers, mostly with the same whole part and different lengths after the point."""
    while True:
        whole = rng.randint(0, 99)
        others = [whole, whole] if rng.random() < 0.7 else [whole, rng.randint(0, 99)]
        places = [0, 0] if rng.random() < 0.1 else [rng.choice([1, 1, 2, 2, 3, 0]) for _ in others]
        first, second = (
            f"{w}.{rng.randrange(10**p):0{p}d}" if p else str(w if p or rng.random() < 0.5 else rng.randint(0, 999))
            for w, p in zip(others, places, strict=True)
        )
        if float(first) != float(second):
            return Comparison(first, second, rng.random() < 0.65)


def equation(rng: random.Random) -> Equation:
    """Return ax + b = c: a to 9, b to 90 (of either sign), x from 1 to 60."""
    a, b, x = rng.randint(1, 9), rng.randint(0 if rng.random() < 0.1 else 1, 90), rng.randint(1, 60)
    if rng.random() < 0.3 and a * x >= b:
        b = -b
    if a == 1 and b == 0:
        return equation(rng)
    return Equation(a, b, a * x + b, rng.choice("xxxxxyn"))


def draw(rng: random.Random, kind: str, evaluation: bool, language: str | None = None) -> Problem:
    """Return a problem of a kind: a held-out one where it is for `evaluation`, else one of the others."""
    language = language or rng.choices(["en", "zh"], [6, 4])[0]
    while True:
        problem = _phrase(rng, kind, language)
        assert problem.task is not None
        if held_out(key(problem.task)) == evaluation:
            return problem


def draw_unknown(rng: random.Random) -> Problem:
    """Return a question that the model must turn down: not arithmetic, or arithmetic that it has not learned."""
    language = rng.choices(["en", "zh"], [6, 4])[0]
    return Problem("unknown", language, unknown_question(rng, language), None, rng.choice(REFUSE[language]))


def _phrase(rng: random.Random, kind: str, language: str) -> Problem:
    task: Expression | Comparison | Equation
    if kind == "comparison":
        task = comparison(rng)
        question = rng.choice(COMPARE[language][task.larger]).format(a=task.first, b=task.second)
        return Problem(kind, language, question, task, task.answer)
    if kind == "equation":
        task = equation(rng)
        question = rng.choice(EQUATION[language]).format(e=_spoken_equation(rng, task), x=task.letter)
        return Problem(kind, language, question, task, task.answer)
    if kind == "word":
        question, tokens = rng.choice(WORD[language])(rng)
        task = Expression(tokens)
        return Problem(kind, language, question, task, str(task.value))
    task = expression(rng, KINDS.index(kind) + 1)
    question = rng.choice(ASK[language]).format(e=_spoken(rng, task, language))
    return Problem(kind, language, question, task, str(task.value))


def _spoken(rng: random.Random, task: Expression, language: str) -> str:
    """Return an expression with the signs, words and spaces that people use."""
    style = rng.choices(OPERATORS[language], [weight for weight, _ in OPERATORS[language]])[0][1]
    if "(" in task.tokens and not style["spaced"]:
        style = OPERATORS[language][0][1]
    space = " " if style["spaced"] or rng.random() < 0.6 else ""
    parts = [str(style.get(t, t)) for t in map(str, task.tokens)]
    return space.join(parts).replace("( ", "(").replace(" )", ")")


def _spoken_equation(rng: random.Random, task: Equation) -> str:
    space = rng.choice([" ", " ", ""])
    times = rng.choice(["", "", "", "*", "×"]) if task.a > 1 else ""
    product = f"{task.a if task.a > 1 else ''}{times}{task.letter}"
    sign = "+" if task.b >= 0 else rng.choice("--−")
    left = f"{product}{space}{sign}{space}{abs(task.b)}" if task.b else product
    if task.b > 0 and rng.random() < 0.15:
        left = f"{task.b}{space}+{space}{product}"
    return f"{task.c}{space}={space}{left}" if rng.random() < 0.08 else f"{left}{space}={space}{task.c}"


def dressed(rng: random.Random, question: str) -> str:
    """Return a question as it reaches the model: often inside the prompt of Satori's model card."""
    return CARD.format(question=question) if rng.random() < 0.4 else question
