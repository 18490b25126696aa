"""PromQL built from declared metrics, so that no query can name a metric that does not exist.

`$__rate_interval` and the variables (`$model` and so on) are Grafana's. A deployment's counters are in several processes, which
come and go. Each counter's rate is taken first, and then their sum, so that it does not fall below zero when a process leaves.
"""

from collections.abc import Sequence

from deployments.observability.metrics import Metric

RANGE = "$__rate_interval"
OF_MODEL = ('model=~"$model"',)
OF_REPLICA = ('model=~"$model"', 'deployment=~"$deployment"', 'replica=~"$replica"', 'node=~"$node"')
OF_ENGINE = ('model=~"$model"', 'replica=~"$replica"', 'node=~"$node"')
VARIABLES = ("model", "deployment", "node", "replica")


def name(metric: Metric | str) -> str:
    """Return a metric's name; a string is one of vLLM's, of Prometheus' or of an exporter's."""
    return metric if isinstance(metric, str) else metric.name


def select(metric: Metric | str, *where: str, of: Sequence[str] = OF_MODEL, suffix: str = "") -> str:
    """Return a selector of series."""
    matchers = ",".join((*of, *where))
    return f"{name(metric)}{suffix}" + (f"{{{matchers}}}" if matchers else "")


def total(metric: Metric | str, *by: str, where: Sequence[str] = (), of: Sequence[str] = OF_MODEL) -> str:
    """Return the sum of gauges."""
    return f"sum{_by(by)}({select(metric, *where, of=of)})"


def rate(
    metric: Metric | str,
    *by: str,
    where: Sequence[str] = (),
    of: Sequence[str] = OF_MODEL,
    window: str = RANGE,
    suffix: str = "",
) -> str:
    """Return the sum of the rates of counters, per second."""
    return f"sum{_by(by)}(rate({select(metric, *where, of=of, suffix=suffix)}[{window}]))"


def quantile(share: float, metric: Metric | str, *by: str, of: Sequence[str] = OF_MODEL, window: str = RANGE) -> str:
    """Return a quantile of a histogram."""
    return f"histogram_quantile({share}, {rate(metric, 'le', *by, of=of, window=window, suffix='_bucket')})"


def mean(metric: Metric | str, *by: str, of: Sequence[str] = OF_MODEL, window: str = RANGE) -> str:
    """Return the mean of a histogram's values."""
    sums, counts = (rate(metric, *by, of=of, window=window, suffix=suffix) for suffix in ("_sum", "_count"))
    return ratio(sums, counts)


def ratio(part: str, whole: str) -> str:
    """Return a share; no value, rather than a division by zero, while the whole is zero."""
    return f"{part} / ({whole} > 0)"


def _by(labels: Sequence[str]) -> str:
    return f" by ({', '.join(labels)}) " if labels else ""
