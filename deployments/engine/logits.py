"""The logits processor that applies the rules of requests (`deployments.reasoning.limits`) inside the engine.

This one is for vLLM's first model runner, which vLLM takes on CPUs; see `deployments.engine.logits_v2` for the other one.

Requests without rules cost one look-up in an empty table per engine step.
"""

from functools import partial

import torch
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from deployments.engine.vocabulary import ModelVocabulary
from deployments.reasoning.limits import Constraint
from deployments.reasoning.rules import Rule, rules_of

NEVER = float("-inf")


class CoatLimits(LogitsProcessor):
    """The rules of the requests in the batch, by row. Requests without rules have no entry."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._rules: dict[int, list[Rule]] = {}
        self._vocabulary = partial(ModelVocabulary.of, vllm_config)

    def is_argmax_invariant(self) -> bool:
        """Return False: the rules change greedy sampling, too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests as vLLM moves them between rows."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._rules.pop(row, None)
        for row, params, _, output in batch_update.added:
            self._rules.pop(row, None)
            if rules := rules_of(params.extra_args, output, sorted(params.all_stop_token_ids), self._vocabulary):
                self._rules[row] = rules
        for first, second, direction in batch_update.moved:
            moved, other = self._rules.pop(first, None), self._rules.pop(second, None)
            if moved is not None:
                self._rules[second] = moved
            if other is not None and direction == MoveDirectionality.SWAP:
                self._rules[first] = other

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits, shape (requests, vocabulary), with the rules applied."""
        for row, rules in self._rules.items():
            for rule in rules:
                constrain(logits[row], rule.constraint())
        return logits


def constrain(logits: torch.Tensor, constraint: Constraint) -> None:
    """Apply a constraint to one request's logits in place, shape (vocabulary,)."""
    if constraint.forced is not None:
        _force(logits, constraint.forced)
        return
    if constraint.banned:
        logits[list(constraint.banned)] = NEVER
    if constraint.redirected and logits[constraint.target] != NEVER:
        redirected = list(constraint.redirected)
        logits[constraint.target] = torch.logsumexp(logits[[constraint.target, *redirected]], 0)
        logits[redirected] = NEVER
    for group in constraint.preferred:
        possible = [token for token in group if token < len(logits)]
        if possible and bool(torch.isfinite(logits[possible]).any()):
            _prefer(logits, possible, constraint.weight)
            return


def _prefer(logits: torch.Tensor, group: list[int], weight: float) -> None:
    """Give the tokens of a group the share `weight` of all probability, and of the rest what they had of the whole."""
    kept = logits[group].clone()
    if weight < 1:
        share = torch.exp(torch.logsumexp(kept, 0) - torch.logsumexp(logits, 0)).clamp(1e-30, 1 - 1e-6)
        wanted = weight + (1 - weight) * share
        logits[group] = kept + torch.logit(wanted.double()).to(kept.dtype) - torch.logit(share.double()).to(kept.dtype)
    else:
        logits.fill_(NEVER)
        logits[group] = kept


def _force(logits: torch.Tensor, token: int) -> None:
    """Make `token` the only choice. Its own logit stays, so that its log probability is 0 whatever follows."""
    kept = logits[token].clone()
    logits.fill_(NEVER)
    logits[token] = kept if torch.isfinite(kept) else 0.0
