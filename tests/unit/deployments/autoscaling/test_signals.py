"""The fleet at one moment, of what its replicas report."""

from deployments.autoscaling.signals import Report, gather


def test_fresh_reports_add_up_and_stale_ones_count_for_nothing() -> None:
    reports = [
        Report(at_s=99.0, running=10, waiting=1, arrivals_per_s=1.0, queue_time_s=0.5),
        Report(at_s=98.0, running=20, kv_cache_usage=0.4, arrivals_per_s=2.0, queue_time_s=0.25),
        Report(at_s=50.0, running=10, queue_time_s=9.0),
    ]
    signals = gather(reports, now_s=100.0, target=4, ready=3, unplaced=3, arrivals_unplaced_per_s=0.5)
    assert (signals.target, signals.ready, signals.reporting) == (4, 3, 2)
    assert (signals.running, signals.waiting, signals.unplaced, signals.ongoing) == (30, 1, 3, 34)
    assert (signals.arrivals_per_s, signals.kv_cache_usage) == (3.5, 0.4)
    assert signals.queue_time_s == 0.5, "the longest"


def test_without_reports_all_is_nothing() -> None:
    signals = gather([], now_s=100.0, target=1, ready=0, unplaced=2)
    assert (signals.reporting, signals.ongoing, signals.queue_time_s) == (0, 2, 0)
