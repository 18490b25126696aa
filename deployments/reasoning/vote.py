"""Self-consistency: the answer that most of several chains agree on (arXiv 2203.11171), and when no further chain can change it.

Answers agree when they have the same key (`deployments.reasoning.equality`). Who wins, and with which answer as written, depends on
the answers alone and not on which chain ends first.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


def rank(key: str) -> bytes:
    """Return by what equally frequent answers are ordered: it prefers no kind of answer."""
    return hashlib.sha256(key.encode(errors="backslashreplace")).digest()


@dataclass
class Group:
    """The samples whose answers have this key: sample number -> answer as written."""

    key: str
    answers: dict[int, str] = field(default_factory=dict)

    @property
    def answer(self) -> str:
        """The answer as most of them write it; of equally frequent ways the shortest, then the first by alphabet."""
        counts = Counter(self.answers.values())
        return min(counts, key=lambda answer: (-counts[answer], len(answer), answer))

    @property
    def sample(self) -> int:
        """The first sample that writes it so."""
        answer = self.answer
        return min(sample for sample, other in self.answers.items() if other == answer)

    @property
    def place(self) -> tuple[int, bytes]:
        """Its place among the groups, the first one wins: most votes, and in a draw the lower `rank`."""
        return -len(self.answers), rank(self.key)


class Election:
    """Counts the answers of `size` samples as they arrive."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.counted = 0
        self._groups: dict[str, Group] = {}

    def add(self, sample: int, answer: str | None, key: str | None) -> None:
        """Count a finished sample; one without an answer (and so without a key) votes for no group."""
        self.counted += 1
        if answer is not None and key is not None:
            self._groups.setdefault(key, Group(key)).answers[sample] = answer

    @property
    def groups(self) -> list[Group]:
        """The groups of answers, the leader first."""
        return sorted(self._groups.values(), key=lambda group: group.place)

    @property
    def leader(self) -> Group | None:
        """The group that would win now; None without any vote."""
        return min(self._groups.values(), key=lambda group: group.place, default=None)

    @property
    def decided(self) -> bool:
        """Whether the samples that have not ended cannot change who wins, whatever they answer."""
        left = self.size - self.counted
        leader = self.leader
        if left == 0:
            return True
        if leader is None or len(leader.answers) <= left:
            return False  # all of them may agree on a new answer, which may win a draw
        votes, order = leader.place
        others = (group.place for group in self._groups.values() if group is not leader)
        return all((other_votes - left, other_order) > (votes, order) for other_votes, other_order in others)

    def progress(self) -> dict[str, Any]:
        """Return what a client gets: samples counted and asked for, votes by answer (most first), decided or not."""
        return {
            "samples": self.size,
            "counted": self.counted,
            "votes": [{"answer": group.answer, "votes": len(group.answers)} for group in self.groups],
            "decided": self.decided,
        }
