"""What the autoscaler remembers from one decision to the next and has learned: a value, and the function that makes the next.

Learned are: arrivals over time, tokens a reply has, what one more request costs a replica in time per token and in KV cache, how
fast it reads prompts, and how long a replica takes to start.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from deployments.settings import AutoscalingSettings

if TYPE_CHECKING:
    from deployments.autoscaling import Signals

BIN_S = 5.0
BINS = 240  # 20 minutes
HALF_LIFE_S = 600.0  # of what a request costs
PRIOR_S = 1.0  # how long the settings count as measured, at each of two points
LONGEST_STEP_S = 60.0  # a longer gap between two decisions says nothing about what happened in it


@dataclass(frozen=True)
class Memory:
    """Everything that persists between decisions, in values that JSON knows; `dump` and `load` are its ways there and back.

    `arrived` and `needed` are of bins of `BIN_S`, the oldest first: requests that arrived, and the most replicas that the load
    needed. `costs` are decaying sums over time (see `Costs`). `launches` are the times and counts of replicas that are starting.
    """

    at_s: float | None = None
    busy_s: float = 0.0
    bin_began_s: float = 0.0
    bin_arrived: float = 0.0
    bin_needed: int = 0
    arrived: tuple[float, ...] = ()
    needed: tuple[int, ...] = ()
    ready: int = 0
    target: int = 0
    launches: tuple[tuple[float, int], ...] = ()
    startup_s: float | None = None
    prefill_tokens_per_s: float | None = None
    costs: tuple[float, ...] = (0.0,) * 10

    def dump(self) -> dict[str, Any]:
        """Return what `load` makes this memory of again."""
        return asdict(self)

    @classmethod
    def load(cls, dumped: Mapping[str, Any]) -> "Memory":
        """Return the memory that was dumped; of nothing, an empty one."""
        lists = {name: tuple(dumped[name]) for name in ("arrived", "needed", "costs") if name in dumped}
        launches = tuple((float(at_s), int(count)) for at_s, count in dumped.get("launches", ()))
        return cls(**{**dumped, **lists, "launches": launches})


@dataclass(frozen=True)
class Costs:
    """What one request costs, read from a memory's sums; settings count as two seconds of measurements.

    A replica with `n` running requests takes `step_s + n * step_per_request_s` for a token of each.
    """

    step_s: float
    step_per_request_s: float
    tokens_per_request: float
    kv_per_request: float
    preemptions_per_request: float

    @classmethod
    def read(cls, memory: Memory, settings: AutoscalingSettings) -> "Costs":
        """Return the costs: a straight line through times per token by running requests, and ratios of sums."""
        weight, n, nn, t, nt, generated, ended, preempted, kv, running = memory.costs
        for prior_n in (1.0, 100.0):
            prior_t = settings.step_s + prior_n * settings.step_per_request_s
            weight, n, nn = weight + PRIOR_S, n + PRIOR_S * prior_n, nn + PRIOR_S * prior_n**2
            t, nt = t + PRIOR_S * prior_t, nt + PRIOR_S * prior_n * prior_t
        slope = max((weight * nt - n * t) / (weight * nn - n * n), settings.step_per_request_s / 100)
        return cls(
            step_s=max((t - slope * n) / weight, 0.0),
            step_per_request_s=slope,
            tokens_per_request=(generated + 10 * settings.tokens_per_request) / (ended + 10),
            kv_per_request=kv / running if running else 0.0,
            preemptions_per_request=preempted / (ended + 10),
        )


def learn(memory: Memory, signals: "Signals", settings: AutoscalingSettings) -> Memory:
    """Return the memory after `signals`. What they report is taken to have held since the decision before."""
    if memory.at_s is None:
        memory = replace(memory, at_s=signals.now_s, busy_s=signals.now_s, bin_began_s=signals.now_s, ready=signals.ready)
    assert memory.at_s is not None
    step_s = min(max(signals.now_s - memory.at_s, 0.0), LONGEST_STEP_S)
    memory = _count_arrivals(memory, signals, step_s)
    memory = _watch_starts(memory, signals)
    if signals.ongoing or signals.arrivals_per_s:
        memory = replace(memory, busy_s=signals.now_s)
    return replace(
        memory,
        at_s=signals.now_s,
        costs=_add_costs(memory.costs, signals, step_s),
        prefill_tokens_per_s=_prefill_speed(memory, signals, settings, step_s),
    )


def _count_arrivals(memory: Memory, signals: "Signals", step_s: float) -> Memory:
    """Close the bins that have passed, each with its share of the arrivals."""
    began_s, arrived, needed = memory.bin_began_s, list(memory.arrived), list(memory.needed)
    at_s, count, need = signals.now_s - step_s, memory.bin_arrived, memory.bin_needed
    if at_s - began_s > LONGEST_STEP_S:  # nobody decided for long: the bins between are unknown
        began_s, arrived, needed, count = at_s, [], [], 0.0
    while signals.now_s - began_s >= BIN_S:
        end_s = began_s + BIN_S
        arrived.append(count + signals.arrivals_per_s * max(end_s - at_s, 0.0))
        needed.append(need)
        began_s, at_s, count, need = end_s, max(at_s, end_s), 0.0, 0
    count += signals.arrivals_per_s * max(signals.now_s - at_s, 0.0)
    return replace(
        memory,
        bin_began_s=began_s,
        bin_arrived=count,
        bin_needed=need,
        arrived=tuple(arrived[-BINS:]),
        needed=tuple(needed[-BINS:]),
    )


def _watch_starts(memory: Memory, signals: "Signals") -> Memory:
    """Note launches and ended starts; the time from one to the other is a replica's start-up time."""
    launches, startup_s = list(memory.launches), memory.startup_s
    for _ in range(signals.ready - memory.ready):
        if not launches:
            break
        at_s, count = launches[0]
        took_s = signals.now_s - at_s
        startup_s = took_s if startup_s is None else 0.7 * startup_s + 0.3 * took_s
        launches[:1] = [(at_s, count - 1)] if count > 1 else []
    starting = max(signals.target - signals.ready, 0)
    if (more := starting - sum(count for _, count in launches)) > 0:
        launches.append((signals.now_s, more))
    while (surplus := sum(count for _, count in launches) - starting) > 0:  # taken back before they were up, the newest first
        at_s, count = launches.pop()
        if count > surplus:
            launches.append((at_s, count - surplus))
    return replace(memory, launches=tuple(launches), startup_s=startup_s, ready=signals.ready, target=signals.target)


def _add_costs(costs: Sequence[float], signals: "Signals", step_s: float) -> tuple[float, ...]:
    """Return the sums after `step_s` with these signals."""
    kept = 0.5 ** (step_s / HALF_LIFE_S)
    added = [0.0] * len(costs)
    if signals.reporting and signals.decode_tokens_per_s > signals.running / LONGEST_STEP_S > 0:
        n, t = signals.running / signals.reporting, signals.running / signals.decode_tokens_per_s
        added = [1.0, n, n * n, t, n * t, 0.0, 0.0, 0.0, signals.kv_cache_usage, signals.running]
    added[5:8] = [signals.decode_tokens_per_s, signals.ended_per_s, signals.preemptions_per_s]
    return tuple(kept * old + step_s * new for old, new in zip(costs, added, strict=True))


def _prefill_speed(memory: Memory, signals: "Signals", settings: AutoscalingSettings, step_s: float) -> float | None:
    """Return how fast a replica reads prompts: it shows when prompts wait although there is room for them."""
    room = signals.kv_cache_usage < 0.8 * signals.reporting and signals.running < 0.9 * settings.max_num_seqs * signals.reporting
    if not (room and signals.reporting and signals.queued_prompt_tokens > signals.prefill_tokens_per_s > 0):
        return memory.prefill_tokens_per_s
    now = signals.prefill_tokens_per_s / signals.reporting
    before = memory.prefill_tokens_per_s
    kept = 0.5 ** (step_s / 60)
    return now if before is None else kept * before + (1 - kept) * now


def dispersion(counts: Sequence[float], window: int) -> float:
    """Return the index of dispersion of counts in windows of `window` bins: 1 for Poisson arrivals, more for bursts.

    From differences between neighbouring windows (half an Allan variance), less their mean, so that a trend is no burst.
    At least 1, and 1 where there are fewer than 4 windows.
    """
    sums = [sum(counts[at : at + window]) for at in range(len(counts) % window, len(counts), window)]
    if len(sums) < 4 or not any(sums):
        return 1.0
    steps = [after - before for before, after in pairwise(sums)]
    mean_step = sum(steps) / len(steps)
    variance = sum((step - mean_step) ** 2 for step in steps) / (len(steps) - 1)
    return max(1.0, variance / 2 / (sum(sums) / len(sums)))


def arrivals(memory: Memory, ahead_s: float) -> tuple[float, float]:
    """Return arrivals a second: those expected in `ahead_s`, and their index of dispersion over windows of that length.

    Expected is what a straight line through the last ten minutes comes to. Where the last minute, or its last quarter, differs
    from the line's now by more than chance (two standard deviations), it counts with that bound.
    """
    counts = memory.arrived
    spread, near, level, growth = _shape(counts, max(1, round(ahead_s / BIN_S)))
    open_s = memory.at_s - memory.bin_began_s if memory.at_s is not None else 0.0
    for bins in (12, 3):
        last = counts[-bins:]
        seconds = max(BIN_S * len(last) + open_s, BIN_S)
        rate = (sum(last) + memory.bin_arrived) / seconds
        chance = 2 * math.sqrt(near * max(rate, level) / seconds)
        level = max(level, rate - chance)
        if bins == 12:
            level = min(level, rate + chance)
    return level + max(growth, 0.0) * ahead_s, spread


@lru_cache(maxsize=8)  # bins close every few seconds, decisions are made more often
def _shape(counts: tuple[float, ...], window: int) -> tuple[float, float, float, float]:
    """Return the dispersion in windows of `window` bins, that in quarters of a minute until a minute ago, and arrivals a second
    now and their growth in a second by a line through the last ten minutes, its slope brought nearer to zero by its standard error.
    """
    spread, near = dispersion(counts, window), dispersion(counts[-132:-12], 3)
    counts = counts[-120:]
    if len(counts) < 12:
        return spread, near, sum(counts) / max(len(counts), 1) / BIN_S, 0.0
    mean, middle = sum(counts) / len(counts), (len(counts) - 1) / 2
    squares = sum((at - middle) ** 2 for at in range(len(counts)))
    slope = sum((at - middle) * count for at, count in enumerate(counts)) / squares
    error = math.sqrt(near * max(mean, 1.0) / squares)
    slope = math.copysign(max(abs(slope) - error, 0.0), slope)
    return spread, near, max(mean + slope * middle, 0.0) / BIN_S, slope / BIN_S**2
