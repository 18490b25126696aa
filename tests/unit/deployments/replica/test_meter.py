"""What a replica counts for the autoscaler."""

from dataclasses import asdict

import msgspec
from vllm.v1.metrics.stats import PrefixCacheStats, SchedulerStats

from deployments.replica.meter import Meter
from deployments.transport.wire import QUEUED, SCHEDULED, Event, Output


def test_a_first_output_counts_with_its_prompt_and_the_time_that_it_waited() -> None:
    meter = Meter()
    events = [Event(QUEUED, 10.0), Event(SCHEDULED, 12.5), Event(SCHEDULED, 20.0)]
    meter.count_start(Output("a", [1], events=events), prompt_tokens=7)
    assert asdict(meter) == asdict(Meter(started=1, read=7, queued_s=2.5)), "a preempted request is scheduled twice"
    meter.count_start(Output("b", [1]), prompt_tokens=3)
    assert asdict(meter) == asdict(Meter(started=2, read=10, queued_s=2.5))


def test_a_line_of_a_batch_counts_only_for_what_is_read() -> None:
    meter = Meter()
    meter.count_start(Output("a", [1], events=[Event(QUEUED, 10.0), Event(SCHEDULED, 99.0)]), prompt_tokens=7, deferred=True)
    assert asdict(meter) == asdict(Meter(read=7))


def test_preempted_requests_count() -> None:
    meter = Meter()
    for preempted in (2, 0, 3):
        meter.count_step(msgspec.to_builtins(SchedulerStats(prefix_cache_stats=PrefixCacheStats(preempted_requests=preempted))))
    assert asdict(meter) == asdict(Meter(preempted=5))
