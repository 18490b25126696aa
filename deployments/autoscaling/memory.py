"""What the autoscaler remembers from one decision to the next: an immutable value, and the function that makes the next one.

It learns the arrivals over time, the tokens of a prompt and of a reply, what one more request costs a replica in time per token and
in KV cache, and how long a replica takes to start.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from deployments.settings import AutoscalingSettings

if TYPE_CHECKING:
    from deployments.autoscaling.signals import Signals

BIN_S = 5.0
BINS = 240  # 20 minutes
SAMPLE_S = 15.0
SAMPLES = 240  # an hour
SMOOTHED_S = 30.0
HALF_LIFE_S = 600.0  # of the sums from which `Costs` are computed
PRIOR_S = 1.0  # the settings count as a measurement of this length, at each of two points
LONGEST_STEP_S = 60.0  # a longer gap between two decisions says nothing about what happened in it


@dataclass(frozen=True)
class Memory:
    """Everything that persists between decisions.

    `arrived` and `needed` have a value per bin of `BIN_S`, the oldest first: the requests that arrived, and the most replicas
    that the load needed. `rate` is the smoothed arrivals per second, and `rates` its values every `SAMPLE_S` of the last hour.
    `costs` are decaying sums over time (see `Costs`). `launches` are the times and counts of the replicas that are starting.
    """

    at_s: float | None = None
    busy_s: float = 0.0
    bin_began_s: float = 0.0
    bin_arrived: float = 0.0
    bin_needed: int = 0
    arrived: tuple[float, ...] = ()
    needed: tuple[int, ...] = ()
    rate: float = 0.0
    sampled_s: float = 0.0
    rates: tuple[float, ...] = ()
    ready: int = 0
    target: int = 0
    launches: tuple[tuple[float, int], ...] = ()
    startup_s: float | None = None
    costs: tuple[float, ...] = (0.0,) * 10


@dataclass(frozen=True)
class Costs:
    """What one request costs, computed from a memory's sums; the settings count as two seconds of measurements.

    A replica with `n` running requests takes `step_s + n * step_per_request_s` to generate a token of each.
    """

    step_s: float
    step_per_request_s: float
    tokens_per_request: float
    prompt_tokens_per_request: float
    kv_per_request: float

    @classmethod
    def read(cls, memory: Memory, settings: AutoscalingSettings) -> "Costs":
        """Return the costs: a straight line fitted to the time per token over running requests, and ratios of sums."""
        weight, n, nn, t, nt, kv, running, generated, read, ended = memory.costs
        for prior_n in (1.0, 100.0):
            prior_t = settings.step_s + prior_n * settings.step_per_request_s
            weight, n, nn = weight + PRIOR_S, n + PRIOR_S * prior_n, nn + PRIOR_S * prior_n**2
            t, nt = t + PRIOR_S * prior_t, nt + PRIOR_S * prior_n * prior_t
        slope = max((weight * nt - n * t) / (weight * nn - n * n), settings.step_per_request_s / 100)
        return cls(
            step_s=max((t - slope * n) / weight, 0.0),
            step_per_request_s=slope,
            tokens_per_request=(generated + 10 * settings.tokens_per_request) / (ended + 10),
            prompt_tokens_per_request=read / (ended + 10),
            kv_per_request=kv / running if running else 0.0,
        )


def learn(memory: Memory, signals: "Signals") -> Memory:
    """Return the memory after `signals`. What they report is assumed to have held since the previous decision."""
    if memory.at_s is None:
        memory = replace(memory, at_s=signals.now_s, busy_s=signals.now_s, bin_began_s=signals.now_s, ready=signals.ready)
        memory = replace(memory, rate=signals.arrivals_per_s, sampled_s=signals.now_s)
    assert memory.at_s is not None
    step_s = min(max(signals.now_s - memory.at_s, 0.0), LONGEST_STEP_S)
    memory = _count_arrivals(memory, signals, step_s)
    memory = _sample_rate(memory, signals, step_s)
    memory = _watch_starts(memory, signals)
    if signals.ongoing or signals.arrivals_per_s or not signals.ready:  # a replica that is starting was needed
        memory = replace(memory, busy_s=signals.now_s)
    return replace(memory, at_s=signals.now_s, costs=_add_costs(memory.costs, signals, step_s))


def _count_arrivals(memory: Memory, signals: "Signals", step_s: float) -> Memory:
    """Return the memory with the bins closed that have passed, each with its share of the arrivals."""
    began_s, arrived, needed = memory.bin_began_s, list(memory.arrived), list(memory.needed)
    at_s, count, need = signals.now_s - step_s, memory.bin_arrived, memory.bin_needed
    if at_s - began_s > LONGEST_STEP_S:  # no decision for long: the bins in between are unknown
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


def _sample_rate(memory: Memory, signals: "Signals", step_s: float) -> Memory:
    kept = math.exp(-step_s / SMOOTHED_S)
    memory = replace(memory, rate=kept * memory.rate + (1 - kept) * signals.arrivals_per_s)
    if signals.now_s - memory.sampled_s < SAMPLE_S:
        return memory
    return replace(memory, sampled_s=signals.now_s, rates=(*memory.rates, memory.rate)[-SAMPLES:])


def _watch_starts(memory: Memory, signals: "Signals") -> Memory:
    """Record launches and completed starts; the time from one to the other is a replica's start-up time."""
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
    while (surplus := sum(count for _, count in launches) - starting) > 0:  # cancelled before they were ready, the newest first
        at_s, count = launches.pop()
        if count > surplus:
            launches.append((at_s, count - surplus))
    return replace(memory, launches=tuple(launches), startup_s=startup_s, ready=signals.ready, target=signals.target)


def _add_costs(costs: Sequence[float], signals: "Signals", step_s: float) -> tuple[float, ...]:
    """Return the sums after `step_s` more of these signals."""
    kept = 0.5 ** (step_s / HALF_LIFE_S)
    added = [0.0] * len(costs)
    if signals.reporting and signals.decode_tokens_per_s > signals.running / LONGEST_STEP_S > 0:
        n, t = signals.running / signals.reporting, signals.running / signals.decode_tokens_per_s
        added[:7] = [1.0, n, n * n, t, n * t, signals.kv_cache_usage, signals.running]
    added[7:] = [signals.decode_tokens_per_s, signals.prefill_tokens_per_s, signals.ended_per_s]
    return tuple(kept * old + step_s * new for old, new in zip(costs, added, strict=True))


def dispersion(counts: Sequence[float], window: int) -> float:
    """Return the index of dispersion of counts in windows of `window` bins: 1 for Poisson arrivals, more for bursts.

    It is computed from the differences between neighbouring windows (half an Allan variance), less their mean, so that a trend does
    not count as a burst. It is at least 1, and 1 for fewer than 4 windows.
    """
    sums = [sum(counts[at : at + window]) for at in range(len(counts) % window, len(counts), window)]
    if len(sums) < 4 or not any(sums):
        return 1.0
    steps = [after - before for before, after in pairwise(sums)]
    mean_step = sum(steps) / len(steps)
    variance = sum((step - mean_step) ** 2 for step in steps) / (len(steps) - 1)
    return max(1.0, variance / 2 / (sum(sums) / len(sums)))


def arrivals(memory: Memory) -> float:
    """Return the current arrivals per second: the mean of three minutes, unless shorter times differ from it by more than chance.

    The mean is kept within two standard deviations of the last minute's rate. It is replaced by the rate of the last quarter of a
    minute if that is higher by more than three standard deviations, and by the rate of the last bin if that is higher by more than
    four. The standard deviations are those of the minutes before the last one.
    """
    spread = _spread(memory.arrived[:-12][-120:])
    open_s = memory.at_s - memory.bin_began_s if memory.at_s is not None else 0.0

    def rate(bins: int) -> tuple[float, float]:
        last = memory.arrived[-bins:]
        seconds = max(BIN_S * len(last) + open_s, BIN_S)
        mean = (sum(last) + memory.bin_arrived) / seconds
        return mean, math.sqrt(spread * max(mean, level) / seconds)

    level = 0.0
    level, _ = rate(36)
    minute, deviation = rate(12)
    level = min(max(level, minute - 2 * deviation), minute + 2 * deviation)
    for bins, deviations in ((3, 3), (1, 4)):
        recent, deviation = rate(bins)
        if recent - deviations * deviation > level:
            level = recent
    return level


@lru_cache(maxsize=4)  # bins close every few seconds, decisions are made more often
def _spread(counts: tuple[float, ...]) -> float:
    return dispersion(counts, 3)


def rise(memory: Memory, now_per_s: float, ahead_s: float, share: float) -> float | None:
    """Return a bound on the factor by which arrivals rise within `ahead_s`.

    Of the last hour's moments with about as many arrivals, `share` saw no higher factor. A rise that happened only once does not
    count, because there is no sign that it comes again. None with fewer than 20 such moments (five minutes).
    """
    ahead = max(1, round(ahead_s / SAMPLE_S))
    similar = [(factor, at) for rate, factor, at in _rises(memory.rates, ahead) if 0.7 * now_per_s <= rate <= 1.4 * now_per_s]
    highest, since, until = _quantile(similar, share)
    if until - since <= ahead:
        highest, _, _ = _quantile([(factor, at) for factor, at in similar if not since - ahead <= at <= until], share)
    return highest


def _quantile(rises: list[tuple[float, int]], share: float) -> tuple[float | None, int, int]:
    """Return the factor that `share` of the rises do not exceed, and the first and last moment with that factor or a higher one."""
    if len(rises) < 20:
        return None, 0, 0
    rises = sorted(rises)
    top = rises[min(int(share * len(rises)), len(rises) - 1) :]
    return max(1.0, top[0][0]), min(at for _, at in top), max(at for _, at in top)


@lru_cache(maxsize=4)
def _rises(rates: tuple[float, ...], ahead: int) -> list[tuple[float, float, int]]:
    """Return each moment's rate, the factor from it to the highest rate of the next `ahead` moments, and the moment's number."""
    return [(rate, max(rates[at + 1 : at + 1 + ahead]) / rate, at) for at, rate in enumerate(rates[:-ahead]) if rate]
