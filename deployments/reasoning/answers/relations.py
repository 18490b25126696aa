r"""Relations: equations, inequalities and membership, and the regions that they and intervals describe."""

import re
from fractions import Fraction
from typing import Any

from mpmath import mp

from deployments.reasoning.answers import formula, regions, units
from deployments.reasoning.answers.formula import Key, UndefinedError
from deployments.reasoning.answers.grammar import Node, UnreadError, names_of
from deployments.reasoning.answers.parts import Inner, comma_separated, node_of, scan, several, split, value_of
from deployments.reasoning.answers.regions import INFINITY, REALS, Interval, Region

RELATIONS = "=≠<>≤≥∈≈≡"
INEQUALITIES = {"<": (False, False), "≤": (False, True), ">": (True, False), "≥": (True, True)}
"""Sign -> whether the left side is the larger one, and whether it may be equal."""
NAME = re.compile(r"(?:[A-Za-z]|\\[A-Za-z]+ ?)(?:_\s*(?:\{[^{}]*\}|\w))?'*")
LABEL = re.compile(
    rf"(?:{NAME.pattern})(?:\s*\^\s*\{{\s*-1\s*\}})?(?:\s*\(\s*{NAME.pattern}(?:\s*,\s*{NAME.pattern})*\s*\))?"
    r"|\\frac \{d\w*\}\{d\w+\}"
)
TUPLE_OF_NAMES = re.compile(rf"\(\s*{NAME.pattern}(?:\s*,\s*{NAME.pattern})+\s*\)")
EMPTY_SET = re.compile(r"∅|⟪\s*⟫|⟦?(?:(?:the )?empty set|(?:there (?:is|are) )?no (?:real )?solutions?|无解)⟧?", re.IGNORECASE)
ALL_REALS = re.compile(r"ℝ|\(\s*-\s*∞\s*,\s*\+?\s*∞\s*\)|(?:all )?real numbers?|all reals", re.IGNORECASE)
SIGN = re.compile(f"[{RELATIONS}]")


def inequalities(parts: list[str], signs: list[str]) -> Region | None:
    """Return the region of several inequalities of one variable: x < 1 or x > 3. None for other parts."""
    found = []
    for part in parts:
        if not any(character in INEQUALITIES or character == "≠" for _, character in scan(part)):
            return None
        region = region_of(part)
        if region is None:
            return None
        found.append(region)
    if len({_variable(part) for part in parts}) > 1:
        return None
    if any(re.search("or|∨", sign, re.IGNORECASE) for sign in signs):
        return regions.union(interval for region in found for interval in region)
    both = found[0]
    for region in found[1:]:
        both = regions.intersection(both, region)
    return both or regions.union(interval for region in found for interval in region)


def _variable(part: str) -> str:
    sides, _ = split(part, SIGN)
    names = [names_of(node) for side in sides if (node := node_of(side)) is not None]
    return ",".join(sorted(set().union(*names)))


def by_variable(parts: list[str]) -> Key | None:
    """Return the key of inequalities of several variables: x > 1, y > 2. None for other parts."""
    found = []
    for part in parts:
        variable, region = _variable(part), region_of(part) if any(sign in INEQUALITIES for _, sign in scan(part)) else None
        if region is None or "," in variable or not variable:
            return None
        found.append((variable, regions.key(region)))
    return ("by variable", *sorted(found, key=repr)) if len({variable for variable, _ in found}) > 1 else None


def assigned(parts: list[str], inner: Inner) -> Key | None:
    """Return the key of x = 1, y = 2: that of the values, by name; x = 1 or x = 2 are several answers."""
    pairs = []
    for part in parts:
        sides, signs = split(part, SIGN)
        if len(sides) != 2 or signs[0] not in "=≈" or not LABEL.fullmatch(sides[0]) or not sides[1]:
            return None
        pairs.append((re.sub(r"[\s{}]", "", sides[0]), inner(sides[1])))
    names = [re.sub(r"^(x)_\w+$", r"\1", name) for name, _ in pairs]
    if len(set(names)) == 1:
        return several([value for _, value in pairs])
    return ("tuple", *(value for _, value in sorted(pairs))) if len(set(names)) == len(names) else None


def relation(text: str, inner: Inner) -> Key | None:
    """Equations, inequalities, membership."""
    sides, signs = split(text, SIGN)
    if not signs or (len(sides) == 2 and not any(sides)):
        return None
    if not all(sides):
        return None
    labelled = LABEL.fullmatch(sides[0]) or TUPLE_OF_NAMES.fullmatch(sides[0])
    if signs[0] in "∈≡" and len(sides) == 2:
        return inner(sides[1]) if labelled else None
    if all(sign in "=≈" for sign in signs):
        return _equation(sides, bool(labelled), inner)
    if (region := region_of(text)) is not None:
        return regions.key(region)
    if len(sides) == 2 and signs[0] in INEQUALITIES:
        larger, _ = INEQUALITIES[signs[0]]
        left, right = node_of(sides[0]), node_of(sides[1])
        if left and right:
            values = _ratios(("+", left, ("neg", right)) if larger else ("+", right, ("neg", left)), signed=True)
            return values and ("inequality", INEQUALITIES[signs[0]][1], *values)
    return None


def _equation(sides: list[str], labelled: bool, inner: Inner) -> Key | None:
    nodes = [node_of(side) for side in sides]
    if labelled and not _uses(nodes[1:], sides[0]):
        return inner(sides[1])
    if LABEL.fullmatch(sides[-1]) and not _uses(nodes[:-1], sides[-1]):
        return inner(sides[-2])
    first, last = nodes[0], nodes[-1]
    if first is None and len(sides) == 2 and "…" not in sides[0]:
        found = units.split(sides[1], counted=False)
        if value_of(found.head if found else sides[1]) is not None:
            return inner(sides[1])  # what is named is no formula: AB = 5
    if first is None or last is None or len(sides) > 2:
        return inner(sides[-1]) if value_of(sides[-1]) is not None and all(nodes) else None
    names = names_of(first) | names_of(last)
    if not names:
        return inner(sides[-1])
    difference: Node = ("+", first, ("neg", last))
    solved = _solved(difference, "y" if "y" in names else next(iter(names)) if len(names) == 1 else "")
    if solved is not None:
        return solved
    values = _ratios(difference, signed=False)
    return values and ("equation", *values)


def _uses(nodes: list[Node | None], label: str) -> bool:
    """Return whether a label's variable stands on the other side, too: y = y + 1."""
    name = re.sub(r"[\s{}]|\(.*", "", label)
    return any(node is not None and name in {re.sub(r"[\s{}]", "", other) for other in names_of(node)} for node in nodes)


def _put(node: Node, name: str, value: Node) -> Node:
    if node == ("name", name):
        return value
    return tuple(_put(part, name, value) if isinstance(part, tuple) else part for part in node)


def _linear(node: Node, name: str) -> tuple[Node, Any] | None:
    """Return a formula for name = 0, and its slope, where it is linear in the name with a constant slope other than 0."""
    at = [_put(node, name, ("number", Fraction(value))) for value in (0, 1, 3)]
    slopes = ("+", at[1], ("neg", at[0])), ("/", ("+", at[2], ("neg", at[1])), ("number", Fraction(2)))
    try:
        keys = [formula.key(slope) for slope in slopes]
        if keys[0] != keys[1] or keys[0][0] != "number" or keys[0] == ("number", "0"):
            return None
        bent = formula.key(("+", _put(node, name, ("number", Fraction(7))), ("neg", at[0])))
        if bent != formula.key(("*", ("number", Fraction(7)), slopes[0])):
            return None
    except (UnreadError, UndefinedError):
        return None
    slope = slopes[0]
    if names_of(slope):
        with mp.workdps(formula.DIGITS):
            text = keys[0][1]
            return at[0], Fraction(text) if re.fullmatch(r"-?\d+(?:/\d+)?", text) else mp.mpf(text)
    return at[0], formula.constant(slope)


def _solved(node: Node, name: str) -> Key | None:
    """Return the key of a variable's value where a formula is 0, if it is linear in it."""
    found = _linear(node, name) if name else None
    if found is None:
        return None
    try:
        return formula.key(("/", ("neg", found[0]), ("number", found[1])))
    except (UnreadError, UndefinedError):
        return None


def _ratios(node: Node, signed: bool) -> tuple[str, ...] | None:
    """Return a formula's values over the first one: those of its multiples are the same; with `signed`, of positive ones."""
    values = formula.fingerprint(node, real=True)
    first = next((value for value in values if value is not None and value != 0), None)
    if first is None:
        return None
    with mp.workdps(formula.DIGITS):
        scale = abs(formula.to_mp(first)) if signed else formula.to_mp(first)
        ratios = ["?" if value is None else formula.written(formula.to_mp(value) / scale) for value in values]
    return tuple(ratios)


def region_of(text: str) -> Region | None:
    """Return the region of the real line that a text describes; None for other texts."""
    text = text.strip()
    if ALL_REALS.fullmatch(text):
        return REALS
    if EMPTY_SET.fullmatch(text):
        return ()
    if (found := combined(text)) is not None:
        return found
    sides, signs = split(text, SIGN)
    if not signs:
        return bracketed_region(text)
    if signs[0] == "∈" and len(sides) == 2 and NAME.fullmatch(sides[0]):
        return region_of(sides[1])
    if not all(sides) or not all(sign in INEQUALITIES or sign == "≠" for sign in signs):
        return None
    both: Region | None = None
    for left, sign, right in zip(sides, signs, sides[1:], strict=False):
        one = _half_line(left, sign, right)
        if one is None:
            return None
        both = one if both is None else regions.intersection(both, one)
    return both


def combined(text: str) -> Region | None:
    """Return the region of unions, intersections and differences; None for other texts."""
    for sign in "∪∩∖":
        parts, signs = split(text, re.compile(re.escape(sign)))
        if signs:
            found = [region_of(part) for part in parts]
            if any(one is None for one in found):
                return None
            total = found[0] or ()
            for one in found[1:]:
                assert one is not None
                if sign == "∪":
                    total = regions.union((*total, *one))
                else:
                    total = regions.intersection(total, one if sign == "∩" else regions.complement(one))
            return total
    return None


def _half_line(left: str, sign: str, right: str) -> Region | None:
    """Return where a linear inequality of one variable holds."""
    values = value_of(left), value_of(right)
    if any(value is not None and not isinstance(value, Fraction) and mp.isinf(value) for value in values):
        return REALS if (values[0] is None) != (values[1] is None) else None
    first, last = node_of(left), node_of(right)
    if first is None or last is None:
        return None
    names = names_of(first) | names_of(last)
    if len(names) != 1:
        return None
    found = _linear(("+", first, ("neg", last)), next(iter(names)))
    if found is None:
        return None
    slope = found[1]
    if isinstance(slope, mp.mpc):
        return None
    try:
        bound = formula.constant(("/", ("neg", found[0]), ("number", slope)))
    except UndefinedError:
        return None
    if sign == "≠":
        return regions.complement((Interval(bound, bound, True, True),))
    larger, closed = INEQUALITIES[sign]
    if larger == (slope > 0):
        return (Interval(bound, INFINITY, closed, False),)
    return (Interval(-INFINITY, bound, False, closed),)


def bracketed_region(text: str) -> Region | None:
    """Return the region of an interval or a set of numbers; None for other texts."""
    if len(text) < 3 or text[0] not in "([]⟪{" or text[-1] not in ")[]⟫}":
        return None
    parts = comma_separated(text[1:-1])
    values = [value_of(part) for part in parts]
    if any(value is None or isinstance(value, mp.mpc) for value in values):
        return None
    if text[0] in "⟪{":
        return regions.union(Interval(value, value, True, True) for value in values)
    if len(values) != 2:
        return None
    with_ends = text[0] == "[", text[-1] == "]"
    one = Interval(values[0], values[1], with_ends[0] and values[0] != -INFINITY, with_ends[1] and values[1] != INFINITY)
    return None if one.empty else (one,)
