"""Steering a chain inside the engine: a logits processor for vLLM that keeps to the limits a request sets for its actions, and
writes again what a request that moved here from a lost replica had written.

The limits travel in the sampling parameters (`extra_args["coat"]`, see `deployments.options`) with the token ids they need, so
nothing here knows a tokenizer. Requests without limits cost one look at an empty table an engine step.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from deployments import grammar_budget

ARGUMENT = "coat"
REPEAT = "satori_repeat"
"""{"tokens": token ids that a request must write first}; see `deployments.failover`."""
NEVER = float("-inf")


@dataclass
class Limits:
    """What a request sets, and the token ids it takes.

    Token ids: `reflect`, `explore`; `actions` all of them; `end` what ends a turn; `marks` what is in the opening of a box;
    `openings` sequences that begin a closing statement; `answer` what is written when reasoning must end; `before` what the
    chain already has in its prompt, when it goes on after a fail-over.
    """

    reflect: int
    explore: int
    actions: list[int]
    end: list[int]
    marks: list[int]
    openings: list[list[int]]
    answer: list[int]
    before: list[int] = field(default_factory=list)
    max_reasoning_tokens: int | None = None
    max_reflections: int | None = None
    max_explorations: int | None = None
    min_reflections: int = 0


class Chain:
    """One request's chain so far, and what its limits make of the next token."""

    def __init__(self, limits: dict[str, Any], output: list[int]) -> None:
        self._limits = Limits(**limits)
        self._output = output  # vLLM's own list, which grows
        self._read = 0
        self._tokens: list[int] = []
        self._reflections = 0
        self._explorations = 0
        self._answering = False
        self._written = -1  # tokens of the answer that were written; -1 while reasoning
        for token in self._limits.before:
            self._follow(token)

    def apply(self, logits: torch.Tensor) -> None:
        """Change this request's row of logits in place, shape (vocabulary,)."""
        limits = self._limits
        for token in self._output[self._read :]:
            self._follow(token)
        self._read = len(self._output)
        if self._must_answer():
            force(logits, limits.answer[max(self._written, 0)])
            return
        if self._written >= 0:
            logits[limits.actions] = NEVER
            return
        if limits.max_reflections is not None and self._reflections >= limits.max_reflections:
            logits[limits.reflect] = NEVER
        if limits.max_explorations is not None and self._explorations >= limits.max_explorations:
            logits[limits.explore] = NEVER
        if self._reflections < limits.min_reflections:
            closing = self._closing()
            logits[limits.reflect] = torch.logsumexp(logits[[limits.reflect, *closing]], 0)
            logits[closing] = NEVER

    def _follow(self, token: int) -> None:
        limits = self._limits
        if self._must_answer():
            self._written = max(self._written, 0) + 1
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
        return most is not None and len(self._tokens) >= most and not self._answering

    def _closing(self) -> list[int]:
        """Return the tokens that would begin the answer here."""
        limits, written = self._limits, self._tokens
        begun = [s[-1] for s in limits.openings if written[len(written) - len(s) + 1 :] == s[:-1]]
        return [*limits.end, *limits.marks, *begun]


class Repetition:
    """A request that was lost with its replica and writes the same tokens again, whatever it would choose."""

    def __init__(self, tokens: list[int], output: list[int]) -> None:
        self._tokens = tokens
        self._output = output

    def apply(self, logits: torch.Tensor) -> None:
        """Change this request's row of logits in place, shape (vocabulary,)."""
        if (position := len(self._output)) < len(self._tokens):
            force(logits, self._tokens[position])


Rule = Chain | Repetition


def force(logits: torch.Tensor, token: int) -> None:
    """Make `token` the only choice, in place. Its own logit stays, so that its log probability is 0 whatever follows."""
    kept = logits[token].clone()
    logits.fill_(NEVER)
    logits[token] = kept if torch.isfinite(kept) else 0.0


class CoatLimits(LogitsProcessor):
    """The rules of the requests in the batch that have any, by their rows."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._rules: dict[int, list[Rule]] = {}
        grammar_budget.install()  # this is made in the engine's own process, unless a replica has several GPUs

    def is_argmax_invariant(self) -> bool:
        """Tell vLLM that greedy sampling changes too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests as vLLM moves them between rows."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._rules.pop(row, None)
        for row, params, _, output in batch_update.added:
            self._rules.pop(row, None)
            if rules := rules_of(params, output):
                self._rules[row] = rules
        for first, second, direction in batch_update.moved:
            moved, other = self._rules.pop(first, None), self._rules.pop(second, None)
            if moved is not None:
                self._rules[second] = moved
            if other is not None and direction == MoveDirectionality.SWAP:
                self._rules[first] = other

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits, shape (requests, vocabulary), with the rules kept."""
        for row, rules in self._rules.items():
            for rule in rules:
                rule.apply(logits[row])
        return logits


def rules_of(params: SamplingParams, output: list[int]) -> list[Rule]:
    """Return the rules of a request. Foreign arguments (never mappings: vLLM's API takes none) count as no rules."""
    given: dict[str, Any] = params.extra_args or {}
    rules: list[Rule] = []
    if isinstance(given.get(ARGUMENT), dict):
        rules.append(Chain(given[ARGUMENT], output))
    if isinstance(given.get(REPEAT), dict):
        rules.append(Repetition(given[REPEAT]["tokens"], output))
    return rules
