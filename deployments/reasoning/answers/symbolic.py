"""What the grammar of formulas does not read (sums, integrals, limits, derivatives): math-verify reads it, SymPy computes it."""

import contextlib
import logging
from fractions import Fraction
from typing import Any

from mpmath import mp

from deployments.reasoning.answers.formula import DIGITS, POINTS, Key, coordinate, rational, to_mp, written

LONGEST = 300
"""Characters of what is given to math-verify."""


WARMED = (r"\int_{0}^{1} x^{2} \, dx", r"\sum_{k=1}^{n} \frac{k}{2}", r"\lim_{x \to 0} \frac{\sin(x)}{x}", r"\frac{d}{dx} \sqrt{x}")


def load() -> None:
    """Import math-verify and SymPy and read something of each kind: the first time takes seconds, later ones milliseconds."""
    for text in WARMED:
        key(text)


def key(text: str) -> Key | None:
    """Return the key of a formula that math-verify reads; None where it does not. This may take for ever."""
    if len(text) > LONGEST:
        return None
    found = _parsed(text)
    if found is None:
        return None
    import sympy

    with contextlib.suppress(Exception):  # SymPy's own errors are of many kinds
        found = found.doit()
    if found.has(sympy.nan, sympy.zoo):
        return None
    if not isinstance(found, sympy.Expr) or found.has(sympy.Integral, sympy.Sum, sympy.Limit, sympy.Derivative):
        return ("sympy", sympy.srepr(found))
    if found in (sympy.oo, -sympy.oo):
        return ("number", "inf" if found == sympy.oo else "-inf")
    try:
        return _valued(found)
    except (TypeError, ValueError, ArithmeticError, AttributeError, NameError):
        return ("sympy", sympy.srepr(found))


def _parsed(text: str) -> Any:
    import math_verify

    logging.getLogger(math_verify.__name__).setLevel(logging.CRITICAL)  # it warns of every parse without its own time limit
    found = math_verify.parse(
        f"\\boxed{{{text}}}", [math_verify.LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None
    )
    return found[0] if found and not isinstance(found[0], str) else None


def _valued(found: Any) -> Key:
    """Return the key of an expression, as `formula.key` makes it."""
    import sympy

    symbols = sorted(found.free_symbols, key=str)
    if not symbols:
        if found.is_Rational:
            return ("number", written(Fraction(int(found.p), int(found.q))))
        with mp.workdps(DIGITS):
            return ("number", written(rational(_number(found.evalf(DIGITS)))))
    values: list[str] = []
    with mp.workdps(DIGITS):
        for point in range(POINTS):
            at = {symbol: _sympy(sympy, coordinate(_name(symbol), point)) for symbol in symbols}
            value = found.subs(at).evalf(DIGITS)
            values.append(written(rational(_number(value)), exact=False) if value.is_real else "?")
    return ("number", values[0]) if len(set(values)) == 1 and values[0] != "?" else ("formula", *values)


def _name(symbol: Any) -> str:
    """Return a variable's name as the grammar of formulas writes it."""
    name = str(symbol).replace("{", "").replace("}", "")
    base, _, subscript = name.partition("_")
    return (base if len(base) == 1 else f"\\{base}") + (f"_{subscript}" if subscript else "")


def _sympy(sympy: Any, value: Any) -> Any:
    return sympy.Rational(value.numerator, value.denominator) if isinstance(value, Fraction) else sympy.Float(value, DIGITS)


def _number(value: Any) -> Any:
    import sympy

    if not value.is_number or value.has(sympy.oo, sympy.nan, sympy.zoo):
        raise ValueError(f"{value} has no value")
    real, imaginary = value.as_real_imag()
    parts = [to_mp(mp.mpf(str(part))) for part in (real, imaginary)]
    return parts[0] if parts[1] == 0 else mp.mpc(*parts)
