"""The declarations of metrics: names, units, labels, and counting many values at once."""

import random

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from deployments.observability import metrics

SUFFIXES = {"s": "_seconds", "tokens": "_tokens", "bytes": "_bytes"}
TAKEN = {"deployment", "replica", "node", "instance", "job", "engine", "le", "quantile"}
"""Labels of targets, or with a meaning of their own; `deployment` is ours where it names another than the one that tells."""


@pytest.mark.parametrize("metric", metrics.ALL, ids=lambda metric: metric.name)
def test_names_and_labels_follow_the_rules(metric: metrics.Metric) -> None:
    assert metric.name.startswith("satori_")
    assert metric.name.endswith("_total") == (metric.kind is Counter)
    if suffix := SUFFIXES.get(metric.unit):
        assert suffix in metric.name
    assert metric.kind in (Counter, Gauge, Histogram)
    assert (metric.kind is Histogram) == bool(metric.buckets)
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert metric.help.endswith(".")
    assert not TAKEN - {"deployment"} & set(metric.label_names)
    assert metric.parts


def test_each_name_is_declared_once() -> None:
    assert len({metric.name for metric in metrics.ALL}) == len(metrics.ALL)


def test_many_values_count_as_each_one_would() -> None:
    one, many = (Histogram("h", "", registry=CollectorRegistry(), buckets=metrics.GAPS) for _ in range(2))
    values = [*metrics.GAPS, 0.0, 1e6, *(random.Random(1).expovariate(20) for _ in range(500))]
    for value in values:
        one.observe(value)
    metrics.observe_all(many, values)
    for first, second in zip(one._child_samples(), many._child_samples(), strict=True):
        assert (first.name, first.labels) == (second.name, second.labels)
        if first.name != "_created":
            assert first.value == pytest.approx(second.value)
