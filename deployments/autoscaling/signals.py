"""The signals of the autoscaling policy: the report of one replica, and the whole fleet at one moment."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Report:
    """What one replica reports. Rates are over the time since its previous report (a second or two).

    `at_s` is the time of the report, by the clock of `Signals.now_s`. `running` and `waiting` are requests in the engine.
    `queued_prompt_tokens` are the prompt tokens of waiting requests. `kv_cache_usage` is 0 to 1. `decode_tokens_per_s` are
    generated tokens, `prefill_tokens_per_s` prompt tokens read. `arrivals_per_s` and `ended_per_s` are requests that arrived at
    this replica, and that left it. `queue_time_s` is the mean time from arrival to first scheduling of the requests that were
    first scheduled since the previous report; 0 without any.

    `deferred_running` and `deferred_waiting` are the lines of batches among the requests. Neither `queued_prompt_tokens` nor
    `arrivals_per_s` nor `queue_time_s` is of them: they come as fast as there is room, and are to wait.
    """

    at_s: float
    running: float = 0.0
    waiting: float = 0.0
    queued_prompt_tokens: float = 0.0
    kv_cache_usage: float = 0.0
    preemptions_per_s: float = 0.0
    decode_tokens_per_s: float = 0.0
    prefill_tokens_per_s: float = 0.0
    arrivals_per_s: float = 0.0
    ended_per_s: float = 0.0
    queue_time_s: float = 0.0
    deferred_running: float = 0.0
    deferred_waiting: float = 0.0


@dataclass(frozen=True)
class Signals:
    """The fleet at one moment. `now_s` is any clock that goes forward.

    `target` replicas are wanted so far, `ready` can take requests, and `reporting` of these have reported lately. The fields of
    `Report` are sums over the reporting replicas, except for `queue_time_s`, which is the longest of theirs. `unplaced` requests
    are at the ingresses and have no replica yet. `arrivals_per_s` counts all requests, including those without a replica.
    """

    now_s: float
    target: int
    ready: int
    reporting: int = 0
    unplaced: float = 0.0
    arrivals_per_s: float = 0.0
    running: float = 0.0
    waiting: float = 0.0
    queued_prompt_tokens: float = 0.0
    kv_cache_usage: float = 0.0
    preemptions_per_s: float = 0.0
    decode_tokens_per_s: float = 0.0
    prefill_tokens_per_s: float = 0.0
    ended_per_s: float = 0.0
    queue_time_s: float = 0.0
    deferred_running: float = 0.0
    deferred_waiting: float = 0.0

    @property
    def ongoing(self) -> float:
        """All known requests: running, waiting and without a replica."""
        return self.running + self.waiting + self.unplaced


def gather(
    reports: Iterable[Report],
    *,
    now_s: float,
    target: int,
    ready: int,
    unplaced: float = 0.0,
    arrivals_unplaced_per_s: float = 0.0,
    stale_after_s: float = 15.0,
) -> Signals:
    """Return the fleet's signals from the `reports` of its replicas; reports older than `stale_after_s` are left out."""
    fresh = [report for report in reports if now_s - report.at_s <= stale_after_s]

    def total(name: str) -> float:
        return float(sum(getattr(report, name) for report in fresh))

    return Signals(
        now_s=now_s,
        target=target,
        ready=ready,
        reporting=len(fresh),
        unplaced=unplaced,
        arrivals_per_s=total("arrivals_per_s") + arrivals_unplaced_per_s,
        running=total("running"),
        waiting=total("waiting"),
        queued_prompt_tokens=total("queued_prompt_tokens"),
        kv_cache_usage=total("kv_cache_usage"),
        preemptions_per_s=total("preemptions_per_s"),
        decode_tokens_per_s=total("decode_tokens_per_s"),
        prefill_tokens_per_s=total("prefill_tokens_per_s"),
        ended_per_s=total("ended_per_s"),
        queue_time_s=max((report.queue_time_s for report in fresh), default=0.0),
        deferred_running=total("deferred_running"),
        deferred_waiting=total("deferred_waiting"),
    )
