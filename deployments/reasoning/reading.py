"""One reply, read from its tokens: its segments, its answer, and the tokens of each.

A reply arrives as tokens and as the text that they stand for, which may lag behind: a stop string may be in the making, or a
character incomplete. Only the tokens tell an action from text that spells one. So the reading is a function of the token sequence,
however it is cut: in a stream, in a whole reply, in a vote.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from deployments.errors import SatoriError
from deployments.reasoning.coat import ACTIONS, Delta, Reader, boxed

DRIFT = 8
"""How many characters a special token may be from where its tokenizer's text has it."""


@dataclass(frozen=True)
class Vocabulary:
    """What reading takes from a tokenizer.

    `actions` are the names of the actions by token id; `special` are the texts of all special tokens, these among them. `decode`
    returns the text of tokens, without special ones.
    """

    actions: Mapping[int, str]
    special: Mapping[int, str]
    decode: Callable[[Sequence[int]], str]

    def planted(self, prompt: Sequence[int]) -> list[int]:
        """Return the tokens of the chain that a prompt ends within, from its first action; none if it ends a message."""
        first = len(prompt)
        for index in range(len(prompt) - 1, -1, -1):
            if prompt[index] in self.actions:
                first = index
            elif prompt[index] in self.special:
                break
        return list(prompt[first:])


@lru_cache(maxsize=8)
def vocabulary(tokenizer: Any) -> Vocabulary:
    """Return the vocabulary of a Hugging Face tokenizer. Raises SatoriError when it lacks an action."""
    ids = tokenizer.get_vocab()
    if missing := [token for token in ACTIONS if token not in ids]:
        raise SatoriError(f"the model's tokenizer has no {' '.join(missing)}: the model does not write a Chain of Action-Thought")
    actions = {ids[token]: name for token, name in ACTIONS.items()}
    special = {index: str(token) for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    # The library that vLLM's detokenizer uses, so that texts are the same to the character.
    decode = getattr(tokenizer, "backend_tokenizer", tokenizer).decode
    return Vocabulary(actions, special | {ids[token]: token for token in ACTIONS}, decode)


class Tokens:
    """A reply's tokens as they arrive. `cut` finds the special ones in the text."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.ids: list[int] = []
        self._special, self._decode = vocabulary.special, vocabulary.decode
        # Special tokens whose text has not come: the index of each, and the characters between the one before and it.
        self._awaited = deque[tuple[int, int]]()
        self._searched = 0  # the tokens before this have been searched for special ones
        self._since = 0  # characters since the last special token whose text has come
        self._tail = ""  # the beginning of a special token's text

    @property
    def awaits(self) -> bool:
        """Whether a special token's text has not come."""
        return bool(self._awaited)

    def cut(self, text: str, ids: Sequence[int]) -> Sequence[str | int]:
        """Add tokens and the text that came with them; return the text between special tokens, and the indices of those."""
        self.ids += ids
        plain = ids[0] not in self._special if len(ids) == 1 else self._special.keys().isdisjoint(ids)
        if plain and not self._awaited:
            self._since += len(text)
            return (text,) if text else ()
        for index in range(len(self.ids) - len(ids), len(self.ids)):
            if self.ids[index] in self._special:
                self._awaited.append((index, len(self._decode(self.ids[self._searched : index]))))
                self._searched = index + 1
        return self._cut(self._tail + text)

    def rest(self) -> str:
        """Return the text that is left at the reply's end. A special token whose text has not come was a stop, and is no text."""
        tail, self._tail = self._tail, ""
        return tail[: max(self._awaited[0][1] - self._since, 0)] if self._awaited else tail

    def _cut(self, text: str) -> list[str | int]:
        parts: list[str | int] = []
        self._tail = ""
        while self._awaited:
            index, characters = self._awaited[0]
            mark = self._special[self.ids[index]]
            at = self._place(text, mark, characters - self._since)
            if at is None:
                keep = max(characters - self._since - DRIFT, 0)
                text, self._tail = text[:keep], text[keep:]
                break
            parts += [text[:at], index]
            text = text[at:].removeprefix(mark)
            self._since = 0
            self._awaited.popleft()
        parts.append(text)
        self._since += len(text)
        return [part for part in parts if part != ""]

    def _place(self, text: str, mark: str, at: int) -> int | None:
        """Return where a special token's text is, which should be at `at`; None if it has not come."""
        at = max(at, 0)
        if text.startswith(mark, at):
            return at
        near = text.find(mark, max(at - DRIFT, 0), at + DRIFT + len(mark))
        if near >= 0:
            return near
        return at if len(text) > at + DRIFT + len(mark) else None


class Reading:
    """One reply as read so far.

    `planted` are tokens of its chain that were in the prompt: the reply goes on from them. With `echo` they are part of what is
    read, but not of the counts. `late` says that text may lag behind its tokens by more than a character. `actions` are those of
    the segments.
    """

    def __init__(self, vocabulary: Vocabulary, planted: Sequence[int] = (), *, echo: bool = False, late: bool = False) -> None:
        self._vocabulary = vocabulary
        self._late = late
        self._tokens = Tokens(vocabulary)
        self._reader = Reader()
        self.actions: list[str] = []
        self.planted = 0  # how many of them are in the prompt
        self._first: list[Delta] = []
        self._deltas: list[Delta] = []
        self._begun = 0  # the segment's first delta
        self._start = 0  # the segment's first token,
        self._opened = False  # and whether it is an action
        self._counts: list[int] = []  # tokens of thought in each segment before
        self._certain = 0
        self._last = ""  # the text that came last
        self._ended = False
        # Of the segment that the prompt ends within:
        self._hidden = 0  # characters that the reader holds and that are not to be shown
        self._answer_before = ""
        self._characters_before = 0
        if planted:
            self._plant(planted, echo)

    @property
    def ids(self) -> list[int]:
        """The reply's tokens."""
        return self._tokens.ids

    def feed(self, text: str, ids: Sequence[int]) -> list[Delta]:
        """Read more tokens, and the text that came with them. Return what is certain."""
        self._last = text
        parts = self._tokens.cut(text, ids)
        if len(parts) == 1 and isinstance(parts[0], str) and not (self._first or self._hidden):  # as most tokens are
            deltas = self._reader.feed(parts[0])
            self._deltas += deltas
            return deltas
        deltas = self._take_first() if self._first else []
        for part in parts:
            deltas += self._keep(self._reader.feed(part)) if isinstance(part, str) else self._pass(part)
        return deltas

    def finish(self) -> list[Delta]:
        """Return the rest: the reply is complete."""
        deltas = self._take_first() if self._first else []
        if rest := self._tokens.rest():
            deltas += self._keep(self._reader.feed(rest))
        deltas += self._keep(self._reader.finish())
        self._close(len(self.ids))
        self._ended = True
        return deltas

    @property
    def content(self) -> str:
        """The text of the answer, and of what precedes the first action."""
        return "".join(delta.text for delta in self._deltas if delta.content)

    @property
    def answer(self) -> str | None:
        """What the box of the answer holds; None without one."""
        return boxed(self._answer_before + "".join(delta.text for delta in self._deltas[self._begun :] if delta.content))

    @property
    def thought_tokens(self) -> int:
        """The number of tokens of the thought, actions included; while the reply is written, of what is certainly thought."""
        reader = self._reader
        thinking = reader.number >= 0 and not (self._ended or reader.answering or reader.held or self._tokens.awaits)
        if thinking and self._last and not self._late:
            self._certain = sum(self._counts) + len(self.ids) - self._start
        return self._certain

    def segments(self) -> list[dict[str, Any]]:
        """Return the segments: `action`, and `text` and `tokens` of their thought. The first may go on from the prompt."""
        actions: dict[int, str | None] = {}
        texts: dict[int, list[str]] = {}
        for delta in self._deltas:
            if not delta.content:
                actions[delta.number] = delta.action
                texts.setdefault(delta.number, []).append(delta.text)
        counts = self._counts if self._ended else [*self._counts, 0]
        return [{"action": actions[number], "text": "".join(texts[number]), "tokens": counts[number]} for number in sorted(texts)]

    def _plant(self, planted: Sequence[int], echo: bool) -> None:
        reader, begin = self._reader, 0
        for index, token in enumerate(planted):
            if token in self._vocabulary.actions:
                self._first += self._written(planted[begin:index]) + reader.act(self._vocabulary.actions[token])
                begin = index + 1
        self._first += self._written(planted[begin:])
        if echo:
            self.actions = [delta.action for delta in self._first if not (delta.content or delta.text) and delta.action]
            self._counts = [0] * reader.number
            self._characters_before = len(reader.held) + sum(
                len(delta.text) for delta in self._first if delta.number == reader.number and not delta.content
            )
            self.planted = len(self.actions)
            return
        self.planted = 1
        self._hidden = len(reader.held)
        self._answer_before = "".join(delta.text for delta in self._first if delta.content and delta.number == reader.number)
        reader.number = 0
        self.actions = [reader.action] if reader.action else []
        self._first = [Delta(False, reader.action, 0, "")]

    def _written(self, ids: Sequence[int]) -> list[Delta]:
        text = self._vocabulary.decode(ids)
        return self._reader.feed(text) if text else []

    def _take_first(self) -> list[Delta]:
        self._deltas, self._first = self._first, []
        self._begun = next(at for at, delta in enumerate(self._deltas) if delta.number == self._reader.number)
        return self._deltas.copy()

    def _keep(self, deltas: list[Delta]) -> list[Delta]:
        if self._hidden:
            deltas = self._without_hidden(deltas)
        self._deltas += deltas
        return deltas

    def _without_hidden(self, deltas: list[Delta]) -> list[Delta]:
        shown = []
        for delta in deltas:
            text = delta.text[self._hidden :]
            if delta.content:
                self._answer_before += delta.text[: self._hidden]
            self._hidden -= len(delta.text) - len(text)
            if text or not delta.text:
                shown.append(delta._replace(text=text))
        return shown

    def _pass(self, index: int) -> list[Delta]:
        """Pass a special token: begin a segment if it is an action."""
        action = self._vocabulary.actions.get(self.ids[index])
        if action is None:
            return []
        *before, opening = self._reader.act(action)
        before = self._keep(before)
        self._close(index)
        self._begun, self._start, self._opened = len(self._deltas), index, True
        self.actions.append(action)
        self._answer_before, self._characters_before = "", 0
        self._deltas.append(opening)
        return [*before, opening]

    def _close(self, end: int) -> None:
        """Count the tokens of thought in the segment that ends at a token."""
        if self._deltas and self._deltas[-1].number >= 0:
            self._counts.append(self._thought_until(end) - self._start)
        self._certain = sum(self._counts)

    def _thought_until(self, end: int) -> int:
        """Return the index of the segment's first token that is not wholly thought; `end` without an answer."""
        deltas = self._deltas[self._begun :]
        if not any(delta.content for delta in deltas):
            return end
        characters = sum(len(delta.text) for delta in deltas if not delta.content) - self._characters_before
        first = self._start + self._opened
        decode, ids = self._vocabulary.decode, self.ids

        def passes(length: int) -> bool:
            return len(decode(ids[first : first + length])) > max(characters, 0)

        return first - 1 + bisect_left(range(end - first + 1), True, key=passes)


def read(vocabulary: Vocabulary, text: str, ids: Sequence[int]) -> Reading:
    """Return the reading of a complete reply."""
    reading = Reading(vocabulary)
    reading.feed(text, ids)
    reading.finish()
    return reading
