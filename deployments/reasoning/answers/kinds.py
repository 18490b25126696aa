r"""Which kind of answer a text is (a number, a list, an interval, a date, ...), and the key of it: equal answers have equal keys.

`key_of` asks the rules of `RULES` in turn; the first that knows the kind makes the key. Parts of answers, as those of a list, are
answers themselves. What no rule knows is text.
"""

import json
import re
from collections.abc import Callable
from datetime import date
from fractions import Fraction

from deployments.reasoning.answers import grammar, numerals, regions, relations, symbolic
from deployments.reasoning.answers.formula import Key, UndefinedError
from deployments.reasoning.answers.formula import key as formula_key
from deployments.reasoning.answers.grammar import UnreadError
from deployments.reasoning.answers.parts import (
    Inner,
    closed,
    comma_separated,
    joined,
    node_of,
    number,
    set_of,
    several,
    split,
    value_of,
)
from deployments.reasoning.answers.relations import ALL_REALS, EMPTY_SET, LABEL, NAME, RELATIONS, bracketed_region
from deployments.reasoning.answers.text import clean

DEPTH = 12
"""How deep answers may be nested in answers."""
MONTHS = {
    name: number
    for number, names in enumerate(
        "january jan|february feb|march mar|april apr|may|june jun|july jul|august aug|september sep sept|october oct|november nov"
        "|december dec".split("|"),
        1,
    )
    for name in names.split()
}
NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)")
INTRODUCTION = re.compile(
    r"^⟦?\s*(?:the )?(?:final |correct )?answer(?: is)?\s*[:=]?\s*⟧?\s*(?=\S)"
    r"|^(?:所以|因此|故|综上)?[,:]?\s*(?:最终|最后|正确)?的?(?:答案|结果)\s*(?:是|为|应为)?\s*[:=]?\s*(?=\S)"
    r"|^(?:approximately|approx\.?|about|roughly|exactly)\s+(?=[\d\\-])|^[≈~=]\s*",
    re.IGNORECASE,
)


def read(answer: str) -> Key:
    """Return the key of an answer as a model wrote it."""
    return key_of(clean(answer))


def key_of(text: str, depth: int = 0) -> Key:
    """Return the key of a cleaned text."""
    text = _plain_words(text).strip()
    inner = Inner(key_of, depth)
    if depth <= DEPTH:
        try:
            for rule in RULES:
                found = rule(text, inner)
                if found is not None:
                    return found
        except (ArithmeticError, ValueError, RecursionError):
            pass  # such as TooLargeError: it is compared as text
    return as_text(text)


def as_text(text: str) -> Key:
    """Return the key of words: whatever their case, spaces and articles."""
    folded = re.sub(r"[⟦⟧\"{}]|\\newline", " ", text).casefold()
    folded = re.sub(r"\s*([^\w\s])\s*", r"\1", " ".join(folded.split()))
    return ("text", re.sub(r"^(?:a|an|the) (?=\w)", "", folded).strip(".,;:!? "))


def _plain_words(text: str) -> str:
    return re.sub(r"⟦\s*(and|or|,|;|but|nor)\s*⟧", r" \1 ", text)


def _nothing(text: str, inner: Inner) -> Key | None:
    return ("text", "") if not text else None


def _number_alone(text: str, inner: Inner) -> Key | None:
    if not text[-1:].isdigit():
        return None
    text = joined(text, True)
    return ("number", str(Fraction(text))) if NUMBER.fullmatch(text) and len(text) < grammar.EXACT_BITS // 4 else None


def _json(text: str, inner: Inner) -> Key | None:
    """Objects of JSON, whatever the order of their names; other values of JSON are the same as without it."""
    text = text.replace("⟪", "{").replace("⟫", "}")
    if not text.startswith(("{", "[")) or '"' not in text:
        return None
    try:
        return ("json", json.dumps(json.loads(text, parse_int=Fraction, parse_float=Fraction), sort_keys=True, default=str))
    except (ValueError, RecursionError):
        return None


def _words_alone(text: str, inner: Inner) -> Key | None:
    if text.startswith("⟦") and text.endswith("⟧") and text.count("⟦") == 1:
        return inner(clean(text[1:-1]))
    return None


def _introduced(text: str, inner: Inner) -> Key | None:
    rest = INTRODUCTION.sub("", text, count=1)
    return inner(clean(rest)) if rest != text and rest else None


def _whole_sets(text: str, inner: Inner) -> Key | None:
    if EMPTY_SET.fullmatch(text):
        return ("set",)
    return regions.key(regions.REALS) if ALL_REALS.fullmatch(text.strip("⟦⟧")) else None


def _date(text: str, inner: Inner) -> Key | None:
    plain = re.sub(r"[⟦⟧]|,|\bof\b|\bthe\b", " ", text).casefold()
    plain = " ".join(re.sub(r"(\d)\s*\^?\{?\s*(?:st|nd|rd|th)\b\}?", r"\1", plain).split())
    if match := re.fullmatch(r"(\d{4})-(\d{2})-(\d{2})", plain):
        return _day(int(match[1]), int(match[2]), int(match[3]))
    words = [word.rstrip(".") for word in re.sub(r"^(?:mon|tues|wednes|thurs|fri|satur|sun)day ", "", plain).split()]
    named = [MONTHS[word] for word in words if word in MONTHS]
    numbers = [int(word) for word in words if word.isdigit()]
    if len(named) != 1 or len(named) + len(numbers) != len(words) or not 1 <= len(numbers) <= 2:
        return None
    if len(numbers) == 1:
        return _day(None, named[0], numbers[0]) if numbers[0] <= 31 else ("date", numbers[0], named[0], None)
    if words[0].isdigit() and numbers[0] > 31:
        numbers.reverse()
    return _day(numbers[1], named[0], numbers[0])


def _day(year: int | None, month: int, day: int) -> Key | None:
    try:
        date(2000 if year is None else year, month, day)
    except ValueError:
        return None
    return ("date", year, month, day)


def _time(text: str, inner: Inner) -> Key | None:
    if match := re.fullmatch(r"(1[3-9]|2[0-3]):([0-5]\d)(?::([0-5]\d))?(?:\s*⟦?\s*(?:hours|hrs|h)\s*⟧?)?", text):
        return ("time", int(match[1]), int(match[2]), int(match[3] or 0))
    match = re.fullmatch(r"(\d{1,2})(?::(\d{2}))?(?::(\d{2}))?\s*⟦?\s*([ap])\.?\s?m\.?\s*⟧?", text, re.IGNORECASE)
    if match:
        hour, minute, second = int(match[1]), int(match[2] or 0), int(match[3] or 0)
        if 1 <= hour <= 12 and minute < 60 and second < 60:
            return ("time", hour % 12 + 12 * (match[4].lower() == "p"), minute, second)
    return None


def _option(text: str, inner: Inner) -> Key | None:
    """Letters of options: A), Option A, choice (B)."""
    match = re.fullmatch(r"⟦?\s*(?:(?:[Oo]ption|[Cc]hoice)s?\s+\(?([A-H])\)?|([A-H])\s*\))\s*⟧?", text)
    return inner(match[1] or match[2]) if match else None


def _several(text: str, inner: Inner) -> Key | None:
    text = joined(text, True)
    parts, signs = split(text, re.compile(r",\s*(?:and|or)\b(?!\w)|[,;∧∨]|(?<!\w)(?:and|or)(?!\w)|(?<=\w) & (?=\w)", re.IGNORECASE))
    if len(parts) == 1 or not all(parts):
        return None
    if any("…" in part for part in parts):
        return ("sequence…", *(("…",) if part == "…" else inner(part) for part in parts))
    if (region := relations.inequalities(parts, signs)) is not None:
        return regions.key(region)
    if "∧" in signs or "∨" in signs:
        return (signs[0], *sorted(map(inner, parts), key=repr)) if len(set(signs)) == 1 else None
    if (limited := relations.by_variable(parts)) is not None:
        return limited
    if (assigned := relations.assigned(parts, inner)) is not None:
        return assigned
    if _same_label(parts):
        parts = [part.partition("=")[2] if at == 0 else part for at, part in enumerate(parts)]
    return several([inner(part) for part in parts])


def _same_label(parts: list[str]) -> bool:
    """Return whether only the first part has a label: x = 1, 2."""
    label, sign, _ = parts[0].partition("=")
    return bool(sign) and LABEL.fullmatch(label.strip()) is not None and not any(set(RELATIONS) & set(part) for part in parts[1:])


def _set_operations(text: str, inner: Inner) -> Key | None:
    if not any(sign in text for sign in "∪∩∖"):
        return None
    region = relations.combined(text)
    return None if region is None else regions.key(region)


def _outward(text: str, inner: Inner) -> Key | None:
    """Intervals whose open ends are brackets that face outward: ]1, 2[."""
    if re.fullmatch(r"\][^\[\]()]+[,;][^\[\]()]+[\[\]]|\[[^\[\]()]+[,;][^\[\]()]+\[", text):
        region = bracketed_region(text)
        return None if region is None else regions.key(region)
    return None


def _brackets(text: str, inner: Inner) -> Key | None:
    if len(text) < 2:
        return None
    if text[0] not in "([{⟪⟨" or text[-1] not in ")]}⟫⟩" or not closed(text):
        return None
    inside = text[1:-1].strip()
    if text[0] in "⟪{" and (builder := re.fullmatch(rf"({NAME.pattern})\s*(?:∈\s*ℝ\s*)?[|:]\s*(.+)", inside)):
        return inner(re.sub(r"(?:,|and)?\s*\w\s*∈\s*ℝ\s*,?", "", builder[2]))
    if text[0] == "{" and NUMBER.fullmatch(joined(inside, True)):
        return inner(inside)
    parts = comma_separated(inside)
    if not all(parts):
        return None
    if any("…" in part for part in parts):
        keys: list[Key] = [("…",) if part == "…" else inner(part) for part in parts]
        return (f"{text[0]}…", *keys)
    keys = [inner(part) for part in parts]
    if text[0] == "⟪" and len(keys) == 1 and (inner.depth or keys[0][0] == "set"):
        return ("set", *keys)
    if text[0] in "⟪{":
        return set_of(keys)
    if text[0] == "⟨":
        return ("tuple", *keys)
    return _in_brackets(text, parts, keys, inner)


def _in_brackets(text: str, parts: list[str], keys: list[Key], inner: Inner) -> Key:
    if text[0] + text[-1] == "()":
        return keys[0] if len(keys) == 1 else ("tuple", *keys)
    if all(part.startswith("[") and closed(part) for part in parts) and text[0] == "[":
        rows = [tuple(inner(cell) for cell in comma_separated(part[1:-1])) for part in parts]
        if len({len(row) for row in rows}) == 1 and len(rows) > 1:
            return ("matrix", *rows)
    region = bracketed_region(text)
    if region is not None and len(keys) == 2:
        return regions.key(region)
    return ("sequence" if text[0] + text[-1] == "[]" else f"interval{text[0]}{text[-1]}", *keys)


def _matrix(text: str, inner: Inner) -> Key | None:
    factor = ""
    if scaled := re.fullmatch(r"([^&]*[^&\s*\[(])\s*\*?\s*(\\begin \{[pbB]?(?:small)?matrix\}.*)", text):
        factor, text = "-1" if scaled[1] == "-" else scaled[1], scaled[2]
        if node_of(factor) is None:
            return None
    match = re.fullmatch(r"\\begin \{([pbB]?(?:small)?matrix|array)\}\s*(?:\{[clr| ]*\})?(.*)\\end \{\1\}", text)
    outer = match is None and re.fullmatch(r"[\[(]\s*(\\begin \{(?:array|matrix|smallmatrix)\}.*\\end \{\w+\})\s*[\])]", text)
    if outer:
        return _matrix(outer[1].strip(), inner)
    if not match or "\\begin" in match[2]:
        return None
    rows = [row.split("&") for row in match[2].split("\\newline") if row.strip()]
    return ("matrix", *(tuple(inner(f"({factor})*({cell})" if factor else cell) for cell in row) for row in rows))


def _plus_minus(text: str, inner: Inner) -> Key | None:
    if "±" not in text and "∓" not in text:
        return None
    both = text.replace("±", "+").replace("∓", "-"), text.replace("±", "-").replace("∓", "+")
    return set_of([inner(one.strip().lstrip("+")) for one in both])


def _formula(text: str, inner: Inner) -> Key | None:
    value = value_of(text)
    if value is not None:
        return number(value)
    node = node_of(text)
    if node is None:
        return None
    try:
        return formula_key(node)
    except (UnreadError, UndefinedError):
        return None


def _by_math_verify(text: str, inner: Inner) -> Key | None:
    if "\\" not in text or re.search(r"⟦[^⟦⟧]{2,}⟧|[⟪⟫…ℤℕℚℂ]|\\begin \{(?:cases|aligned?)", text):
        return None
    latex = (
        text.replace("⟦", "{")
        .replace("⟧", "}")
        .replace("*", "\\cdot ")
        .replace("∞", "\\infty ")
        .replace("°", "^\\circ ")
        .replace("\\newline", "\\\\")
    )
    return symbolic.key(latex)


RULES: tuple[Callable[[str, Inner], Key | None], ...] = (
    _nothing,
    _number_alone,
    _json,
    _words_alone,
    _introduced,
    _whole_sets,
    _date,
    _time,
    _option,
    numerals.remainder,
    numerals.compound,
    _matrix,
    _outward,
    _several,
    relations.relation,
    _set_operations,
    _brackets,
    numerals.based,
    numerals.modulo,
    numerals.ratio,
    numerals.open_decimal,
    _plus_minus,
    numerals.ordinal,
    numerals.percent,
    numerals.multiple,
    numerals.unit,
    _formula,
    _by_math_verify,
)


def listed(text: str) -> list[Key] | None:
    """Return the keys of the parts of a list, with or without brackets; None for what is no list."""
    inside = text[1:-1] if text[:1] in "([{⟪⟨" and closed(text) else text
    parts = comma_separated(inside) if inside != text else split(joined(text, True), re.compile(r"[,;]|(?<!\w)(?:and|or)(?!\w)"))[0]
    return [key_of(part, 1) for part in parts] if len(parts) > 1 and all(parts) else None
