r"""Self-consistency: the answer that most of several chains agree on (arXiv 2203.11171), and when no further chain can change it.

Answers are the contents of boxes; two agree when math-verify finds them equal (`0.5` and `\frac{1}{2}`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from math_verify import parse, verify

LONGEST = 200
"""Answers longer than this many characters agree only when they are the same text: comparing expressions has no bound in time."""


def same(first: str, second: str) -> bool:
    """Tell whether two answers are mathematically equal."""
    if first == second:
        return True
    if max(len(first), len(second)) > LONGEST:
        return False
    return bool(verify(_parsed(first), _parsed(second), timeout_seconds=None))


@lru_cache(maxsize=1024)
def _parsed(answer: str) -> list[Any]:
    return list(parse(f"\\boxed{{{answer}}}", parsing_timeout=None))  # its timeouts need signals, and so the main thread


@dataclass
class Group:
    """Samples whose answers agree; `answer` is the first one as written."""

    answer: str
    samples: list[int] = field(default_factory=list)


class Election:
    """Counts the answers of `size` samples as they come. Most votes win; of equals, the group whose first vote came first."""

    def __init__(self, size: int, agree: Callable[[str, str], bool] = same) -> None:
        self.size = size
        self.counted = 0
        self.groups: list[Group] = []
        self._agree = agree

    def add(self, sample: int, answer: str | None) -> None:
        """Count a finished sample; without an answer it votes for none."""
        self.counted += 1
        if answer is None:
            return
        for group in self.groups:
            if self._agree(group.answer, answer):
                group.samples.append(sample)
                return
        self.groups.append(Group(answer, [sample]))

    @property
    def leader(self) -> Group | None:
        """The group that wins as things stand; None while nobody has voted."""
        return max(self.groups, key=lambda group: len(group.samples), default=None)  # the first of equals

    @property
    def decided(self) -> bool:
        """Whether the samples that are still out cannot change who wins."""
        left = self.size - self.counted
        leader = self.leader
        if leader is None:
            return left == 0
        votes, place = len(leader.samples), self.groups.index(leader)
        rivals = [
            len(group.samples) + left < votes + (place < other) for other, group in enumerate(self.groups) if group is not leader
        ]
        return all(rivals) and left <= votes  # a new group would come after the leader, so a draw is not enough for it

    def progress(self) -> dict[str, Any]:
        """Return what a client gets: samples counted and asked for, votes by answer (most first), decided or not."""
        ordered = sorted(self.groups, key=lambda group: -len(group.samples))
        return {
            "samples": self.size,
            "counted": self.counted,
            "votes": [{"answer": group.answer, "votes": len(group.samples)} for group in ordered],
            "decided": self.decided,
        }
