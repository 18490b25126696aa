r"""Chain of Action-Thought, read as it arrives: which action each piece of a reply belongs to, and where the answer begins.

Satori opens each segment of its reasoning with a special token: `<|continue|>` (next step), `<|reflect|>` (check what came before),
`<|explore|>` (try another way); it ends with a statement that holds the answer in `\boxed{}` (arXiv 2502.02508). Everything here is
incremental and gives the same result however the text is cut into chunks. `deployments.reasoning.reading` reads tokens by it.
"""

import re
from functools import lru_cache
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
_LONGEST_OPENING = max(map(len, OPENINGS))
_OPENING_PREFIXES = {opening[:end] for opening in OPENINGS for end in range(len(opening) + 1)}
HELD_CHARACTERS = 240
"""An answer of more characters than this is passed on as it arrives."""
SPAN_CHARACTERS = 4096
"""A formula or block of code that is longer than this before its box is no longer kept together."""


class Delta(NamedTuple):
    """New text of a reply: thought, or part of the answer (`content`).

    `action` and `number` (from 0) are those of its segment; they are None and -1 before the first action. The delta that opens a
    segment has no text.
    """

    content: bool
    action: str | None
    number: int
    text: str


def _beginnings(*literals: str) -> str:
    """Return a pattern for text that ends within one of some texts."""
    parts = {literal[:end] for literal in literals for end in range(1, len(literal))}
    return "(?:" + "|".join(re.escape(part) for part in sorted(parts, key=len, reverse=True)) + r")\Z"


_BOX = r"\\(?:boxed|fbox)\s*\{"
_BOX_BEGUN = _beginnings("\\boxed", "\\fbox") + r"|\\(?:boxed|fbox)\s*\Z"
_SPAN_BEGUN = _beginnings("\\begin", "$$", "```") + r"|\\begin\s*(?:\{[A-Za-z]{0,20}\*?)?\Z|\*{1,3}\Z"
_CLOSERS = {"\\[": "\\]", "\\(": "\\)", "$$": "$$", "```": "```", "$": "$", "`": "`", "**": "**"}
_ON_ONE_LINE = ("$", "`", "**")
_NEXT = re.compile(
    rf"(?P<line>\n)|(?P<box>{_BOX})|(?P<skip>\\[$*`])"
    r"|(?P<span>\\\[|\\\(|\$\$|```|\\begin\s*\{(?P<name>[A-Za-z]{1,20}\*?)\})"
    rf"|(?P<wait>{_BOX_BEGUN}|{_SPAN_BEGUN})"
    r"|(?P<inline>\$|`|\*{2,3}(?=[^\s*]))"
)
r"""What in a thought may begin an answer, or something that must not be torn; `wait` is what may be the beginning of it."""
_PLAIN = re.compile(r"[^\\$*`\n]+")  # text that has none of it


class _Span(NamedTuple):
    """A kind of text that is thought or answer as a whole; `events` finds its end, a box, and what may be the beginning of them."""

    opener: str
    events: re.Pattern[str]


@lru_cache(maxsize=64)
def _span(opener: str, closer: str) -> _Span:
    line = r"|(?P<line>\n)" if opener in _ON_ONE_LINE else ""
    begun = rf"{_BOX_BEGUN}|{_beginnings(closer)}" if len(closer) > 1 else _BOX_BEGUN
    if opener == "$":
        begun += r"|\$\Z"  # what follows a dollar sign says whether it is one that closes
    return _Span(opener, re.compile(rf"(?P<box>{_BOX})|(?P<skip>\\[$*`])|(?P<wait>{begun})|(?P<end>{re.escape(closer)}){line}"))


class Reader:
    r"""Separates thought from answer while a reply is generated.

    The answer is the closing statement: from a line that opens like one (see `OPENINGS`), or from a box, to the end. If the box is
    in a formula, in bold text or in code, the answer begins where that begins. It is held until it is complete or longer than
    `HELD_CHARACTERS`: if another action follows, it was not the answer but thought. Text before the first action is content: a
    reply without actions has no thought.
    """

    def __init__(self) -> None:
        self.action: str | None = None
        self.number = -1
        self.answering = False
        self._open = True  # all text is content, and passed on at once
        self._steady = True  # and so is plain text, as content or as thought
        self._held = ""
        self._at = 0  # the held text has been looked at up to here,
        self._start = 0  # and is thought up to here
        self._line_start = True
        self._span: _Span | None = None  # a span that begins at `_start`
        self._before = ""  # text that ended where the held text begins

    @property
    def held(self) -> str:
        """The text that may be thought or answer."""
        return self._held

    def act(self, action: str) -> list[Delta]:
        """Begin a segment."""
        deltas = self._release(False)  # no answer after all, because another action follows
        self.action = action
        self.number += 1
        self.answering = self._open = self._steady = False
        self._at = self._start = 0
        self._line_start, self._span, self._before = True, None, ""
        return [*deltas, Delta(False, action, self.number, "")]

    def feed(self, text: str) -> list[Delta]:
        """Return the deltas that are certain with this text; what may begin an answer is held for the next call."""
        if self._steady and (self._open or _PLAIN.fullmatch(text)):  # as most tokens are
            self._before = text
            return [Delta(self._open, self.action, self.number, text)]
        self._held += text
        deltas = [] if self.answering else self._think()
        if self.answering and len(self._held) > HELD_CHARACTERS:
            deltas += self._release(True)
            self._open = True
        self._steady = self._open or not (self._held or self._line_start)
        return deltas

    def finish(self) -> list[Delta]:
        """Return the rest: the reply is complete."""
        return self._release(self.answering)

    def _release(self, content: bool) -> list[Delta]:
        text, self._held = self._held, ""
        return [Delta(content, self.action, self.number, text)] if text else []

    def _think(self) -> list[Delta]:
        """Return the held text as far as it is certainly thought, up to the answer if that begins in it."""
        goes_on = True
        while goes_on and not self.answering:
            if self._span is not None:
                goes_on = self._read_span(self._span)
            elif self._line_start:
                goes_on = self._read_line_start()
            else:
                goes_on = self._read_text()
        if not self._start:
            return []
        self._before, self._held = self._held[: self._start], self._held[self._start :]
        self._at -= self._start
        self._start = 0
        return [Delta(False, self.action, self.number, self._before)]

    def _read_line_start(self) -> bool:
        """Look whether a line opens the closing statement; return whether that is certain."""
        rest = self._held[self._at :].lstrip()
        line = rest[:_LONGEST_OPENING].lower()
        if line.startswith(OPENINGS):
            self._start = len(self._held) - len(rest)
            self.answering = True
        elif line in _OPENING_PREFIXES:
            return False
        else:
            self._at = self._start = len(self._held) - len(rest)
            self._line_start = False
        return True

    def _read_text(self) -> bool:
        """Look for the next thing that matters, and pass it; return whether it is certain what it is."""
        match = _NEXT.search(self._held, self._at)
        self._at = self._start = match.start() if match else len(self._held)
        if match is None or match.lastgroup == "wait":
            return False
        if match.lastgroup == "box":
            self.answering = True
            return True
        self._at = match.end()
        if match.lastgroup in ("span", "inline") and self._opens(match):
            opener = match[0][:2] if match[0][0] == "*" else match[0]
            self._span = _span(opener, f"\\end{{{match['name']}}}" if match["name"] else _CLOSERS[opener])
        else:
            self._start = self._at
            self._line_start = match.lastgroup == "line"
        return True

    def _opens(self, match: re.Match[str]) -> bool:
        """Return whether a match opens a span: asterisks after a word or a number are powers."""
        if match[0][0] != "*":
            return True
        before = (self._held[: match.start()] or self._before)[-1:]
        return not (before.isalnum() or before == ")")

    def _read_span(self, span: _Span) -> bool:
        """Look for the end of a span, or a box in it, and pass it; return whether it is certain what it is."""
        match = span.events.search(self._held, self._at)
        limit = self._start + SPAN_CHARACTERS
        if (match.start() if match else len(self._held)) >= limit:
            self._at = self._start = max(self._at, limit)
            self._span = None
            return True
        if match is None or match.lastgroup == "wait":
            self._at = match.start() if match else len(self._held)
            return False
        if match.lastgroup == "box":
            self.answering = True
            return True
        if match.lastgroup == "line" and (span.opener != "$" or self._held[self._start + 1 : match.start()].strip()):
            self._at = self._start = match.start()  # it was none
            self._span = None
        elif match.lastgroup == "end":
            self._at = self._start = match.start() if span.opener == "$" and self._begins_here(match.start()) else match.end()
            self._span = None
        else:
            self._at = match.end()
        return True

    def _begins_here(self, at: int) -> bool:
        """Return whether a dollar sign in what another one seems to have opened begins a formula itself: "$5, and $x$"."""
        tight = not self._held[self._start + 1].isspace()
        return tight and self._held[at - 1].isspace() and not self._held[at + 1].isspace()


def read(text: str) -> list[Delta]:
    """Return a complete reply's deltas, from text in which the actions are written out."""
    reader, deltas, at = Reader(), list[Delta](), 0
    for match in _ACTION.finditer(text):
        deltas += reader.feed(text[at : match.start()]) if match.start() > at else []
        deltas += reader.act(ACTIONS[match[0]])
        at = match.end()
    return deltas + (reader.feed(text[at:]) if at < len(text) else []) + reader.finish()


def answer(deltas: list[Delta]) -> str | None:
    """Return what the box of a complete reply's answer holds; None without a box, or where the answer was taken back."""
    last = deltas[-1].number if deltas else -1
    return boxed("".join(delta.text for delta in deltas if delta.content and delta.number == last))


_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\(?!\\(?:boxed|fbox)).|[{}]", re.DOTALL)


def boxed(text: str) -> str | None:
    r"""Return what the last \boxed{...} or \fbox{...} with balanced braces holds; None without one. Escaped braces do not count."""
    opened: list[int] = []  # where what each open brace holds begins; -1 if it is no box's
    begin, end = -1, -1
    for match in _BRACES.finditer(text):
        if match[0][-1] == "{" and match[0] != "\\{":
            opened.append(match.end() if match["box"] else -1)
        elif match[0] == "}" and opened and (start := opened.pop()) > begin:
            begin, end = start, match.start()
    return text[begin:end].strip() if begin >= 0 else None
