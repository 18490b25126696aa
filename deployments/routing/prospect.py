"""A reply that is being generated: how many tokens, and how many seconds, are still to come of it.

Nothing here knows Ray or vLLM.
"""

from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

from deployments.routing.lengths import Asked, Forecast, Lengths

SHARES = (0.1, 0.5, 0.9)
"""Of the quantiles that are told."""
POOLED = (0.1, 0.3, 0.5, 0.7, 0.9)
MEASURED = 8
"""A reply's speed is known after so many tokens."""


@dataclass(slots=True)
class Prospect:
    """What is to come of a reply.

    `tokens` is the list that collects it, and had `before` tokens already when the reply came here. `turn_ids` are the tokens that
    begin a turn. `first_s` is when its first token arrived here, on the clock that callers use; 0 before. `start` is what was said
    of the whole reply then.
    """

    lengths: Lengths
    asked: Asked
    tokens: Sequence[int]
    turn_ids: frozenset[int] = frozenset()
    first_s: float = 0.0
    turns: list[int] = field(default_factory=list)
    before: int = field(init=False)
    start: Forecast = field(init=False)
    _read: int = 0

    def __post_init__(self) -> None:
        self.before = len(self.tokens)
        self.start = self.forecast()

    def forecast(self) -> Forecast:
        """Return how many tokens are still to come."""
        return self.lengths.forecast(self.asked, *self._state())

    def ended(self, *, cut: bool) -> None:
        """Learn from it: it has ended, or was `cut` off. A reply that had to have a length says nothing of others."""
        self._state()
        if not self.asked.min_tokens:
            self.lengths.observe(self.asked, len(self.tokens), self.turns, cut=cut)

    def tokens_per_s(self, now: float) -> float | None:
        """Return its own speed since its first token arrived here; None before it is known."""
        count = len(self.tokens) - self.before - 1
        return count / (now - self.first_s) if count >= MEASURED and self.first_s and now > self.first_s else None

    def eta_s(self, now: float) -> list[float] | None:
        """Return the quantiles (10, 50, 90 %) of the seconds until its end, at its own speed; None before that is known."""
        if (speed := self.tokens_per_s(now)) is None:
            return None
        return [round(tokens / speed, 1) for tokens in self.to_come(SHARES)]

    def to_come(self, shares: Sequence[float]) -> list[float]:
        """Return these quantiles of the tokens still to come."""
        return self.lengths.quantiles(self.asked, *self._state(), shares)

    def _state(self) -> tuple[int, int]:
        """Return its age and its turns; each token is looked at once."""
        new = self.tokens[self._read :]
        if not self.turn_ids.isdisjoint(new):
            self.turns += [at for at, token in enumerate(new, self._read) if token in self.turn_ids]
        self._read += len(new)
        return self._read, len(self.turns)


def left_s(prospects: Iterable[Prospect], now: float) -> dict[str, float] | None:
    """Return quantiles of the seconds that any of these replies still takes; None where no speed is known.

    Replies that have not begun are as fast as the others.
    """
    replies = [(one.to_come(POOLED), one.tokens_per_s(now)) for one in prospects]
    speeds = sorted(speed for _, speed in replies if speed)
    if not speeds:
        return None
    usual = speeds[len(speeds) // 2]
    pool = sorted(tokens / (speed or usual) for to_come, speed in replies for tokens in to_come)
    return {f"p{round(100 * share)}": round(pool[round(share * (len(pool) - 1))], 1) for share in SHARES}


current: ContextVar[Prospect | None] = ContextVar("prospect", default=None)
"""The reply to the request that the current task has sent to the engine last."""
