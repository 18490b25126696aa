"""An LLM replica's counts of its load, for the autoscaler, which reads them through Serve (see `deployments.autoscaling.scaler`).

Counts only grow, so the reader gets rates from any two reports, and a missed report costs nothing.
"""

from dataclasses import dataclass
from typing import Any

from deployments.transport.wire import QUEUED, SCHEDULED, Output


@dataclass
class Meter:
    """A replica's counts since it started, under the names by which it reports them.

    `arrived` and `ended` count requests; a request that moved here from a lost replica has arrived before and is not counted again,
    and lines of batches count only when they have ended.
    `generated` counts tokens, `read` counts the prompt tokens of requests that have had their first token, and `preempted` counts
    requests. `queued_s` is the time that the `started` requests, without lines of batches, were queued in the engine.
    """

    arrived: int = 0
    ended: int = 0
    generated: int = 0
    read: int = 0
    preempted: int = 0
    started: int = 0
    queued_s: float = 0.0

    def count_start(self, output: Output, prompt_tokens: int, deferred: bool = False) -> None:
        """Count a request's start, from its first output; a `deferred` one is a line of a batch."""
        self.read += prompt_tokens
        if deferred:
            return
        self.started += 1
        times = {event.type: event.timestamp for event in reversed(output.events or ())}  # the first of each
        if QUEUED in times and SCHEDULED in times:
            self.queued_s += times[SCHEDULED] - times[QUEUED]

    def count_step(self, stats: dict[str, Any]) -> None:
        """Count from the engine's statistics of a step. Preemptions show only with prefix caching."""
        self.preempted += stats["prefix_cache_stats"]["preempted_requests"]
