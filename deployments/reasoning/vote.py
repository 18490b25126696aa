r"""Self-consistency: the answer that most of several chains agree on (arXiv 2203.11171), and when no further chain can change it.

Answers are the contents of boxes; two answers agree when math-verify finds them equal (`0.5` and `\frac{1}{2}`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from math_verify import parse, verify

LONGEST = 200
"""Answers of more characters than this agree only when they are the same text: comparing expressions has no time limit."""


def same(first: str, second: str) -> bool:
    """Return whether two answers are mathematically equal."""
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
    """Counts the answers of `size` samples as they arrive. Most votes win; in a draw, the group whose first vote came first."""

    def __init__(self, size: int, agree: Callable[[str, str], bool] = same) -> None:
        self.size = size
        self.counted = 0
        self.groups: list[Group] = []
        self._agree = agree

    def add(self, sample: int, answer: str | None) -> None:
        """Count a finished sample; one without an answer votes for no group."""
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
        """The group that would win now; None without any vote."""
        return max(self.groups, key=lambda group: len(group.samples), default=None)  # in a draw, the first

    @property
    def decided(self) -> bool:
        """Whether the samples that have not ended cannot change who wins."""
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
