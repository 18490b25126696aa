r"""Formulas evaluated to a key that is equal for equal formulas.

A constant has its exact value as a key where that is rational, else its first 40 digits. A formula with variables has its values at
fixed points as a key: formulas that agree there are the same (Schwartz and Zippel's test of identities, at points that depend on
the names of the variables alone). Every step is bounded, so that nothing takes long: numbers of too many digits raise
`TooLargeError`.
"""

import hashlib
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath
from mpmath import mp

from deployments.reasoning.answers.grammar import EXACT_BITS, Node, TooLargeError, UnreadError, has, names_of

Key = tuple[Any, ...]
Number = Any
"""A Fraction, mpmath's mpf or mpc."""

LARGEST_BITS = 10_000_000
"""Numbers beyond two to this power, or below its inverse, are not computed."""
LARGEST_ARGUMENT = mpmath.mpf(10) ** 30
"""Functions of larger numbers are not computed: they would need as many digits more."""
DIGITS, KEPT = 60, 40
"""Decimal digits of the computation, and of the key."""
POINTS = 8
CIRCULAR = {"sin", "cos", "tan", "cot", "sec", "csc"}
FUNCTIONS: dict[str, Callable[[Number], Number]] = {
    "sin": mp.sin,
    "cos": mp.cos,
    "tan": mp.tan,
    "cot": mp.cot,
    "sec": mp.sec,
    "csc": mp.csc,
    "arcsin": mp.asin,
    "arccos": mp.acos,
    "arctan": mp.atan,
    "arccot": mp.acot,
    "arcsec": mp.asec,
    "arccsc": mp.acsc,
    "sinh": mp.sinh,
    "cosh": mp.cosh,
    "tanh": mp.tanh,
    "coth": mp.coth,
    "arcsinh": mp.asinh,
    "arccosh": mp.acosh,
    "arctanh": mp.atanh,
    "exp": mp.exp,
    "ln": mp.ln,
}


class UndefinedError(ArithmeticError):
    """The formula has no value at this point."""


class Evaluation:
    """The values of nodes at one point; without a point, exact where they are rational. With `real`, others are undefined."""

    def __init__(self, point: Callable[[str], Number] | None, real: bool) -> None:
        self._point, self._real = point or _no_variable, real
        self._names = point is not None

    def value(self, node: Node, angle: bool = False) -> Number:
        """Return a node's value; in an `angle`, degrees are turned to radians. Raises UndefinedError, TooLargeError."""
        found = self._value(node, angle)
        if isinstance(found, mpmath.mpc):
            if abs(found.imag) <= abs(found) * mp.mpf(10) ** (8 - mp.dps):
                found = found.real
            elif self._real:
                raise UndefinedError("not real")
        if isinstance(found, Fraction):
            if max(found.numerator.bit_length(), found.denominator.bit_length()) > EXACT_BITS:
                if not self._names:
                    raise TooLargeError("a number")
                return to_mp(found)
        elif not mp.isfinite(found):
            raise UndefinedError("not finite")
        elif found != 0 and not isinstance(found, mpmath.mpc) and abs(mp.mag(found)) > LARGEST_BITS:
            raise TooLargeError("a number")
        return found

    def _value(self, node: Node, angle: bool) -> Number:
        operation = node[0]
        if operation == "number":
            return node[1]
        if operation == "name":
            return self._point(node[1])
        if operation in CONSTANTS:
            return CONSTANTS[operation]()
        if operation == "infinity":
            raise UndefinedError("infinity")
        if operation == "call":
            return self._call(node[1], self.value(node[2], node[1] in CIRCULAR))
        values = [self.value(part, angle) for part in node[1:]]
        if operation == "degree":
            return multiply(values[0], mp.pi / 180) if angle else values[0]
        found = OPERATIONS[operation](*values)
        if not self._names and not isinstance(found, Fraction) and _stays_rational(operation, values):
            raise TooLargeError("its digits would be lost")
        return found

    @staticmethod
    def _call(name: str, argument: Number) -> Number:
        argument = to_mp(argument)
        if abs(argument) > {"ln": mp.inf, "exp": LARGEST_BITS}.get(name, LARGEST_ARGUMENT):
            raise TooLargeError(name)
        try:
            return FUNCTIONS[name](argument)
        except (ZeroDivisionError, ValueError) as error:
            raise UndefinedError(name) from error


def _stays_rational(operation: str, values: list[Number]) -> bool:
    """Return whether an operation makes a rational number of these."""
    if not all(isinstance(value, Fraction) for value in values):
        return False
    if operation == "^":
        return bool(values[1].denominator == 1)
    return operation in ("+", "*", "/", "neg", "percent") or (operation in ("factorial", "binomial") and values[0].denominator == 1)


def to_mp(value: Number) -> Number:
    """Return a value as a number of mpmath."""
    return mp.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _both(first: Number, second: Number) -> bool:
    return isinstance(first, Fraction) and isinstance(second, Fraction)


def add(first: Number, second: Number) -> Number:
    """Return a sum."""
    return first + second if _both(first, second) else to_mp(first) + to_mp(second)


def multiply(first: Number, second: Number) -> Number:
    """Return a product."""
    return first * second if _both(first, second) else to_mp(first) * to_mp(second)


def divide(first: Number, second: Number) -> Number:
    """Return a quotient. Raises UndefinedError."""
    if second == 0:
        raise UndefinedError("division by zero")
    return first / second if _both(first, second) else to_mp(first) / to_mp(second)


def power(base: Number, exponent: Number) -> Number:
    """Return a power; the real one of odd roots. Raises UndefinedError, TooLargeError."""
    if base == 0:
        if isinstance(exponent, mpmath.mpc) or exponent < 0:
            raise UndefinedError("division by zero")
        return Fraction(int(exponent == 0))
    if isinstance(exponent, Fraction):
        return _rational_power(base, exponent)
    size = abs(mp.mag(to_mp(base))) * abs(exponent)
    if size > LARGEST_BITS:
        raise TooLargeError("a power")
    return mp.power(to_mp(base), exponent)


def _rational_power(base: Number, exponent: Fraction) -> Number:
    over, under = exponent.numerator, exponent.denominator
    if isinstance(base, Fraction):
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(over) <= EXACT_BITS:
            root = base if under == 1 else _exact_root(base, under)
            if root is not None:
                return root**over
        if abs(base) == 1 and under == 1:
            return base ** (over % 2)
        if bits * abs(exponent) > LARGEST_BITS:
            raise TooLargeError("a power")
    elif abs(mp.mag(base)) * abs(exponent) > LARGEST_BITS:
        raise TooLargeError("a power")
    value = to_mp(base)
    if under == 1:
        return mp.power(value, over)
    if under % 2 and not isinstance(value, mpmath.mpc) and value < 0:
        return (-1) ** over * mp.power(-value, to_mp(exponent))
    return mp.power(value, to_mp(exponent))


def _exact_root(value: Fraction, degree: int) -> Fraction | None:
    if degree > 64 or (value < 0 and degree % 2 == 0):
        return None
    parts = [_integer_root(abs(part), degree) for part in (value.numerator, value.denominator)]
    if parts[0] is None or parts[1] is None:
        return None
    return Fraction(parts[0] if value > 0 else -parts[0], parts[1])


def _integer_root(value: int, degree: int) -> int | None:
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        if middle**degree <= value:
            low = middle
        else:
            high = middle - 1
    return low if low**degree == value else None


def root(value: Number, degree: Number) -> Number:
    """Return a root."""
    return power(value, divide(Fraction(1), degree))


def factorial(value: Number) -> Number:
    """Return n!, or the gamma function of n + 1. Raises UndefinedError, TooLargeError."""
    if isinstance(value, Fraction) and value.denominator == 1:
        if value < 0:
            raise UndefinedError("a negative factorial")
        if value <= 1000:
            return Fraction(mpmath.libmp.ifac(int(value)))
    if abs(value) > 10**5:
        raise TooLargeError("a factorial")
    return mp.gamma(to_mp(value) + 1)


def binomial(n: Number, k: Number) -> Number:
    """Return n over k. Raises UndefinedError, TooLargeError."""
    if all(isinstance(value, Fraction) and value.denominator == 1 and 0 <= value <= 1000 for value in (n, k)):
        return factorial(n) / (factorial(k) * factorial(n - k)) if k <= n else Fraction(0)
    if abs(n) > 10**5 or abs(k) > 10**5:
        raise TooLargeError("a binomial")
    return mp.binomial(to_mp(n), to_mp(k))


def logarithm(value: Number, base: Number) -> Number:
    """Return the logarithm to a base. Raises UndefinedError."""
    if value == 0 or base in (0, 1):
        raise UndefinedError("a logarithm")
    return mp.ln(to_mp(value)) / mp.ln(to_mp(base))


def _floor(value: Number) -> Number:
    if isinstance(value, Fraction):
        return Fraction(value.numerator // value.denominator)
    if isinstance(value, mpmath.mpc) or abs(value) > 10**40:
        raise UndefinedError("a floor")
    return Fraction(int(mp.floor(value + mp.mpf(10) ** (10 - mp.dps))))  # what is a whole number is so but for its last digits


def _negated(value: Number) -> Number:
    return -value


def _integers(name: str, first: Number, second: Number) -> Number:
    if not (_both(first, second) and first.denominator == second.denominator == 1):
        raise UndefinedError(name)
    return Fraction({"gcd": math.gcd, "lcm": math.lcm}[name](int(first), int(second)))


def _ordered(name: str, first: Number, second: Number) -> Number:
    if isinstance(first, mpmath.mpc) or isinstance(second, mpmath.mpc):
        raise UndefinedError(name)
    return {"max": max, "min": min}[name](first, second, key=to_mp)


CONSTANTS: dict[str, Callable[[], Number]] = {"pi": lambda: +mp.pi, "e": lambda: +mp.e, "i": lambda: mp.mpc(0, 1)}
OPERATIONS: dict[str, Callable[..., Number]] = {
    "+": add,
    "neg": _negated,
    "*": multiply,
    "/": divide,
    "^": power,
    "sqrt": lambda value: power(value, Fraction(1, 2)),
    "cbrt": lambda value: power(value, Fraction(1, 3)),
    "root": root,
    "factorial": factorial,
    "percent": lambda value: divide(value, Fraction(100)),
    "binomial": binomial,
    "abs": abs,
    "floor": _floor,
    "ceil": lambda value: -_floor(-value),
    "log": logarithm,
    "gcd": lambda first, second: _integers("gcd", first, second),
    "lcm": lambda first, second: _integers("lcm", first, second),
    "max": lambda first, second: _ordered("max", first, second),
    "min": lambda first, second: _ordered("min", first, second),
}


def coordinate(name: str, point: int) -> Number:
    """Return a variable's value at a point: of both signs at most of them, a small whole number at the last three."""
    drawn = int.from_bytes(hashlib.sha256(f"{point}/{name}".encode()).digest(), "big")
    if point >= POINTS - 3:
        return Fraction(2 + drawn % (9 if point < POINTS - 1 else 97))
    size = mp.mpf(drawn % 10**70) / mp.mpf(10) ** 70 * 3 + mp.mpf("0.1")
    negative = point == 1 or (point > 1 and drawn // 10**70 % 2)
    return -size if negative else size


def constant(node: Node) -> Number:
    """Return the value of a formula without variables: a Fraction where it is rational. Raises UndefinedError, TooLargeError."""
    with mp.workdps(DIGITS):
        value = Evaluation(None, real=False).value(node)
        if isinstance(value, Fraction):
            return value
        if abs(value) < mp.mpf(10) ** (-DIGITS // 2):
            with mp.workdps(3 * DIGITS):
                again = Evaluation(None, real=False).value(node)
                if abs(to_mp(again)) < mp.mpf(10) ** (-2 * DIGITS):
                    return Fraction(0)
        return rational(value)


def rational(value: Number) -> Number:
    """Return a number as a Fraction if it is one of few digits, but for its own last digits."""
    if isinstance(value, Fraction | mpmath.mpc) or not mp.mpf(10) ** -9 < abs(value) < mp.mpf(10) ** 20:
        return value
    scale = 10**DIGITS
    near = Fraction(int(mp.nint(value * scale)), scale).limit_denominator(10**6)
    return near if abs(to_mp(near) - value) < mp.mpf(10) ** -(DIGITS - 25) * mp.mpf(10) ** -10 * max(1, abs(value)) else value


def _no_variable(name: str) -> Number:
    raise UnreadError(name)


def written(value: Number, exact: bool = True) -> str:
    """Return a number's digits: all of a rational one, if `exact`, else the first `KEPT`."""
    if isinstance(value, Fraction):
        if exact:
            return str(value)
        with mp.workdps(DIGITS):
            value = to_mp(value)
    if isinstance(value, mpmath.mpc):
        return f"{_digits(value.real, abs(value))},{_digits(value.imag, abs(value))}i"
    return _digits(value, abs(value))


def _digits(value: Number, scale: Number) -> str:
    if abs(value) <= scale * mp.mpf(10) ** -(KEPT + 5):
        return "0"
    with mp.workdps(DIGITS):
        return str(mpmath.nstr(value, KEPT, min_fixed=1, max_fixed=0))


def key(node: Node) -> Key:
    """Return the key of a formula. Raises TooLargeError, and UnreadError for one that has no value anywhere."""
    names = names_of(node)
    if not names:
        try:
            with mp.workdps(DIGITS):
                return ("number", written(constant(node)))
        except UndefinedError as error:
            raise UnreadError(str(error)) from error
    real = not has(node, "i")
    values = fingerprint(node, real)
    if all(value is None for value in values) and real:
        values = fingerprint(node, False)
    there = [value for value in values if value is not None]
    if not there:
        raise UnreadError("no value anywhere")
    shown = [None if value is None else written(value, exact=False) for value in values]
    if len(set(shown) - {None}) == 1 and len(there) > 1:
        return ("number", written(next((value for value in there if isinstance(value, Fraction)), there[0])))
    return ("formula", *("?" if text is None else text for text in shown))


def fingerprint(node: Node, real: bool) -> list[Number | None]:
    """Return the values of a formula at all points; None where it has none. Raises TooLargeError."""
    with mp.workdps(DIGITS):
        return [_at(node, real, point) for point in range(POINTS)]


def _at(node: Node, real: bool, point: int) -> Number | None:
    evaluation = Evaluation(lambda name: coordinate(name, point), real)
    try:
        value = evaluation.value(node)
        if not isinstance(value, Fraction) and abs(value) < mp.mpf(10) ** -25:
            with mp.workdps(3 * DIGITS):
                if abs(to_mp(evaluation.value(node))) < mp.mpf(10) ** (-2 * DIGITS):
                    return Fraction(0)
    except UndefinedError:
        return None
    return rational(value)
