r"""Whether two answers say the same: one equality for votes and marks.

`same` is an equivalence by construction: answers are the same when their keys are equal (`deployments.reasoning.answers.kinds`).
`marks` compares with a gold answer, and forgives what is written down there. What each kind of answer equals is in docs/reading.md.

Some answers take long to read, and a few for ever: `deployments.reasoning.answers.comparer` does this in a process with limits.
"""

from functools import lru_cache

from deployments.reasoning.answers import kinds, numerals, symbolic, units
from deployments.reasoning.answers.parts import value_of
from deployments.reasoning.answers.text import clean
from deployments.reasoning.answers.written import short, text_key

LONGEST = 2000
"""Answers of more characters are compared as text."""


def load() -> None:
    """Import what reading some answers needs: that takes seconds."""
    symbolic.load()


def same(first: str, second: str) -> bool:
    """Return whether two answers are equal."""
    return first == second or key(first) == key(second)


@lru_cache(maxsize=4096)
def key(answer: str) -> str:
    """Return what equal answers share, and others do not."""
    return text_key(answer) if len(answer) > LONGEST else short(kinds.read(answer))


def marks(answer: str, gold: str) -> bool:
    """Return whether an answer is right, given the gold one: it is the same, or differs in one of these alone.

    - The sign of a percentage is missing on one side: 50 for 50%.
    - The base is missing on one side: 101 for 101_2.
    - A single letter is of another case: b for B.
    - A list without brackets stands for one with them, in any order: 1, 2 for (2, 1).

    Units that both have, and that are converted to each other, must agree: 5 m is wrong for 5 km, 5000 m is right.
    """
    if len(answer) > LONGEST or len(gold) > LONGEST:
        return answer.strip() == gold.strip()
    texts = clean(answer), clean(gold)
    if (converted := _by_units(*texts)) is not None:
        return converted
    if same(answer, gold):
        return True
    return any(forgives(*texts) for forgives in (_percent, _base, _letter, _list))


def _by_units(answer: str, gold: str) -> bool | None:
    """Return whether answers in units of one dimension are the same length, mass, time, ...; None for others."""
    found = [units.split(text, counted=False) for text in (answer, gold)]
    if found[0] is None or found[1] is None:
        return None
    factors = [units.FACTORS.get(one.unit) or units.FACTORS.get(one.unit.lower()) for one in found if one]
    values = [value_of(one.head) for one in found if one]
    if factors[0] is None or factors[1] is None or None in values or factors[0][0] != factors[1][0] or factors[0] == factors[1]:
        return None
    scaled = [float(value) * factor[1] for value, factor in zip(values, factors, strict=True) if factor]
    return abs(scaled[0] - scaled[1]) <= 1e-9 * max(map(abs, scaled))


def _percent(answer: str, gold: str) -> bool:
    heads = [numerals.in_percent(text) for text in (answer, gold)]
    if (heads[0] is None) == (heads[1] is None):
        return False
    return kinds.key_of(heads[0] or answer) == kinds.key_of(heads[1] or gold)


def _base(answer: str, gold: str) -> bool:
    bases = [numerals.base_of(text) for text in (answer, gold)]
    if (bases[0] is None) == (bases[1] is None):
        return False
    digits = [based[0] if based else text.lower() for based, text in zip(bases, (answer, gold), strict=True)]
    return digits[0].lstrip("0") == digits[1].lstrip("0")


def _letter(answer: str, gold: str) -> bool:
    letters = [text.strip("⟦⟧(). ") for text in (answer, gold)]
    return all(len(letter) == 1 and letter.isalpha() for letter in letters) and letters[0].lower() == letters[1].lower()


def _list(answer: str, gold: str) -> bool:
    found = [kinds.listed(text) for text in (answer, gold)]
    if found[0] is None or found[1] is None or all(text[:1] in "([{⟪⟨" for text in (answer, gold)):
        return False
    return sorted(found[0], key=repr) == sorted(found[1], key=repr)
