"""Numbers that say more than their digits: with a base, a percent sign, a unit, a modulus; ratios, ordinals, millions."""

import math
import re
from fractions import Fraction

from mpmath import mp

from deployments.reasoning.answers import formula, units
from deployments.reasoning.answers.formula import Key
from deployments.reasoning.answers.parts import Inner, node_of, number, repeated, split, value_of

BASES = dict(zip("two three four five six seven eight nine ten eleven twelve".split(), range(2, 13), strict=True)) | {
    "sixteen": 16,
    "bin": 2,
    "oct": 8,
    "dec": 10,
    "hex": 16,
}


def base_of(text: str) -> tuple[str, int] | None:
    """Return the digits and the base of a number that has one."""
    text = re.sub(r"^\((-?[0-9A-Za-z]+)\)(?=\s*_)", r"\1", re.sub(r"⟦(\w)⟧(?=\w*\s*_)", r"\1", text))
    match = re.fullmatch(r"(-?[0-9A-Za-z. ]+?)\s*_\s*[{(]*\s*⟦?\s*(?:base\s*)?⟧?\s*⟦?(\d+|[a-z]+)\s*⟧?\s*[})]*", text)
    match = match or re.fullmatch(r"(-?[0-9A-Za-z.]+)\s*[(⟦]*\s*(?:in )?base[ -]+\{?⟦?(\d+|[a-z]+)⟧?\}?\s*[)⟧]*", text)
    if prefix := re.fullmatch(r"0([xob])([0-9A-Fa-f]+)", text):
        digits, base = prefix[2], {"x": 16, "o": 8, "b": 2}[prefix[1]]
    elif match:
        base = int(match[2]) if match[2].isdigit() and len(match[2]) < 3 else BASES.get(match[2], 0)
        digits = match[1].replace(" ", "")
    else:
        return None
    if not 2 <= base <= 36 or not (digits.lstrip("-")[:1].isdigit() or (base > 10 and digits.isupper())):
        return None
    valid = "0123456789abcdefghijklmnopqrstuvwxyz"[:base] + ".-"
    digits = digits.lower()
    return (digits, base) if digits and all(digit in valid for digit in digits) else None


def based(text: str, inner: Inner) -> Key | None:
    """Numbers with a base; with base ten they are numbers."""
    found = base_of(text)
    if found is None:
        return None
    digits, base = found
    if base == 10:
        return inner(digits)
    whole, point, rest = digits.lstrip("-").partition(".")
    rest = rest.rstrip("0")
    return ("base", base, ("-" if digits[0] == "-" else "") + (whole.lstrip("0") or "0") + (point + rest if rest else ""))


def modulo(text: str, inner: Inner) -> Key | None:
    r"""Residues: 3 mod 7, 3 \pmod 7."""
    text = re.sub(r"\(\s*mod ([^()]*)\)|⟦\(?mod⟧", lambda match: f" mod {match[1] or ''}", text)
    match = re.fullmatch(r"(.+?) mod (.+)", re.sub(r"\s+", " ", text).strip())
    if not match:
        return None
    values = value_of(match[1]), value_of(match[2].strip("{}() "))
    if all(isinstance(value, Fraction) and value.denominator == 1 for value in values) and values[1]:
        return ("modulo", str(values[0] % values[1]), str(values[1]))
    return None


def ratio(text: str, inner: Inner) -> Key | None:
    """Ratios in lowest terms; those that look like a time as they are."""
    parts, signs = split(text, re.compile(r":"))
    if not 1 <= len(signs) <= 3 or not all(parts):
        return None
    values = [value_of(part) for part in parts]
    if any(value is None or not isinstance(value, Fraction) for value in values):
        return None
    if re.fullmatch(r"(?:[01]?\d|2[0-4]):[0-5]\d(?::[0-5]\d)?", text.replace(" ", "")):
        return ("ratio", *(str(value) for value in values))  # it may be a time
    first = next((value for value in values if value), None)
    if first is None:
        return None
    ratio = [value / abs(first) for value in values]
    shared = 1
    for value in ratio:
        shared *= value.denominator
    whole = [int(value * shared) for value in ratio]
    return ("ratio", *(str(value // math.gcd(*whole)) for value in whole))


def open_decimal(text: str, inner: Inner) -> Key | None:
    """3.14159…, which is no exact number; one whose last digits repeat is a fraction already."""
    text = repeated(text)
    return ("digits", text[:-1]) if re.fullmatch(r"-?\d+\.\d+…", text) else None


def ordinal(text: str, inner: Inner) -> Key | None:
    """Ordinals, as the numbers: 5th."""
    match = re.fullmatch(r"(\d[\d,]*)\s*\^?\s*\{?\s*⟦?\s*(?:st|nd|rd|th)\s*⟧?\s*\}?", text)
    return inner(match[1]) if match else None


def in_percent(text: str) -> str | None:
    """Return a percentage without its sign; None for other texts."""
    match = re.fullmatch(
        r"(.*[^\s⟦])\s*(?:%|⟦?\s*(?:percent|per cent|pct\.?|percentage points?)\s*⟧?)(?:\s*⟦?\s*of\b.*)?", text, re.IGNORECASE
    )
    return match[1] if match else None


def percent(text: str, inner: Inner) -> Key | None:
    """Percentages, as fractions."""
    head = in_percent(text)
    if head is None:
        return None
    value = value_of(head.strip("{} "))
    if value is None:
        node = node_of(head)
        return None if node is None else formula.key(("percent", node))
    return (
        None
        if not isinstance(value, Fraction) and mp.isinf(value)
        else number(formula.rational(formula.divide(value, Fraction(100))))
    )


def multiple(text: str, inner: Inner) -> Key | None:
    """Thousands, millions, dozens, and what is counted by them."""
    match = re.fullmatch(rf"([$€£¥₹]?)\s*([\d.,\s]+?)\s*⟦?\s*({'|'.join(units.MULTIPLES)})s?\b\s*⟧?\s*(.*)", text, re.IGNORECASE)
    if not match:
        return None
    value = value_of(match[2])
    rest = match[4].strip()
    if value is None or (rest and units.split(f"5 {rest}", counted=True) is None):
        return None
    return number(value * units.MULTIPLES[match[3].lower()])


def compound(text: str, inner: Inner) -> Key | None:
    """Quantities in several units of one dimension, the largest first, as a number of that unit: 2 hours 30 minutes."""
    parts = re.split(r"(?<=[^\W\d_]|⟧|\.)[\s,]+(?:and\s+)?(?=\d)", text)
    if not 2 <= len(parts) <= 4:
        return None
    value, first, last = Fraction(0), None, math.inf
    for part in parts:
        found = units.split(part, counted=False)
        factor = found and (units.FACTORS.get(found.unit) or units.FACTORS.get(found.unit.lower()))
        amount = value_of(found.head) if found else None
        if not factor or not isinstance(amount, Fraction) or amount < 0:
            return None
        first = first or factor
        if factor[0] != first[0] or factor[1] >= last or (value and amount * Fraction(str(factor[1])) >= Fraction(str(last))):
            return None
        value, last = value + amount * Fraction(str(factor[1])), factor[1]
    return None if first is None else number(value / Fraction(str(first[1])))


def remainder(text: str, inner: Inner) -> Key | None:
    """Quotients with a remainder: 7 R 2, 7 remainder 2."""
    match = re.fullmatch(r"(\d+)\s*,?\s*⟦?\s*(?:with )?(?:a )?(?:[Rr]|[Rr]em(?:ainder)?\.?|余)(?: of)?\s*⟧?\s*(\d+)", text)
    return ("remainder", match[1].lstrip("0") or "0", match[2].lstrip("0") or "0") if match else None


def unit(text: str, inner: Inner) -> Key | None:
    """What has a unit, without it."""
    found = units.split(text, counted=inner.depth == 0)
    if not found or not found.head:
        return None
    if found.unit in units.CURRENCY and re.fullmatch(r"\d{1,3}(?:\.\d{3})*,\d{2}", found.head):
        return inner(found.head.replace(".", "").replace(",", "."))  # 5,00 €
    key = inner(found.head)
    return None if key[0] == "text" and re.search(r"\d", found.head) else key  # words whose last one looks like a unit
