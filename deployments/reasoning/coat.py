r"""Chain of Action-Thought, read as it arrives: which action each piece of a reply belongs to, and where the answer begins.

Satori opens each segment of its reasoning with a special token: `<|continue|>` (next step), `<|reflect|>` (check what came before),
`<|explore|>` (try another way); it ends with a statement that holds the answer in `\boxed{}` (arXiv 2502.02508). Everything here is
incremental and gives the same result however the text is cut into chunks.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

ACTIONS = {"<|continue|>": "continue", "<|reflect|>": "reflect", "<|explore|>": "explore"}
_ACTION = re.compile("|".join(map(re.escape, ACTIONS)))

# A line that begins with one of these is the closing statement. Lower case; the rest of the line does not matter.
OPENINGS = (
    *(
        f"{start}{end}"
        for start in ("", "so ", "so, ", "thus, ", "hence, ", "therefore, ")
        for end in ("the final answer", "the answer is")
    ),
    "final answer",
    "**final answer",
    "# final answer",
    "## final answer",
    "### final answer",
    "最终答案",
    "答案是",
    "所以答案",
    "因此,最终答案",
    "因此，最终答案",
)
_OPENING_PREFIXES = {opening[:end] for opening in OPENINGS for end in range(len(opening) + 1)}
_BOX = re.compile(r"(?:\$\$?|\\[(\[])?\s*\\boxed\{")
_PARTIAL_BOX = re.compile(r"(?:\$\$?|\\[(\[]|\\)\s*(?:\\?(?:b(?:o(?:x(?:e(?:d)?)?)?)?)?)?$")
HELD_CHARACTERS = 240
_PLAIN = re.compile(r"[^<\\$\n]+")  # text that begins neither an action nor an answer


class Piece(NamedTuple):
    """Some text of a segment, with the segment's action (None before the first one) and number (from 0).

    The piece that opens a segment may be empty.
    """

    action: str | None
    number: int
    text: str


class Splitter:
    """Cuts a reply's text at its actions. The texts of the pieces, after each segment's action, add up to the text fed in."""

    def __init__(self) -> None:
        self._action: str | None = None
        self._number = -1
        self._held = ""

    def feed(self, text: str) -> list[Piece]:
        """Return the pieces that this text completes; what may be the beginning of an action is held for the next call."""
        text = self._held + text
        pieces, at = [], 0
        for match in _ACTION.finditer(text):
            pieces += self._piece(text[at : match.start()])
            self._action = ACTIONS[match[0]]
            self._number += 1
            pieces.append(Piece(self._action, self._number, ""))
            at = match.end()
        rest = text[at:]
        keep = _overlap(rest)
        self._held = rest[len(rest) - keep :]
        return pieces + self._piece(rest[: len(rest) - keep])

    @property
    def holds(self) -> bool:
        """Whether some text is held."""
        return bool(self._held)

    def finish(self) -> list[Piece]:
        """Return the held text: the reply has ended, so it is no action."""
        held, self._held = self._held, ""
        return self._piece(held)

    def _piece(self, text: str) -> list[Piece]:
        if not text:
            return []
        if self._number < 0:
            self._number = 0
        return [Piece(self._action, self._number, text)]


def _overlap(text: str) -> int:
    """Return how many characters at the end of `text` may be the beginning of an action."""
    at = text.rfind("<", max(0, len(text) - max(map(len, ACTIONS)) + 1))
    return len(text) - at if at >= 0 and any(action.startswith(text[at:]) for action in ACTIONS) else 0


@dataclass
class TokenSplitter:
    """Counts a reply's tokens by segment. `actions` maps the ids of the action tokens to their names."""

    actions: Mapping[int, str]
    counts: list[tuple[str | None, int]] = field(default_factory=list)

    def feed(self, ids: Sequence[int]) -> None:
        """Add tokens; an action token belongs to the segment that it opens."""
        for token in ids:
            if token in self.actions:
                self.counts.append((self.actions[token], 1))
            elif self.counts:
                action, count = self.counts[-1]
                self.counts[-1] = (action, count + 1)
            else:
                self.counts.append((None, 1))


class Delta(NamedTuple):
    """New text for the client: reasoning of a segment, or part of the answer (`content`)."""

    content: bool
    action: str | None
    number: int
    text: str


class Reader:
    r"""Separates reasoning from the answer while a reply is generated.

    The answer is the closing statement: from a line that opens like one (see `OPENINGS`), or from `\boxed{`, to the end. It is
    held until it is complete or longer than `HELD_CHARACTERS`: if another action follows, it was not the answer but reasoning.
    Text before the first action is content: a reply without actions has no reasoning.
    """

    def __init__(self) -> None:
        self._splitter = Splitter()
        self._segment = Piece(None, 0, "")
        self._answering = False
        self._open = False  # the answer is longer than what is held; it is passed on as it arrives
        self._line_start = True
        self._held = ""
        self._steady: tuple[bool, str | None, int] | None = None  # what plain text belongs to now, if that is certain

    def feed(self, text: str) -> list[Delta]:
        """Return the deltas of the text so far that are certain."""
        if self._steady is not None and _PLAIN.fullmatch(text):  # as most tokens are
            return [Delta(*self._steady, text)]
        pieces = self._splitter.feed(text)
        deltas = [delta for piece in pieces for delta in self._add(piece)]
        self._steady = None
        if pieces and not self._splitter.holds and not self._held:
            action, number, _ = self._segment
            if action is None or self._open:
                self._steady = (True, action, number)
            elif not self._line_start:
                self._steady = (False, action, number)
        return deltas

    def finish(self) -> list[Delta]:
        """Return the rest: the reply is complete."""
        deltas = [delta for piece in self._splitter.finish() for delta in self._add(piece)]
        held, self._held = self._held, ""
        return deltas + self._delta(self._answering, held)

    def _add(self, piece: Piece) -> list[Delta]:
        deltas: list[Delta] = []
        if piece.number != self._segment.number or piece.action != self._segment.action:
            deltas = self._delta(False, self._held)  # not an answer after all, because another action follows
            self._held, self._answering, self._open, self._line_start = "", False, False, True
            self._segment = piece
            if not piece.text:
                return [*deltas, Delta(False, piece.action, piece.number, "")]
        if piece.action is None or self._open:
            return [*deltas, *self._delta(True, piece.text)]
        self._held += piece.text
        if not self._answering:
            deltas += self._reason()
        if self._answering and len(self._held) > HELD_CHARACTERS:
            deltas += self._delta(True, self._held)
            self._held, self._open = "", True
        return deltas

    def _reason(self) -> list[Delta]:
        """Return the held text as far as it is certainly reasoning; stop where the answer begins."""
        at = 0
        while True:
            if self._line_start:
                stripped = self._held[at:].lstrip()
                line = stripped.lower()
                if line.startswith(OPENINGS):
                    at = len(self._held) - len(stripped)
                    self._answering = True
                    break
                if line in _OPENING_PREFIXES:
                    break  # too short to decide
                self._line_start = False
            end = self._held.find("\n", at)
            rest = self._held[at : end if end >= 0 else len(self._held)]
            if box := _BOX.search(rest):
                at += box.start()
                self._answering = True
                break
            if end < 0:
                partial = _PARTIAL_BOX.search(rest)
                at += partial.start() if partial else len(rest)
                break
            at = end + 1
            self._line_start = True
        reasoning, self._held = self._held[:at], self._held[at:]
        return self._delta(False, reasoning)

    def _delta(self, content: bool, text: str) -> list[Delta]:
        return [Delta(content, self._segment.action, self._segment.number, text)] if text else []


def boxed(text: str) -> str | None:
    r"""Return the content of the last \boxed{...} with balanced braces; None without one. Escaped braces do not count."""
    for match in reversed(list(re.finditer(r"\\boxed\s*\{", text))):
        depth, at = 1, match.end()
        while at < len(text):
            if text[at] == "\\":
                at += 1  # the next character is escaped
            elif text[at] in "{}":
                depth += 1 if text[at] == "{" else -1
                if depth == 0:
                    return text[match.end() : at].strip()
            at += 1
    return None
