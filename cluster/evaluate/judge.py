r"""Judging answers: whether a reply's box has the right answer, and whether two replies have the same one.

Mathematics has the equality of votes (`deployments.reasoning.equality`), in a process with limits. Each other kind has rules of its
own, which first strip the LaTeX that models put around words (\text{...}, $...$). What is the same has the same key, so it is an
equivalence; what is right may be more lenient.
"""

import ast
import atexit
import re
import warnings
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

from deployments.reasoning.answers.comparer import Process, Undecided
from deployments.reasoning.answers.written import text_key

LABELS = {
    word: label
    for label, words in {"true": "true proved yes", "false": "false disproved no", "uncertain": "uncertain unknown"}.items()
    for word in words.split()
}
"""The labels of FOLIO, BoardgameQA and StrategyQA; those with the same value mean the same."""
WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|texttt|mathrm|mathbf|mathtt|operatorname)\s*\{(.*)\}", re.DOTALL)
NUMBER = re.compile(r"[-+]?(\d+|\d{1,3}(,\d{3})+)(\.\d+)?")
COMPARER = Process()
atexit.register(COMPARER.close)


def right(kind: str, gold: str, box: str | None) -> bool:
    """Return whether a reply with this box is right. Without a box it is wrong, except for a question to turn down."""
    return box is None if kind == "refuse" else box is not None and KINDS[kind](gold, box)


def same(kind: str, first: str | None, second: str | None) -> bool:
    """Return whether two replies give the same answer. None, no box, equals only None."""
    return first == second or key(kind, first) == key(kind, second)


def key(kind: str, box: str | None) -> str | None:
    """Return what replies with the same answer share, and others do not."""
    return None if box is None else KEYS[kind](box)


def equal_math(gold: str, box: str) -> bool:
    """Return whether an expression is right, as `deployments.reasoning.equality.marks` says; what takes too long, as text."""
    try:
        return bool(COMPARER.ask("marks", box, gold))
    except Undecided:
        return text_key(gold) == text_key(box)


def equal_choice(gold: str, box: str) -> bool:
    """Return whether two answers name the same option: B, (b), "B. 12 m"."""
    return _letter(box) is not None and _letter(box) == _letter(gold)


def equal_label(gold: str, box: str) -> bool:
    """Return whether two labels mean the same. A word that is no label equals none."""
    return _label(box) is not None and _label(box) == _label(gold)


def equal_literal(gold: str, box: str) -> bool:
    """Return whether two Python literals have equal values, as CRUXEval's own `assert` compares them."""
    values = _literal(gold), _literal(box)
    return None not in values and values[0] == values[1]


def equal_table(gold: str, box: str) -> bool:
    """Return whether two answers from a table agree: numbers at the precision of the gold one, other text whatever its case.

    Follows TableBench's compute_em (github.com/TableBench/TableBench, metrics/custom_em_metric.py), except that all parts must
    agree, and that percent signs and commas for thousands make no difference.
    """
    gold, box = plain(gold).casefold(), plain(box).casefold()
    if _cell(gold, box):
        return True
    golds, boxes = re.split(r",\s*", gold), re.split(r",\s*", box)
    return len(golds) == len(boxes) > 1 and all(map(_cell, golds, boxes))


KINDS: dict[str, Callable[[str, str], bool]] = {
    "math": equal_math,
    "choice": equal_choice,
    "label": equal_label,
    "literal": equal_literal,
    "table": equal_table,
    "refuse": lambda gold, box: False,
}
"""How answers of each kind are compared: the gold one, the model's. Nothing in a box is right for a question to turn down."""


def key_math(box: str) -> str:
    """Return the key of an expression; that of its text where it takes too long."""
    try:
        return str(COMPARER.ask("key", box))
    except Undecided:
        return text_key(box)


def key_literal(box: str) -> str:
    """Return the key of a Python literal: equal for equal values (1, 1.0 and True; sets and dicts in any order)."""
    value = _literal(box)
    return plain(box) if value is None else _written(value[0])


def key_table(box: str) -> str:
    """Return the key of an answer from a table: its numbers by value, other text whatever its case."""
    text = plain(box).casefold()
    cells = [text] if _number(text) is not None else re.split(r",\s*", text)
    return ", ".join(cell if (number := _number(cell)) is None else str(Fraction(number)) for cell in cells)


KEYS: dict[str, Callable[[str], str]] = {
    "math": key_math,
    "choice": lambda box: _letter(box) or plain(box),
    "label": lambda box: _label(box) or plain(box),
    "literal": key_literal,
    "table": key_table,
    "refuse": lambda box: "any answer",
}
"""What the same answers of each kind share."""


def plain(box: str) -> str:
    r"""Return the text in a box without the LaTeX around it: \text{...} and the like, dollars, escapes before signs."""
    text = box.strip().strip("`$").strip()
    while match := WRAPPED.fullmatch(text):
        text = match[1].strip()
    return " ".join(re.sub(r"\\([{}_#%&$])", r"\1", text).split())


def _letter(box: str) -> str | None:
    match = re.fullmatch(r"\(?([A-Za-z])(?:\)?|\)?[.:),].*)", plain(box), re.DOTALL)
    return match[1].upper() if match else None


def _label(box: str) -> str | None:
    return LABELS.get(plain(box.rstrip(". ")).strip(".'\"").casefold())


def _literal(box: str) -> tuple[Any] | None:
    """Return the value of a literal in a tuple; None where it is none, as written or without LaTeX."""
    for text in (box.strip(), plain(box)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes like "\(" in what a model wrote
            try:
                return (ast.literal_eval(text),)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                continue
    return None


def _written(value: Any) -> str:
    match value:
        case bool() | int():
            return str(int(value))
        case float() if value.is_integer():
            return str(int(value))
        case list() | tuple():
            return f"{type(value).__name__}({', '.join(map(_written, value))})"
        case set():
            return f"set({', '.join(sorted(map(_written, value)))})"
        case dict():
            return f"dict({', '.join(sorted(f'{_written(name)}: {_written(item)}' for name, item in value.items()))})"
    return repr(value)


def _cell(gold: str, box: str) -> bool:
    numbers = _number(gold), _number(box)
    if numbers[0] is None or numbers[1] is None:
        return gold == box
    exponent = numbers[0].as_tuple().exponent
    assert isinstance(exponent, int)  # it is finite
    return abs(numbers[0] - numbers[1]) * 2 <= Decimal(1).scaleb(exponent)


def _number(text: str) -> Decimal | None:
    text = text.removesuffix("%").strip().removeprefix("$")
    return Decimal(text.replace(",", "")) if NUMBER.fullmatch(text) else None
