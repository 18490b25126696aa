"""Replies that think first and then answer in a format: JSON, a regex, a choice or a grammar (see `deployments.reasoning.thought`).

The thought goes to `reasoning`, with the statement that closes it, and the answer alone to `content`. Where the answer begins is
read from the tokens; no text can look like it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Self

from vllm.sampling_params import SamplingParams, StructuredOutputsParams

from deployments.reasoning import calls
from deployments.reasoning.coat import Delta, Reader, boxed
from deployments.reasoning.reading import Reading, Vocabulary, vocabulary
from deployments.reasoning.thought import ARGUMENT, answer_begins
from deployments.settings import CoatSettings

SEPARATORS = ("<|im_start|>assistant\n", "<|start_header_id|>assistant<|end_header_id|>\n\n", "<s>", "<|endoftext|>")
"""Separators to choose from: the first whose first token is special in the model's vocabulary, and does not end a turn."""


@dataclass(frozen=True)
class Formats:
    """How a model's replies in a format are made and read.

    Token ids: `separator`, `special`, which an answer may not hold, and `calls`, those of `special` that tool calls may.
    """

    vocabulary: Vocabulary
    separator: list[int]
    special: list[int]
    copy: float
    calls: frozenset[int] = frozenset()

    @classmethod
    def of(cls, tokenizer: Any, settings: CoatSettings) -> Self | None:
        """Return the formats of a model; None if its tokenizer has no token that can begin a separator."""
        known = vocabulary(tokenizer)
        added = tokenizer.get_added_vocab()
        special = sorted({*known.special, *tokenizer.all_special_ids, *added.values()})
        calling = {added[text] for text in (calls.OPENING, calls.CLOSING) if text in added}
        taken = {tokenizer.eos_token_id, *known.actions}
        for separator in [settings.separator] if settings.separator else SEPARATORS:
            ids = list(tokenizer.encode(separator, add_special_tokens=False))
            if ids and ids[0] in known.special and ids[0] not in taken:
                return cls(known, ids, special, settings.copy_weight, frozenset(calling - known.special.keys()))
        return None

    def think_first(self, params: SamplingParams) -> dict[str, Any]:
        """Have a request think first, and return what its engine must know of its thought (arguments of `AsyncLLM.generate`)."""
        asked = params.structured_outputs
        assert asked is not None
        rule = {"separator": self.separator, "special": self.special, "copy": self.copy, "is_json": is_json(asked)}
        if (choice := calls.choice(asked)) is not None:
            rule["special"] = [token for token in self.special if token not in self.calls]
            rule |= {"is_json": True, "may_call": choice == calls.TEXT}
        params.extra_args = (params.extra_args or {}) | {ARGUMENT: rule}
        return {"reasoning_ended": False, "reasoning_parser_kwargs": {"separator": self.separator}}


def is_json(asked: StructuredOutputsParams) -> bool:
    """Return whether the format is JSON."""
    return asked.json is not None or bool(asked.json_object)


def has_format(params: Any) -> bool:
    """Return whether structured output is asked for; `params` are vLLM's StructuredOutputsParams or None."""
    return params is not None and not params.all_constraints_none()


def thinks_first(request: Any) -> bool:
    """Return whether a reply is read as a thought and an answer in a format. `request` is one of vLLM's, or one of ours."""
    return bool(getattr(request, "parsed", True)) and has_format(request.extract_structured_outputs())


class ChoosingReading(Reading):
    """One reply that may end with tool calls: a chain, read as always, and behind a separator what the model chose.

    Arguments as in `Reading`. The separator and all behind it count as answer.
    """

    def __init__(self, formats: Formats, planted: Sequence[int] = (), *, echo: bool = False, late: bool = False) -> None:
        super().__init__(formats.vocabulary, planted, echo=echo, late=late)
        self._separator = formats.separator[0]
        self._hides = len(formats.vocabulary.decode(formats.separator[1:]))
        self._behind: list[str] | None = None

    @property
    def behind(self) -> str:
        """The text behind the separator, as far as it has come."""
        return "".join(self._behind or ())[self._hides :]

    def feed(self, text: str, ids: Sequence[int]) -> list[Delta]:
        """Read more tokens, and the text that came with them. Return what is certain of the chain."""
        if self._behind is None:
            return super().feed(text, ids)
        self._behind += [part for part in self._tokens.cut(text, ids) if isinstance(part, str)]
        return []

    def finish(self) -> list[Delta]:
        """Return the rest: the reply is complete."""
        if self._behind is None:
            return super().finish()
        self._behind.append(self._tokens.rest())
        return []

    def _pass(self, index: int) -> list[Delta]:
        if self._behind is not None:
            return []
        if self.ids[index] != self._separator:
            return super()._pass(index)
        deltas = self._keep(self._reader.finish())
        self._close(index)
        self._ended, self._behind = True, []
        self._reader = _Sink(self._reader.number, self._behind)
        return deltas


class _Sink(Reader):
    """Takes the text that comes with a separator and belongs behind it."""

    def __init__(self, number: int, texts: list[str]) -> None:
        super().__init__()
        self.number, self._texts = number, texts

    def feed(self, text: str) -> list[Delta]:
        self._texts.append(text)
        return []


class FormattedReading(Reading):
    """One reply in a format as read so far: a thought, a separator, and the answer.

    All of the thought is thought, its closing statement too, and the separator's tokens count as its. `planted` as in `Reading`.
    """

    def __init__(self, formats: Formats, planted: Sequence[int] = ()) -> None:
        super().__init__(formats.vocabulary)
        self._formats = formats
        self._action: str | None = None
        self._number = -1  # the segment's; -1 before the first
        self._starts: list[int] = []  # the first token of each segment
        self._shown: list[Delta] = []
        self._separator: int | None = None  # characters of the separator that have not come; None in the thought
        self._before = formats.vocabulary.decode(planted)
        self._planted_first: list[Delta] = []
        if planted:
            self.planted = 1
            self._planted_first = self._open([name for token in planted if (name := formats.vocabulary.actions.get(token))][-1], 0)

    def feed(self, text: str, ids: Sequence[int]) -> list[Delta]:
        """Read more tokens, and the text that came with them. Return what is certain."""
        self._planted_first, deltas = [], self._planted_first
        for part in self._tokens.cut(text, ids):
            deltas += self._text(part) if isinstance(part, str) else self._token(part)
        self._shown += deltas
        return deltas

    def finish(self) -> list[Delta]:
        """Return the rest: the reply is complete."""
        self._planted_first, deltas = [], self._planted_first
        if rest := self._tokens.rest():
            deltas += self._text(rest)
        self._shown += deltas
        return deltas

    @property
    def content(self) -> str:
        """The text of the answer."""
        return "".join(delta.text for delta in self._shown if delta.content)

    @property
    def answer(self) -> str | None:
        """What the last box of the thought holds; None without one."""
        return boxed(self._before + "".join(delta.text for delta in self._shown if not delta.content))

    @property
    def thought_tokens(self) -> int:
        """The number of tokens before the answer, including those of the separator."""
        begins = answer_begins(self.ids, self._formats.separator)
        return len(self.ids) if begins is None else min(begins, len(self.ids))

    def segments(self) -> list[dict[str, Any]]:
        """Return the segments: `action`, and `text` and `tokens` of their thought. The first may go on from the prompt."""
        texts: list[list[str]] = [[] for _ in self._starts]
        for delta in self._shown:
            if not delta.content and delta.number >= 0:
                texts[delta.number].append(delta.text)
        ends = [*self._starts[1:], self.thought_tokens]
        return [
            {"action": action, "text": "".join(text), "tokens": end - start}
            for action, text, start, end in zip(self.actions, texts, self._starts, ends, strict=False)
        ]

    def _open(self, action: str, index: int) -> list[Delta]:
        """Begin a segment at a token."""
        self._action, self._number = action, self._number + 1
        self.actions.append(action)
        self._starts.append(index)
        return [Delta(False, action, self._number, "")]

    def _token(self, index: int) -> list[Delta]:
        """Pass a special token."""
        token, separator = self.ids[index], self._formats.separator
        if self._separator is None and token == separator[0]:
            self._separator = len(self._formats.vocabulary.decode(separator[1:]))
        elif self._separator is None and (action := self._formats.vocabulary.actions.get(token)):
            return self._open(action, index)
        return []

    def _text(self, text: str) -> list[Delta]:
        if self._separator is None:
            return [Delta(False, self._action, self._number, text)]
        answer = text[self._separator :]
        self._separator -= len(text) - len(answer)
        return [Delta(True, self._action, self._number, answer)] if answer else []


class _Number(str):
    """A number of a JSON text, in a form that is the same for equal numbers; it is written without quotes."""

    __slots__ = ()

    def __new__(cls, written: str) -> Self:
        try:
            sign, digits, exponent = Decimal(written).as_tuple()
        except InvalidOperation:  # an exponent of more than 18 digits
            return super().__new__(cls, written)
        figures = "".join(map(str, digits)).lstrip("0")
        stripped = figures.rstrip("0")
        if not stripped:
            return super().__new__(cls, "0")
        return super().__new__(cls, f"{'-' * sign}{stripped}e{int(exponent) + len(figures) - len(stripped)}")

    __repr__ = str.__str__


class FormattedAnswers:
    """The answers of the samples of a vote in a format. Equal JSON values agree, whatever the order of their members."""

    def __init__(self, formats: Formats, asked: StructuredOutputsParams) -> None:
        self._formats, self._is_json = formats, is_json(asked)

    def reading(self, prompt: Sequence[int]) -> FormattedReading:
        """Return the reading of a sample of which nothing has come."""
        return FormattedReading(self._formats, self._formats.vocabulary.planted(prompt))

    def key(self, answer: str) -> str | None:
        """Return what equal JSON values have in common; None where the format is not JSON."""
        if not self._is_json:
            return None
        try:
            value = json.loads(answer, parse_float=_Number, parse_int=_Number, object_pairs_hook=_members)
            return f"JSON {value!r}"
        except (ValueError, RecursionError):
            return None


def _members(pairs: list[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(dict(pairs).items()))
