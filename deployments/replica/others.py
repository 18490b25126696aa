"""What a replica tells each ingress of the requests that others have sent it: they count when that ingress chooses a replica."""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from typing import TypeVar

TELL_S = 0.1
"""How often there may be news."""
REPEATED = 20
"""After so many times what has not changed is told again, because an ingress forgets what it has not heard for long."""

L = TypeVar("L", bound=Hashable)


class Others:
    """Remembers what each ingress was told last."""

    def __init__(self) -> None:
        self._told: dict[Hashable, tuple[int, int]] = {}
        self._times = 0

    def news(self, lanes: Iterable[L], requests: Iterable[tuple[L, float]]) -> Iterator[tuple[L, int, int]]:
        """Yield for each lane that has news how many requests other lanes have here, and how many prompt tokens those have to read.

        `requests` are the lane of each request here, and how many tokens of its prompt are still to be read.
        """
        count: Counter[L] = Counter()
        unread: Counter[L] = Counter()
        for lane, tokens in requests:
            count[lane] += 1
            unread[lane] += int(tokens)
        self._times += 1
        told, self._told = self._told, {}
        for lane in lanes:
            now = (count.total() - count[lane], unread.total() - unread[lane])
            if any(now):
                self._told[lane] = now
            if now != told.get(lane, (0, 0)) or (any(now) and self._times % REPEATED == 0):
                yield lane, *now
