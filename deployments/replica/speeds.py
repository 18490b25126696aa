"""How fast a replica's engine reads prompts and generates, learned from its own steps.

A step takes some time in any case, more for each request that gets a token, and more for each token of a prompt that it reads. The
three costs are fitted to what steps took, over periods of `PERIOD_S` in which the engine had work: a long prompt is read in several
steps, and only the last one tells. Older periods fade. The settings count as a measurement of `PRIOR_S` for each cost.
"""

import numpy as np

from deployments.settings import AutoscalingSettings

PERIOD_S = 1.0
LONGEST_STEP_S = 10.0
"""A longer step was no step: the engine was stopped."""
HALF_LIFE_S = 600.0
PRIOR_S = 0.1
LEAST = 0.01
"""No cost is less than this share of its setting."""


class Speeds:
    """The costs of a replica's steps. `count_step` takes what an engine step did."""

    def __init__(self, settings: AutoscalingSettings) -> None:
        self._prior = np.array([settings.step_s, settings.step_per_request_s, 1 / settings.prefill_tokens_per_s])
        self._prior_matrix, self._prior_right = np.diag((PRIOR_S / self._prior) ** 2), PRIOR_S / self._prior * PRIOR_S
        self._matrix, self._right = np.zeros((3, 3)), np.zeros(3)  # of the normal equations, without the settings
        self._last_s: float | None = None
        self._period, self._period_s = [0, 0, 0], 0.0
        self._costs = self._prior

    def count_step(self, at_s: float, generated: int, read: int, works: bool) -> None:
        """Count a step that ended at `at_s` on the engine's clock: requests that got tokens, tokens of prompts that are now read.

        `works` is whether the engine still has requests. If it had none before a step, nobody knows when that step began.
        """
        last_s, self._last_s = self._last_s, at_s if works else None
        if last_s is None or not 0 < at_s - last_s < LONGEST_STEP_S:
            return
        period = self._period
        period[0] += 1
        period[1] += generated
        period[2] += read
        self._period_s += at_s - last_s
        if self._period_s >= PERIOD_S:
            self._end_period()

    def _end_period(self) -> None:
        kept = 0.5 ** (self._period_s / HALF_LIFE_S)
        self._matrix = kept * self._matrix + np.outer(self._period, self._period)
        self._right = kept * self._right + np.multiply(self._period, self._period_s)
        costs = np.linalg.solve(self._matrix + self._prior_matrix, self._right + self._prior_right)
        self._costs = np.maximum(costs, LEAST * self._prior)
        self._period, self._period_s = [0, 0, 0], 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """The inverse of the seconds that one more running request adds to a step."""
        return float(1 / self._costs[1])

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens read in a second."""
        return float(1 / self._costs[2])
