"""Steering a chain inside the engine: a logits processor for vLLM that keeps to the limits a request sets for its actions.

The limits travel in the sampling parameters (`extra_args["coat"]`, see `deployments.options`) with the token ids they need, so
nothing here knows a tokenizer. Requests without limits cost one look at an empty table an engine step.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

ARGUMENT = "coat"
NEVER = float("-inf")


@dataclass
class Chain:
    """One request's chain so far.

    Token ids: `reflect`, `explore`; `actions` all of them; `end` what ends a turn; `marks` what is in the opening of a box;
    `openings` sequences that begin a closing statement; `answer` what is written when reasoning must end.
    """

    output: list[int]  # vLLM's own list, which grows
    reflect: int
    explore: int
    actions: list[int]
    end: list[int]
    marks: list[int]
    openings: list[list[int]]
    answer: list[int]
    max_reasoning_tokens: int | None = None
    max_reflections: int | None = None
    max_explorations: int | None = None
    min_reflections: int = 0
    _read: int = 0
    _reflections: int = 0
    _explorations: int = 0
    _answering: bool = False
    _written: int = field(default=-1)  # tokens of `answer` that were written; -1 while reasoning

    def apply(self, logits: torch.Tensor) -> None:
        """Change this request's row of logits in place, shape (vocabulary,)."""
        self._catch_up()
        if self._must_answer():
            self._written = max(self._written, 0)
        if 0 <= self._written < len(self.answer):
            wanted = self.answer[self._written]
            kept = logits[wanted].clone()
            logits.fill_(NEVER)
            logits[wanted] = kept if torch.isfinite(kept) else 0.0
            self._written += 1
            return
        if self._written >= 0:
            logits[self.actions] = NEVER
            return
        if self.max_reflections is not None and self._reflections >= self.max_reflections:
            logits[self.reflect] = NEVER
        if self.max_explorations is not None and self._explorations >= self.max_explorations:
            logits[self.explore] = NEVER
        if self._reflections < self.min_reflections:
            closing = self._closing()
            logits[self.reflect] = torch.logsumexp(logits[[self.reflect, *closing]], 0)
            logits[closing] = NEVER

    def _catch_up(self) -> None:
        for token in self.output[self._read :]:
            if token in self.actions:
                self._answering = False
                self._reflections += token == self.reflect
                self._explorations += token == self.explore
            elif token in self.marks:
                self._answering = True
        self._read = len(self.output)

    def _must_answer(self) -> bool:
        return self.max_reasoning_tokens is not None and len(self.output) >= self.max_reasoning_tokens and not self._answering

    def _closing(self) -> list[int]:
        """Return the tokens that would begin the answer here."""
        begun = [s[-1] for s in self.openings if self.output[len(self.output) - len(s) + 1 :] == s[:-1]]
        return [*self.end, *self.marks, *begun]


class CoatLimits(LogitsProcessor):
    """The chains of the requests in the batch that set limits, by their rows."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._chains: dict[int, Chain] = {}

    def is_argmax_invariant(self) -> bool:
        """Tell vLLM that greedy sampling changes too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests as vLLM moves them between rows."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._chains.pop(row, None)
        for row, params, _, output in batch_update.added:
            self._chains.pop(row, None)
            if (chain := chain_of(params, output)) is not None:
                self._chains[row] = chain
        for first, second, direction in batch_update.moved:
            moved, other = self._chains.pop(first, None), self._chains.pop(second, None)
            if moved is not None:
                self._chains[second] = moved
            if other is not None and direction == MoveDirectionality.SWAP:
                self._chains[first] = other

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits, shape (requests, vocabulary), with the limits kept."""
        for row, chain in self._chains.items():
            chain.apply(logits[row])
        return logits


def chain_of(params: SamplingParams, output: list[int]) -> Chain | None:
    """Return the chain of a request that sets limits. Foreign arguments count as none: raising would end the engine."""
    given: Any = (params.extra_args or {}).get(ARGUMENT)
    return Chain(output, **given) if isinstance(given, dict) else None
