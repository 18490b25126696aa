"""Regions of the real line: unions of intervals, as inequalities and intervals write them."""

from collections.abc import Iterable
from fractions import Fraction
from typing import Any, NamedTuple

from mpmath import mp

from deployments.reasoning.answers.formula import DIGITS, to_mp, written

INFINITY = mp.inf


class Interval(NamedTuple):
    """From `low` to `high` (Fractions, mpmath's numbers or infinite), with or without each end."""

    low: Any
    high: Any
    with_low: bool
    with_high: bool

    @property
    def empty(self) -> bool:
        """Whether no number is in it."""
        return less(self.high, self.low) or (equal(self.low, self.high) and not (self.with_low and self.with_high))


Region = tuple[Interval, ...]
REALS: Region = (Interval(-INFINITY, INFINITY, False, False),)


def less(first: Any, second: Any) -> bool:
    """Return whether one end is below another."""
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return first < second
    with mp.workdps(DIGITS):
        return bool(to_mp(first) < to_mp(second)) and not equal(first, second)


def equal(first: Any, second: Any) -> bool:
    """Return whether two ends are the same number, but for their last digits."""
    return end(first) == end(second)


def end(value: Any) -> str:
    """Return an end as `written`."""
    return written(value) if isinstance(value, Fraction) or mp.isfinite(value) else ("inf" if value > 0 else "-inf")


def union(intervals: Iterable[Interval]) -> Region:
    """Return the union, as intervals that do not touch, from the left."""
    from functools import cmp_to_key

    def order(a: Interval, b: Interval) -> int:
        if equal(a.low, b.low):
            return b.with_low - a.with_low
        return -1 if less(a.low, b.low) else 1

    found: list[Interval] = []
    for one in sorted((one for one in intervals if not one.empty), key=cmp_to_key(order)):
        last = found[-1] if found else None
        if last and (less(one.low, last.high) or (equal(one.low, last.high) and (one.with_low or last.with_high))):
            if less(last.high, one.high):
                found[-1] = last._replace(high=one.high, with_high=one.with_high)
            elif equal(last.high, one.high):
                found[-1] = last._replace(with_high=last.with_high or one.with_high)
        else:
            found.append(one)
    return tuple(found)


def complement(region: Region) -> Region:
    """Return the numbers that are not in a region."""
    found, low, with_low = [], -INFINITY, False
    for one in region:
        found.append(Interval(low, one.low, with_low, not one.with_low))
        low, with_low = one.high, not one.with_high
    found.append(Interval(low, INFINITY, with_low and low != INFINITY, False))
    return tuple(one for one in found if not one.empty and not (equal(one.low, one.high) and not mp.isfinite(to_mp(one.low))))


def intersection(first: Region, second: Region) -> Region:
    """Return the numbers that are in both."""
    return complement(union((*complement(first), *complement(second))))


def key(region: Region) -> tuple[Any, ...]:
    """Return the key of a region. An open interval has the key of a pair, which looks the same: (1, 2)."""
    if len(region) == 1 and not region[0].with_low and not region[0].with_high:
        return ("tuple", _end(region[0].low), _end(region[0].high))
    if region and all(equal(one.low, one.high) for one in region):
        points = [_end(one.low) for one in region]
        return points[0] if len(points) == 1 else ("set", *sorted(points, key=repr))
    return (
        "region",
        *(("[" if one.with_low else "(", end(one.low), end(one.high), "]" if one.with_high else ")") for one in region),
    )


def _end(value: Any) -> tuple[str, str]:
    return ("number", end(value))
