"""Written arithmetic as a person does it on paper: columns with carries, each operation with the check that recomputes it.

A `Slip` makes one mistake in the working (a wrong column, a wrong copy), for the traces that teach the model to find and repair it.
Numbers are whole. The functions take operands that are not negative; `Operation` handles signs.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

Work = tuple[str, int]  # the written columns ("8+6=14, 7+5+1=13, 4+3+1=8") and the result


class Slip:
    """One mistake in a working: in a random column, or in the copied result.

    `made` says whether it has happened: a working may have no place for it. `none()` returns a slip that never happens.
    """

    def __init__(self, rng: random.Random | None) -> None:
        self.rng = rng
        self.made = False
        self.column = rng.choice([0, 0, 1, 1, 2]) if rng else -1

    def value(self, column: int, value: int, highest: int) -> int:
        """Return the value that is written in a column: `value`, or another one from 0 to `highest`."""
        if self.rng is None or self.made or column != self.column:
            return value
        near = [v for v in (value - 10, value - 2, value - 1, value + 1, value + 2, value + 10) if 0 <= v <= highest]
        self.made = bool(near)
        return self.rng.choice(near) if near else value

    def result(self, result: int) -> int:
        """Return the result that is written; where no column was wrong, one of its digits is."""
        if self.rng is None or self.made:
            return result
        digits = list(str(result))
        place = self.rng.randrange(len(digits))
        digits[place] = self.rng.choice([d for d in "123456789" if d != digits[place]])
        self.made = True
        return int("".join(digits))


def none() -> Slip:
    """Return a slip that never happens."""
    return Slip(None)


def _digits(number: int, width: int) -> list[int]:
    """Return the digits from the ones upwards, padded with zeros to the width."""
    return [number // 10**place % 10 for place in range(width)]


def add(a: int, b: int, slip: Slip) -> Work:
    """Return the columns of a + b, from the ones upwards, and the result."""
    width = max(len(str(a)), len(str(b)))
    columns, total, carry = [], 0, 0
    for place, (x, y) in enumerate(zip(_digits(a, width), _digits(b, width), strict=True)):
        value = slip.value(place, x + y + carry, 19)
        columns.append(f"{x}+{y}{'+1' if carry else ''}={value}")
        carry = value // 10 if place < width - 1 else 0
        total += (value % 10 if place < width - 1 else value) * 10**place
    return ", ".join(columns), slip.result(total)


def subtract(a: int, b: int, slip: Slip) -> Work:
    """Return the columns of a - b for a >= b, and the result; `10+` is borrowed from the next column, `-1` lent to the last one."""
    width = len(str(a))
    columns, total, lent = [], 0, 0
    for place, (x, y) in enumerate(zip(_digits(a, width), _digits(b, width), strict=True)):
        borrow = x - lent - y < 0
        value = slip.value(place, x + 10 * borrow - lent - y, 9)
        columns.append(f"{'10+' if borrow else ''}{x}{'-1' if lent else ''}-{y}={value}")
        lent = int(borrow)
        total += value * 10**place
    return ", ".join(columns), slip.result(total)


def multiply(a: int, b: int, slip: Slip) -> Work:
    """Return the columns of a × b, one of which has one digit, from the ones of the other upwards, and the result."""
    many, one = (a, b) if b < 10 else (b, a)
    columns, total, carry = [], 0, 0
    width = len(str(many))
    for place, digit in enumerate(_digits(many, width)):
        value = slip.value(place, digit * one + carry, 89)
        columns.append(f"{digit}×{one}{f'+{carry}' if carry else ''}={value}")
        carry = value // 10
        total += (value % 10 if place < width - 1 else value) * 10**place
    return ", ".join(columns), slip.result(total)


def divide(a: int, b: int, slip: Slip) -> tuple[str, int | None]:
    """Return the columns of the long division a ÷ b by one digit, and the quotient or, where it is not whole, None."""
    columns: list[str] = []
    quotient = rest = 0
    for place, digit in enumerate(map(int, str(a))):
        rest = rest * 10 + digit
        if rest < b and place < len(str(a)) - 1 and quotient == 0:
            continue
        q = slip.value(len(columns), rest // b, 9)
        left = max(rest - q * b, 0)
        columns.append(f"{rest}={b}×{q}+{left}")
        quotient, rest = quotient * 10 + q, left
    return ", ".join(columns), None if rest else slip.result(quotient)


@dataclass(frozen=True)
class Operation:
    """One operation. The left operand may be negative, the right one may not."""

    left: int
    sign: str  # one of SIGNS
    right: int

    @property
    def text(self) -> str:
        """The operation as written: -408+215."""
        return f"{self.left}{self.sign}{self.right}"

    @property
    def value(self) -> int:
        """The correct result."""
        if self.sign == "×":
            return self.left * self.right
        return self.left + self.right if self.sign == "+" else self.left - self.right

    def magnitudes(self) -> tuple[bool, int, str, int]:
        """Return (negative, a, sign, b): this operation is ±(a sign b), with a >= b in a subtraction."""
        a, b = self.left, self.right
        if self.sign == "×":
            return False, a, "×", b
        if self.sign == "+":
            if a >= 0:
                return False, a, "+", b
            return (False, b, "-", -a) if b >= -a else (True, -a, "-", b)
        if a < 0:
            return True, -a, "+", b
        return (False, a, "-", b) if a >= b else (True, b, "-", a)

    def work(self, slip: Slip) -> Work:
        """Return the written working and its signed result. Where signs require it, the working starts with a rewritten form."""
        negative, a, sign, b = self.magnitudes()
        columns, result = COLUMNS[sign](a, b, slip)
        inner = f"{a}{sign}{b}"
        rewritten = "" if inner == self.text else f"{'-(' if negative else ''}{inner}{')' if negative else ''}: "
        return rewritten + columns, -result if negative else result

    def check(self, claimed: int) -> "Check":
        """Return a recomputation of a claimed result: sums by subtracting, differences by adding, products by tens and ones."""
        negative, a, sign, b = self.magnitudes()
        size = -claimed if negative else claimed
        if size < 0:
            return Check(f"{claimed}{'>' if claimed > 0 else '<'}0", None, None)
        if sign == "×":
            return Check(_product(a, b), str(a * b), str(size))
        if sign == "+":
            if size < b:
                return Check(f"{size}<{b}", None, None)
            columns, back = subtract(size, b, none())
            return Check(f"{size}-{b}: {columns} → {back}", str(back), str(a))
        columns, back = add(size, b, none())
        return Check(f"{size}+{b}: {columns} → {back}", str(back), str(a))


@dataclass(frozen=True)
class Check:
    """A recomputation as written, the value found and the value wanted; both are None where the claim cannot be right."""

    text: str
    found: str | None
    wanted: str | None

    @property
    def stands(self) -> bool:
        """Whether the claim is right."""
        return self.found is not None and self.found == self.wanted


def _product(a: int, b: int) -> str:
    many, one = (a, b) if b < 10 else (b, a)
    tens, ones = many // 10 * 10, many % 10
    if not tens:
        return f"{one}×{many}={one * many}"
    return f"{tens}×{one}={tens * one}, {ones}×{one}={ones * one}, {tens * one}+{ones * one}={a * b}"


SIGNS = "+-×"
COLUMNS: dict[str, Callable[[int, int, Slip], Work]] = {"+": add, "-": subtract, "×": multiply}
