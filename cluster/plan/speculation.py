"""Speculation by n-grams: the batch sizes up to which it pays on a card, from the tokens a step that were counted."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cluster.plan.capacity import Replica

Entry = tuple[int, int, int]
"""The first and the last of some batch sizes, and the number of drafts for them."""
CHOICES = (1, 3, 5)
"""The numbers of drafts that a schedule has: vLLM captures CUDA graphs for each."""
WORTH = 1.05
"""The least gain for which drafts are made: below it, what the roofline leaves out may cost more."""


@cache
def read() -> dict[str, Any]:
    """Return speculation.yaml."""
    found: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("speculation.yaml").read_text())
    return found


def measured() -> dict[int, float]:
    """Return the tokens a step by number of drafts, of Satori's replies."""
    rates: dict[int, float] = read()["satori"]
    return rates


def config(drafts: Sequence[Entry]) -> dict[str, Any] | None:
    """Return vLLM's `speculative_config` for a schedule; None for one without drafts.

    With `ngram` instead of `ngram_gpu`, vLLM 0.32.0 would wait for the end of each step before it schedules the next one.
    """
    if not (most := max((number for _, _, number in drafts), default=0)):
        return None
    lengths = {"prompt_lookup_min": read()["shortest"], "prompt_lookup_max": read()["longest"]}
    entries = [list(entry) for entry in drafts]
    return {"method": "ngram_gpu", **lengths, "num_speculative_tokens": most, "num_speculative_tokens_per_batch_size": entries}


def gain(replica: Replica, rates: Mapping[int, float], drafts: int, batch: int, context_tokens: int) -> float:
    """Return how many times as many tokens a second `drafts` drafts give as none, for `batch` requests of that context."""
    return rates[drafts] * replica.step_s(batch, context_tokens) / replica.step_s(batch, context_tokens, drafts)


def schedule(replica: Replica, rates: Mapping[int, float], context_tokens: int, most: int) -> list[Entry]:
    """Return the best number of drafts for each batch size up to `most`: 0 where none gains `WORTH`."""
    entries: list[Entry] = []
    for batch in range(1, most + 1):
        best = max(CHOICES, key=lambda drafts: gain(replica, rates, drafts, batch, context_tokens))
        drafts = best if gain(replica, rates, best, batch, context_tokens) >= WORTH else 0
        first = entries.pop()[0] if entries and entries[-1][2] == drafts else batch
        entries.append((first, batch, drafts))
    return entries
