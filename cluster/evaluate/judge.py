r"""Judging answers: whether the boxes of two replies have the same answer.

math-verify compares mathematics (github.com/huggingface/Math-Verify, 0.9.0): it parses both sides with SymPy. Each other kind has
rules of its own, which first strip the LaTeX that models put around words (\text{...}, $...$).
"""

import ast
import functools
import re
import threading
import warnings
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import math_verify

LABELS = {
    word: label
    for label, words in {"true": "true proved yes", "false": "false disproved no", "uncertain": "uncertain unknown"}.items()
    for word in words.split()
}
"""The labels of FOLIO, BoardgameQA and StrategyQA; those with the same value mean the same."""
WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|texttt|mathrm|mathbf|mathtt|operatorname)\s*\{(.*)\}", re.DOTALL)
NUMBER = re.compile(r"[-+]?(\d+|\d{1,3}(,\d{3})+)(\.\d+)?")
TIMEOUT_S = 5


def right(kind: str, gold: str, box: str | None) -> bool:
    """Return whether a reply with this box is right. Without a box it is wrong, except for a question to turn down."""
    return box is None if kind == "refuse" else box is not None and KINDS[kind](gold, box)


def same(kind: str, first: str | None, second: str | None) -> bool:
    """Return whether two replies give the same answer. None, no box, equals only None."""
    if first is None or second is None or kind == "refuse":
        return (first is None) == (second is None)
    return first == second or KINDS[kind](first, second)


def equal_math(gold: str, box: str) -> bool:
    """Return whether two expressions are mathematically equal. Text that cannot be parsed is compared as text."""
    return bool(math_verify.verify(list(_expression(gold)), list(_expression(box)), timeout_seconds=_timeout_s()))


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


def plain(box: str) -> str:
    r"""Return the text in a box without the LaTeX around it: \text{...} and the like, dollars, escapes before signs."""
    text = box.strip().strip("`$").strip()
    while match := WRAPPED.fullmatch(text):
        text = match[1].strip()
    return " ".join(re.sub(r"\\([{}_#%&$])", r"\1", text).split())


def _timeout_s() -> int | None:
    """Return math-verify's limit for one comparison. It works by SIGALRM, which only the main thread may set."""
    return TIMEOUT_S if threading.current_thread() is threading.main_thread() else None


@functools.lru_cache(maxsize=4096)
def _expression(text: str) -> tuple[Any, ...]:
    return tuple(math_verify.parse(f"\\boxed{{{text.strip().strip('$')}}}", parsing_timeout=_timeout_s()))


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
