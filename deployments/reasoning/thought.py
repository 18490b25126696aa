"""The rule of a request that thinks first and then answers in a format: the thought is free, the answer follows the grammar.

A thought ends where the model would end its turn. The engine writes a separator there instead, and the grammar begins behind it
(`deployments.engine.thought_end` tells vLLM so). The separator begins with a special token that no thought holds: where a model
writes it itself, its thought ends, too. So the place where the answer begins is a function of the tokens alone. In the answer
special tokens are banned: their texts can be written by other tokens, and an action would end the answer or be taken for one.
"""

import itertools
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from deployments.reasoning.limits import Chain, Constraint
from deployments.reasoning.pointer import Pointer, Source, Vocabulary

ARGUMENT = "satori_thought"


@dataclass(frozen=True)
class Format:
    """What the rule needs to know, sent with a request in `extra_args`.

    Token ids: `separator`, and `special` tokens, which an answer may not hold. `copy` is the weight of the pointer (see
    `deployments.reasoning.pointer`), from 0 to 1. `is_json` is whether the answer is JSON. `may_call` is whether it is calls, whose
    arguments are JSON, or the beginning of a text that says nothing.
    """

    separator: list[int]
    special: list[int]
    copy: float
    is_json: bool = True
    may_call: bool = False


def answer_begins(output: Sequence[int], separator: Sequence[int]) -> int | None:
    """Return the index of the answer's first token in the tokens of a reply; None while the thought has not ended."""
    try:
        return output.index(separator[0]) + len(separator)
    except ValueError:
        return None


class Thought:
    """The rule of one request.

    `chain` has the limits of its chain, if any, `end` the tokens that end a turn. `output` is the engine's own list, which grows.
    """

    def __init__(
        self, given: dict[str, Any], output: list[int], chain: Chain | None, end: Sequence[int], vocabulary: Vocabulary | None
    ) -> None:
        self._format = Format(**given)
        self._output, self._chain, self._vocabulary = output, chain, vocabulary
        self._end = [token for token in end if token >= 0]
        self._banned = [token for token in self._format.special if token not in self._end]
        self._begins: int | None = None
        self._read = 0
        self._pointer: Pointer | None = None

    def constraint(self) -> Constraint:
        """Return what the next token may be."""
        if (begins := self._answer_begins()) is None:
            return self._thinking()
        if len(self._output) < begins:
            return Constraint(forced=self._format.separator[len(self._output) - begins])
        return self._answering(begins)

    def answer_after(self, drafts: Sequence[int]) -> Iterator[Constraint | None]:
        """Yield what the next token of the answer may be: now, and after each of these tokens; None before the answer.

        The tokens are read as drafts: the rule itself stays where it is. Those behind a negative one are none.
        """
        yield self._in_answer()
        if drafts:
            draft = copy(self)
            draft._output = list(self._output)
            draft._pointer = self._pointer.copy() if self._pointer else None
            for token in itertools.takewhile(lambda token: token >= 0, drafts):
                draft._output.append(token)
                yield draft._in_answer()

    def _in_answer(self) -> Constraint | None:
        begins = self._answer_begins()
        return None if begins is None or len(self._output) < begins else self._answering(begins)

    def _answer_begins(self) -> int | None:
        """Return the index of the answer's first token; None while the thought has not ended."""
        if self._begins is None:
            if (begins := answer_begins(self._output[self._read :], self._format.separator)) is None:
                self._read = len(self._output)
            else:
                self._begins = begins + self._read
        return self._begins

    def _thinking(self) -> Constraint:
        limited = self._chain.constraint() if self._chain else Constraint()
        marker = self._format.separator[0]
        if limited.forced is not None:
            return limited
        if limited.redirected:  # no end yet: reflections are missing
            return replace(limited, banned=[*limited.banned, marker])
        return Constraint(banned=limited.banned, redirected=self._end, target=marker)

    def _answering(self, begins: int) -> Constraint:
        pointer, output = self._pointer, self._output
        if self._vocabulary is None or not self._format.copy:
            return Constraint(banned=self._banned)
        if pointer is None:
            thought = self._vocabulary.text(output[: begins - len(self._format.separator)]).decode(errors="replace")
            source, self._read = Source.of(thought), begins
            decisive = self._format.copy >= 1
            given = self._format
            pointer = Pointer(
                source, self._vocabulary, self._end, is_json=given.is_json, decisive=decisive, may_call=given.may_call
            )
            self._pointer = pointer
        pointer.feed(output[self._read :])
        self._read = len(output)
        return Constraint(banned=self._banned, preferred=pointer.preferred(), weight=self._format.copy)
