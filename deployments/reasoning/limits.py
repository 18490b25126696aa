"""The rules of one request for its next token: the limits of its Chain of Action-Thought, and the tokens that it must write again.

Limits travel in the sampling parameters (`extra_args["coat"]`, see `deployments.reasoning.request`) with the token ids they need,
so nothing here knows a tokenizer. Nothing here knows tensors either: `deployments.engine.logits` applies a rule to logits.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

ARGUMENT = "coat"
REPEAT = "satori_repeat"
"""{"tokens": token ids that a request must write first}; see `deployments.engine_client.failover`."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the next token may be: only `forced`, if given.

    Otherwise it may be none of `banned`, and `target` replaces each of `redirected` and takes over its probability, unless
    something else, as a grammar, forbids the target. Of `preferred`, the first group with a token that is still possible gets the
    share `weight` of all probability, and its own part of the rest.
    """

    forced: int | None = None
    banned: Sequence[int] = ()
    redirected: Sequence[int] = ()
    target: int = -1
    preferred: Iterable[Sequence[int]] = ()
    weight: float = 0.0


@dataclass
class Limits:
    """The limits that a request sets, and the token ids that are needed to enforce them.

    Token ids: `reflect` and `explore` are these actions, `actions` are all actions; `end` ends a turn; `marks` are in the opening
    of a box; `openings` are sequences that begin a closing statement; `answer` is written when reasoning must end. `planted` is
    the part of the chain that the client put into the prompt: its actions count, its tokens do not. `before` is the part that the
    request has written already and that is in the prompt, too, when it continues after a fail-over.
    """

    reflect: int
    explore: int
    actions: list[int]
    end: list[int]
    marks: list[int]
    openings: list[list[int]]
    answer: list[int]
    planted: list[int] = field(default_factory=list)
    before: list[int] = field(default_factory=list)
    max_reasoning_tokens: int | None = None
    max_reflections: int | None = None
    max_explorations: int | None = None
    min_reflections: int = 0


class Chain:
    """One request's chain so far, and what its limits allow as the next token. `output` is the engine's own list, which grows."""

    def __init__(self, limits: dict[str, Any], output: list[int]) -> None:
        self._limits = Limits(**limits)
        self._output = output
        self._read = 0
        self._tokens: list[int] = []
        self._reflections = 0
        self._explorations = 0
        self._answering = False
        self._written = -1  # tokens of the answer written so far; -1 while reasoning
        for token in self._limits.planted:
            self._note(token)
        for token in self._limits.before:
            self._follow(token)

    def constraint(self) -> Constraint:
        """Return what the next token may be."""
        limits = self._limits
        for token in self._output[self._read :]:
            self._follow(token)
        self._read = len(self._output)
        if self._must_answer():
            return Constraint(forced=limits.answer[max(self._written, 0)])
        if self._written >= 0:
            return Constraint(banned=limits.actions)
        banned = []
        if limits.max_reflections is not None and self._reflections >= limits.max_reflections:
            banned.append(limits.reflect)
        if limits.max_explorations is not None and self._explorations >= limits.max_explorations:
            banned.append(limits.explore)
        redirected = self._closing() if self._reflections < limits.min_reflections else ()
        return Constraint(banned=banned, redirected=redirected, target=limits.reflect)

    def _follow(self, token: int) -> None:
        if self._must_answer():
            self._written = max(self._written, 0) + 1
        self._note(token)

    def _note(self, token: int) -> None:
        limits = self._limits
        if token in limits.actions:
            self._answering = False
            self._reflections += token == limits.reflect
            self._explorations += token == limits.explore
        elif token in limits.marks:
            self._answering = True
        self._tokens.append(token)

    def _must_answer(self) -> bool:
        if self._written >= 0:
            return self._written < len(self._limits.answer)
        most = self._limits.max_reasoning_tokens
        return most is not None and len(self._tokens) - len(self._limits.planted) >= most and not self._answering

    def _closing(self) -> list[int]:
        """Return the tokens that would begin the answer here."""
        limits, written = self._limits, self._tokens
        opening_ends = [s[-1] for s in limits.openings if written[len(written) - len(s) + 1 :] == s[:-1]]
        return list(dict.fromkeys([*limits.end, *limits.marks, *opening_ends]))


class Repetition:
    """The rule of a request that was lost with its replica: it writes the same tokens again, whatever the model would choose."""

    def __init__(self, tokens: list[int], output: list[int]) -> None:
        self._tokens = tokens
        self._output = output

    def constraint(self) -> Constraint:
        """Return what the next token may be."""
        position = len(self._output)
        return Constraint(forced=self._tokens[position] if position < len(self._tokens) else None)
