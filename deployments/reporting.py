"""What an LLM replica counts of its load for the autoscaler, which reads it through Serve (see `deployments.scaler`).

Counts only ever grow, so the reader gets rates of any two reports, and one that is missed costs nothing.
"""

from dataclasses import dataclass
from typing import Any

from deployments.wire import QUEUED, SCHEDULED, Output


@dataclass
class Meter:
    """A replica's counts since it started, under the names that it reports them by.

    `arrived` and `ended` are requests; those that moved here from a lost replica arrived before. `generated` are tokens,
    `read` tokens of prompts whose request has had its first token, `preempted` requests. `queued_s` is the time that `started`
    requests waited in the engine.
    """

    arrived: int = 0
    ended: int = 0
    generated: int = 0
    read: int = 0
    preempted: int = 0
    started: int = 0
    queued_s: float = 0.0

    def starts(self, output: Output, prompt_tokens: int) -> None:
        """Take a request's first output."""
        self.started += 1
        self.read += prompt_tokens
        times = {event.type: event.timestamp for event in reversed(output.events or ())}  # the first of each
        if QUEUED in times and SCHEDULED in times:
            self.queued_s += times[SCHEDULED] - times[QUEUED]

    def stats(self, stats: dict[str, Any]) -> None:
        """Take what the engine says of a step. Preemptions show with prefix caching only."""
        self.preempted += stats["prefix_cache_stats"]["preempted_requests"]
