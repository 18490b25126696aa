"""How many tokens a chain still has to come, as a distribution: learned from the chains that have ended here.

A chain that has ended tells at several ages (0, 16, 32, 64... tokens) where one of that age, with as many turns behind it, ended.
So a prediction asks the chains that were where this one is now: P(T > x | T > age, turns at age). A chain's *turns* are its
reflections and explorations. Chains that were cut off, by `max_tokens` or by their client, count for as long as they were seen, and
not as an end: hazards are estimated bin by bin, as by Kaplan and Meier (https://doi.org/10.1080/01621459.1958.10501452).

There is a histogram for all chains, one for what was asked for (effort, budget), and one for that and the question's length. Finer
ones count by what they have seen: the hazard in a bin is blended with that of the coarser one, as if that were `PRIOR` more chains
(the mean of a beta process, https://doi.org/10.1214/aos/1176347749). Where nothing was seen, all magnitudes are as likely.

Nothing here knows Ray or vLLM. Each ingress learns from the requests that it sees.
"""

import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

PRIOR = 8.0
"""How many chains the coarser histogram counts for in each bin."""
UNKNOWN = 1.0
"""The same of what is assumed where nothing was seen."""
FULL = 1024.0
"""A histogram that has so many chains halves its counts: it forgets what was long ago."""
KEYS = 48
"""Kinds of request that are told apart; beyond, the ones that were not used for longest are forgotten."""
TURNS = 3
"""Chains with more turns are like those with so many."""
LONGEST = 2**17
SLACK = 64
"""A chain that must answer after a budget of tokens has mostly ended so many tokens later."""
REBUILT = 0.03
"""A curve is computed again when its histogram has grown by this share; one of nothing, each time."""


def _edges() -> list[int]:
    edges = list(range(1, 17))
    while edges[-1] < LONGEST:
        edges.append(min(int(edges[-1] * 1.08) + 1, LONGEST))
    return edges


EDGES = _edges()
"""Bin i has the lengths from EDGES[i] up to below EDGES[i + 1]: 8 % wide, single tokens for short ones."""
BINS = len(EDGES) - 1
WIDTHS = [after - before for before, after in pairwise(EDGES)]
BEGINNING = (0, 0)
"""The state of a chain that has not begun: no tokens, no turns."""
AGES = [0, *(2**power for power in range(4, 17))]
"""The ages at which a chain that has ended is counted."""


Kind = tuple[object, ...]
State = tuple[int, int]  # the number of its age, and its turns


@dataclass(frozen=True, slots=True)
class Asked:
    """What is known of a request before it begins. Lengths are in tokens.

    `effort` is any name for how long it is to think, `budget` how many tokens it may think (None without a bound). A reply has at
    most `max_tokens` and, unless that is less, at least `min_tokens`.
    """

    question_tokens: int
    max_tokens: int = LONGEST
    effort: str = ""
    budget: int | None = None
    min_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Forecast:
    """Tokens still to come: quantiles of 10, 50 and 90 %, and the mean."""

    low: float
    median: float
    high: float
    mean: float


class _Histogram:
    """Chains by their length, of those that were in one state at one age: `ended`, and `cut` off. `curve` is what they tell."""

    __slots__ = ("curve", "cut", "ended", "grown", "total")

    def __init__(self) -> None:
        self.ended, self.cut = array("d", bytes(8 * BINS)), array("d", bytes(8 * BINS))
        self.total = self.grown = 0.0
        self.curve: _Curve | None = None

    def add(self, index: int, cut: bool) -> None:
        """Count a chain whose length is in this bin."""
        (self.cut if cut else self.ended)[index] += 1
        self.total += 1
        self.grown += 1
        if self.total >= FULL:
            self.ended, self.cut = (array("d", [count / 2 for count in counts]) for counts in (self.ended, self.cut))
            self.total /= 2

    def hazards(self, coarser: Sequence[float], prior: float) -> "array[float]":
        """Return for each bin the share of the chains that reach it that end in it; `coarser` ones count as `prior` more chains."""
        hazards, reach = array("d", coarser), 0.0
        for index in range(BINS - 1, -1, -1):
            ended, cut = self.ended[index], self.cut[index]
            reach += ended + cut
            if reach:
                hazards[index] = (ended + prior * coarser[index]) / (reach - cut / 2 + prior)
        return hazards


class _Curve:
    """A distribution of lengths, made of hazards: the share that reaches each edge, negative, and its integral up to there."""

    __slots__ = ("area", "falling", "hazards")

    def __init__(self, hazards: Sequence[float]) -> None:
        self.hazards = hazards
        falling, area, reach, total = array("d", [-1.0]), array("d", [1.0]), 1.0, 1.0
        for hazard, width in zip(hazards, WIDTHS, strict=True):
            left = reach * (1 - hazard)
            total += width * (reach + left) / 2
            reach = left
            falling.append(-reach)
            area.append(total)
        self.falling, self.area = falling, area

    def forecast(self, age: int, least: int, most: int) -> Forecast:
        """Return what is to come of a chain with `age` tokens, which has more than `least` to come and at most `most` in all."""
        reach, before = self._at(age + least + 1)
        if most <= age + least + 1 or reach <= 0:
            left = float(max(1, min(most, LONGEST) - age))
            return Forecast(left, left, left, left)
        low, median, high = self.quantiles(age, least, most, (0.1, 0.5, 0.9))
        _, area = self._at(min(most, LONGEST))
        return Forecast(low, median, high, least + 1 + (area - before) / reach)

    def quantiles(self, age: int, least: int, most: int, shares: Sequence[float]) -> list[float]:
        """Return these quantiles; arguments as in `forecast`."""
        reach, _ = self._at(age + least + 1)
        if most <= age + least + 1 or reach <= 0:
            return [float(max(1, min(most, LONGEST) - age))] * len(shares)
        return [float(min(self._length(reach * (share - 1)), most) - age) for share in shares]

    def _at(self, length: int) -> tuple[float, float]:
        """Return which share reaches a length, and the integral up to it."""
        index = bisect_right(EDGES, length) - 1
        if index >= BINS:
            return 0.0, self.area[BINS]
        reach, within = -self.falling[index], length - EDGES[index]
        if not within:
            return reach, self.area[index]
        here = reach + (-self.falling[index + 1] - reach) * within / WIDTHS[index]
        return here, self.area[index] + within * (reach + here) / 2

    def _length(self, falling: float) -> int:
        """Return the length that this share, negative, has more than."""
        index = min(bisect_right(self.falling, falling), BINS) - 1
        before, after = self.falling[index], self.falling[index + 1]
        return EDGES[index] + int(WIDTHS[index] * (falling - before) / (after - before))


def _unknown() -> list[float]:
    """Return the hazards where nothing was seen: from a token to the longest reply, each magnitude is as likely."""
    return [1 / bins for bins in range(BINS, 0, -1)]


class Lengths:
    """Lengths of chains, learned from those that have ended. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._seen: OrderedDict[Kind, dict[State, _Histogram]] = OrderedDict()
        self._unknown = _Curve(_unknown())

    def observe(self, asked: Asked, tokens: int, turns: Sequence[int] = (), *, cut: bool = False) -> None:
        """Learn from a chain: its length, the tokens before each of its turns, and whether it was `cut` off rather than ended."""
        if tokens < 1:
            return
        index = min(bisect_right(EDGES, tokens), BINS) - 1
        states = [(at, min(TURNS, sum(turn < age for turn in turns))) for at, age in enumerate(AGES) if age < tokens]
        with self._lock:
            for key in _keys(asked):
                for state in states:
                    self._histogram(key, state).add(index, cut)
                self._seen.move_to_end(key)

    def forecast(self, asked: Asked, age: int = 0, turns: int = 0) -> Forecast:
        """Return how many tokens are still to come of a chain that has `age` tokens and so many turns; at least one."""
        return self._curve(asked, age, turns).forecast(age, _least(asked, age), asked.max_tokens)

    def quantiles(self, asked: Asked, age: int, turns: int, shares: Sequence[float]) -> list[float]:
        """Return quantiles of how many tokens are still to come."""
        return self._curve(asked, age, turns).quantiles(age, _least(asked, age), asked.max_tokens, shares)

    def _curve(self, asked: Asked, age: int, turns: int) -> _Curve:
        state = bisect_right(AGES, age) - 1, min(turns, TURNS)
        finest, kind, everything = _keys(asked)
        with self._lock:
            curve = self._of(everything, BEGINNING, self._unknown, UNKNOWN)
            curve = self._of(everything, state, curve)
            curve = self._of(kind, state, curve, budget=asked.budget)
            return self._of(finest, state, curve)

    def _histogram(self, key: Kind, state: State) -> _Histogram:
        """Return the histogram of chains of a kind in a state, which may be a new one."""
        if (histograms := self._seen.get(key)) is None:
            histograms = self._seen[key] = {}
            if len(self._seen) > KEYS:
                self._seen.pop(next(old for old in self._seen if old))  # not the one of all chains
        if (histogram := histograms.get(state)) is None:
            histogram = histograms[state] = _Histogram()
        return histogram

    def _of(self, key: Kind, state: State, coarser: _Curve, prior: float = PRIOR, budget: int | None = None) -> _Curve:
        """Return what chains of a kind in a state tell. Where there is a budget, also what is assumed holds to it."""
        histogram = self._seen.get(key, {}).get(state)
        if histogram is None:
            if budget is None:
                return coarser
            histogram = self._histogram(key, state)
        if histogram.curve is None or histogram.grown >= REBUILT * histogram.total:
            assumed = coarser.hazards if budget is None else _within(budget, coarser.hazards)
            histogram.curve, histogram.grown = _Curve(histogram.hazards(assumed, prior)), 0.0
        return histogram.curve


def _within(budget: int, hazards: Sequence[float]) -> list[float]:
    """Return the hazards of chains that must answer after so many tokens."""
    first = bisect_right(EDGES, budget + SLACK)
    return [*hazards[:first], *(max(hazard, 0.5) for hazard in hazards[first:])]


def _least(asked: Asked, age: int) -> int:
    """Return how many tokens are certainly to come, besides the last one."""
    return max(0, min(asked.min_tokens, asked.max_tokens) - 1 - age)


def _keys(asked: Asked) -> tuple[Kind, Kind, Kind]:
    """Return the kinds that a request is of, the finest first."""
    kind = asked.effort, None if asked.budget is None else asked.budget.bit_length()
    return (*kind, asked.question_tokens.bit_length()), kind, ()
