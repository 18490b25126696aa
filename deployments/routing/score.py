"""Which replica should get a request: a pure function from the request's work and the replicas' loads to one of them, and why.

A replica's score is the time that a request would cost there, its own and that of the requests there, in seconds:

    prompt tokens to read there, and its own that are not cached / prefill tokens a second     until its first token
    requests there * its own tokens that are not cached / prefill tokens a second              they wait while its prompt is read
    2 * tokens that it and each request there generate together / decode tokens a second       each makes the other's steps longer

The lowest score wins, and ties are broken at random. What all replicas have cached changes no comparison. A prefix that only a few
have is worth what reading it takes, so it spreads to other replicas as soon as those with it are busier by that much.

The samples of one request share a prompt that no cache has before the first of them has been read, so they stay together while
their replica can run them at once. Where nothing is known of the caches, the replica with the fewest requests gets the request.

Nothing here knows Ray or the clock. `cluster.simulate.routing` drives this same function.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple


class Reason(StrEnum):
    """Why a replica was chosen; a closed set, so that it can label a metric."""

    ONLY = "only"  # there is no other
    TOGETHER = "together"  # others of its group are there
    CACHED = "cached"  # more of its prompt is cached there than where it would have gone otherwise
    LOAD = "load"  # the least work
    TIE = "tie"  # several are as good
    REQUESTS = "requests"  # the fewest requests: nothing is known of the caches, or a setting wants it so


@dataclass(frozen=True, slots=True)
class Work:
    """What a request is expected to cost. `blocks` stands for its prompt's KV blocks, by which caches are looked up."""

    prompt_tokens: float = 0.0
    expected_tokens: float = 0.0
    blocks: Any = ()


@dataclass(slots=True)
class Load:
    """A replica's requests. `prefill_tokens` are those of prompts not read yet, `expected_tokens` those still to be generated.

    `decode_tokens_per_s` says how much a running request slows the others down: with one more, a step takes its inverse longer.
    `slots` is how many requests it runs at once; further ones wait. The speeds are measured (`deployments.replica.speeds`).
    """

    requests: float = 0.0
    prefill_tokens: float = 0.0
    expected_tokens: float = 0.0
    prefill_tokens_per_s: float = 8000.0
    decode_tokens_per_s: float = 6000.0
    slots: float = 256.0


class Choice(NamedTuple):
    """The place of the chosen replica among those given, and why."""

    replica: int
    reason: Reason


def score(work: Work, load: Load, cached_tokens: float) -> float:
    """Return what a request would cost on a replica that has so many tokens of its prompt cached, in seconds."""
    uncached = max(work.prompt_tokens - cached_tokens, 0.0)
    requests, own, others = load.requests, work.expected_tokens, max(load.expected_tokens, 0.0)
    # Lengths vary so much that a request's remaining tokens are about exponentially distributed: the shorter of two of them then
    # has ab / (a + b) tokens.
    both = requests * own * others / (requests * own + others) if others and own else 0.0
    return (load.prefill_tokens + (1.0 + requests) * uncached) / load.prefill_tokens_per_s + 2.0 * both / load.decode_tokens_per_s


def choose(
    work: Work,
    loads: Sequence[Load],
    cached: Sequence[float] | None,
    *,
    group: int | None = None,
    random: Callable[[], float],
) -> Choice:
    """Return which of the replicas with these loads, at least one, a request should go to.

    `cached` are the tokens of its prompt in each one's KV cache, or None when nothing is known of the caches. `group` is the place
    of the replica that others of its group went to, if it is among them.
    """
    if len(loads) == 1:
        return Choice(0, Reason.ONLY)
    if group is not None and loads[group].requests < loads[group].slots:
        return Choice(group, Reason.TOGETHER)
    scores = (
        [load.requests for load in loads]
        if cached is None
        else [score(work, load, c) for load, c in zip(loads, cached, strict=True)]
    )
    lowest = min(scores)
    best = [index for index, value in enumerate(scores) if value == lowest]
    index = best[0] if len(best) == 1 else best[int(random() * len(best))]
    if cached is None:
        return Choice(index, Reason.REQUESTS)
    if len(best) > 1:
        return Choice(index, Reason.TIE)
    if cached[index] > min(cached):
        without = min(range(len(loads)), key=lambda other: score(work, loads[other], 0.0))
        if cached[index] > cached[without]:
            return Choice(index, Reason.CACHED)
    return Choice(index, Reason.LOAD)
