r"""The boxed answer of a thought, copied into an answer that follows a grammar.

A model writes its result into a box, and then once more in the format that the request asks for. A model that has never seen that
format cannot: it goes on after the last digit, or writes another word. A pointer says which text of the thought fits where the
answer stands now, as a pointer network copies from its input (arXiv 1506.03134, mixed with the model's own words as in arXiv
1704.04368), but with a fixed weight instead of a trained one. What the grammar forbids is never written; the pointer only chooses
among the rest.
"""

import json
import re
from collections.abc import Generator, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Protocol

from deployments.reasoning.coat import ACTIONS, boxed

LONGEST_TEXT = 500
"""Characters of a thought's last statement that are copied at most, where the thought has no box."""
LONGEST_NUMBER = 40
"""A number of the model's own ends after this many characters, where the grammar allows it."""
KEY = "answer"
"""The name of a member where the grammar leaves the name open."""

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_FRACTION = re.compile(
    r"(-?)\s*\\[dt]?frac\s*\{?(-?\d{1,15})\}?\s*\{?(\d{1,15})\}?|(-?)(?<![\d.])(\d{1,15})\s*/\s*(\d{1,15})(?![\d.])"
)
_GROUPS = re.compile(r"(?<=\d)(?:\{,\}|,|\\,|\\!,?|\\ )(?=\d{3}(?!\d))")


class Vocabulary(Protocol):
    """The texts of a model's tokens, without its special tokens."""

    def token(self, text: bytes) -> Sequence[int]:
        """Return the tokens whose text this is."""

    def starting(self, first: bytes) -> Sequence[int]:
        """Return the tokens whose text begins with one of these bytes."""

    def text(self, tokens: Sequence[int]) -> bytes:
        """Return the text of tokens."""


@dataclass(frozen=True)
class Source:
    """What may be copied: `text`, and the same as a JSON string's inside and as a JSON number (None if it is no number)."""

    text: bytes
    string: bytes
    number: bytes | None

    @classmethod
    def of(cls, thought: str) -> "Source | None":
        """Return what an answer may copy from a thought: its last box, or else its last statement."""
        if (answer := boxed(thought)) is None:
            for action in ACTIONS:
                thought = thought.replace(action, "\n\n")
            paragraphs = [paragraph.strip() for paragraph in thought.split("\n\n") if paragraph.strip()]
            if not paragraphs:
                return None
            answer, number = paragraphs[-1][:LONGEST_TEXT], None
        else:
            answer = plain(answer)
            number = as_number(answer)
        escaped = json.dumps(answer, ensure_ascii=False)[1:-1]
        return cls(answer.encode(), escaped.encode(), number.encode() if number else None)


def plain(answer: str) -> str:
    r"""Return a box's content without the LaTeX that only sets the type: `\text{Monday}` is Monday, `1{,}000` is 1000."""
    answer = re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", answer.replace("\\$", "$"))
    return _GROUPS.sub("", answer).strip().strip("$").strip()


def as_number(answer: str) -> str | None:
    r"""Return the one number in an answer as JSON has it (`x = \frac{1}{2}` gives 0.5); None without one, or with several."""
    answer = _GROUPS.sub("", answer).replace("−", "-")
    if found := _FRACTION.search(answer):
        sign, top, bottom = (group for group in found.groups() if group is not None)
        if _NUMBER.search(answer[: found.start()] + answer[found.end() :]) or not int(bottom):
            return None
        value = (-1 if sign else 1) * int(top) / int(bottom)
        return str(int(value)) if value.is_integer() else repr(value)
    numbers = _NUMBER.findall(answer)
    if len(numbers) != 1:
        return None
    whole, dot, rest = numbers[0].partition(".")
    if whole.startswith("-") and re.search(r"[\w)]\s*$", answer[: answer.index(numbers[0])]):
        return None  # `x-3` is no number
    digits = whole.lstrip("-").lstrip("0") or "0"
    return "-" * whole.startswith("-") + digits + dot + rest


class Place:
    """Where a JSON text stands after the bytes fed so far.

    `kind` is "value" (a value begins here), "key" (a member's name begins here), "in_key", "string" and "number" (inside one, of
    which `written` is the part so far), "after" (a value has ended) or "other". With `may_call` it is "choice" up to a brace.
    """

    def __init__(self, *, may_call: bool = False) -> None:
        self.kind = "choice" if may_call else "value"
        self.written = b""
        self.first = True  # nothing of the innermost object or array has been written
        self._stack: list[int] = []
        self._escaped = False

    @property
    def inside(self) -> bool:
        """Whether an object or array is open."""
        return bool(self._stack)

    def copy(self) -> "Place":
        """Return the same place, which moves by itself."""
        made = copy(self)
        made._stack = list(self._stack)
        return made

    def feed(self, text: bytes) -> None:
        """Read more."""
        for byte in text:
            self._byte(byte)

    def _byte(self, byte: int) -> None:
        if self.kind == "choice" and not (byte == ord("{") and self.written.startswith(b"<")):
            self.written += bytes((byte,))
        elif self.kind in ("string", "in_key"):
            if self._escaped:
                self._escaped = False
            elif byte == ord("\\"):
                self._escaped = True
            elif byte == ord('"'):
                self._set("after" if self.kind == "string" else "other")
                return
            self.written += bytes((byte,))
        elif byte in b" \t\n\r":
            if self.kind in ("number", "literal"):
                self._set("after")
        elif byte == ord('"'):
            self._set("in_key" if self.kind == "key" else "string")
        elif byte in b"{[":
            self._stack.append(byte)
            self._set("key" if byte == ord("{") else "value", first=True)
        elif byte in b"}]":
            if self._stack:
                self._stack.pop()
            self._set("after")
        elif byte == ord(","):
            self._set("key" if self._stack and self._stack[-1] == ord("{") else "value")
        elif byte == ord(":"):
            self._set("value")
        else:
            if self.kind == "value":
                self._set("number" if byte in b"-0123456789" else "literal")
            self.written += bytes((byte,))

    def _set(self, kind: str, first: bool = False) -> None:
        self.kind, self.first, self.written = kind, first, b""


class Pointer:
    """Which tokens an answer should go on with.

    `end` are the tokens that end a turn. A `decisive` pointer stands for the model wherever the grammar leaves a choice: values
    that cannot be copied end as soon as they may, and nothing is added that need not be there. Where a model `may_call`, the
    choice is its own; a text that is no call ends with its first token.
    """

    def __init__(
        self,
        source: Source | None,
        vocabulary: Vocabulary,
        end: Sequence[int],
        *,
        is_json: bool,
        decisive: bool,
        may_call: bool = False,
    ) -> None:
        self._source, self._vocabulary, self._end = source, vocabulary, end
        self._decisive = decisive
        self._place = Place(may_call=may_call) if is_json else None
        self._text = b""

    def copy(self) -> "Pointer":
        """Return a pointer at the same place, which reads on by itself."""
        made = copy(self)
        made._place = self._place.copy() if self._place else None
        return made

    def feed(self, tokens: Sequence[int]) -> None:
        """Read the next tokens of the answer."""
        text = self._vocabulary.text(tokens)
        if self._place is None:
            self._text += text
        else:
            self._place.feed(text)

    def preferred(self) -> Iterator[Sequence[int]]:
        """Yield groups of tokens; the first group that has a token which the grammar allows is to be preferred."""
        return self._in_text() if self._place is None else self._in_json(self._place)

    def _in_text(self) -> Iterator[Sequence[int]]:
        source = self._source.text if self._source else b""
        copied = next((size for size in range(len(source), 0, -1) if self._text.endswith(source[:size])), 0)
        if source and copied == len(source):
            yield self._end
            return
        yield from self._tokens(source[copied:])
        if copied:
            yield from self._tokens(source)
        if self._decisive:
            yield self._end

    def _in_json(self, place: Place) -> Iterator[Sequence[int]]:
        source = self._source
        if place.kind == "choice":
            if place.written and not place.written.startswith(b"<"):
                yield self._end
        elif place.kind == "value":
            yield from self._value()
        elif place.kind == "string":
            yield from self._rest(source.string if source else None, place.written, b'"')
        elif place.kind == "number":
            copying = yield from self._rest(source.number if source else None, place.written, b",}]", ends_turn=not place.inside)
            if not copying and len(place.written) >= LONGEST_NUMBER:
                yield from self._closing(b",}]", not place.inside)
        elif self._decisive:
            if place.kind == "in_key":
                yield from self._rest(KEY.encode(), place.written, b'"')
            elif place.kind == "key" and place.first:
                yield from self._tokens(f'"{KEY}"'.encode())
                yield self._vocabulary.starting(b'"')
            elif place.kind == "after":
                yield from self._closing(b"}]", not place.inside)

    def _value(self) -> Iterator[Sequence[int]]:
        source = self._source
        if source and source.number:
            yield from self._tokens(source.number)
        if source:
            yield from self._tokens(b'"' + source.string + b'"')
        if self._decisive:
            yield from self._tokens(b"null")
            yield self._vocabulary.starting(b"]")
            yield self._vocabulary.starting(b"{[")  # rather than a call

    def _rest(
        self, target: bytes | None, written: bytes, closing: bytes, ends_turn: bool = False
    ) -> Generator[Sequence[int], None, bool]:
        """Yield what continues a copy of `target`, or ends it; return whether there is one."""
        copying = target is not None and target.startswith(written)
        if copying and target is not None and (rest := target[len(written) :]):
            yield from self._tokens(rest + closing[:1] if closing == b'"' else rest)
        if copying or self._decisive:
            yield from self._closing(closing, ends_turn)
        return copying

    def _closing(self, closing: bytes, ends_turn: bool) -> Iterator[Sequence[int]]:
        """Yield what ends a value; for a decisive pointer, first what adds nothing behind it."""
        end = self._end if ends_turn else ()
        if self._decisive:
            yield [*self._vocabulary.token(b'"'), *end] if closing == b'"' else [*self._vocabulary.starting(b"}]"), *end]
        yield [*self._vocabulary.starting(closing), *end]

    def _tokens(self, text: bytes) -> Iterator[Sequence[int]]:
        """Yield the tokens that `text` begins with, the longest first."""
        for size in range(min(len(text), 32), 0, -1):
            if tokens := self._vocabulary.token(text[:size]):
                yield tokens
