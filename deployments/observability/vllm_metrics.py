"""vLLM's own metrics (`vllm:*`, native names and labels), each kept in one place.

Gauges are kept by the replica that they describe, so that they go with it. Counters and histograms are kept by the ingress, so that
they stay, and only grow, when a replica is lost.

The label `engine` is Serve's rank of the replica. Ranks go from 0 without gaps, and a replica that replaces another takes over its
rank. vLLM's logger (0.32.0) makes all metrics, for engines that it knows from the start. Here, a logger is made for an engine when
the engine first appears, and it shows only the kinds of metrics that it is given.
"""

from collections.abc import Callable, Iterable
from copy import copy
from types import SimpleNamespace
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.registry import Collector
from vllm.v1.metrics import loggers
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.prometheus import unregister_vllm_metrics
from vllm.v1.metrics.stats import SchedulerStats

from deployments.observability import metrics
from deployments.patching import patched

PARTS = ("_spec_decoding_cls", "_kv_connector_cls", "_ec_connector_cls", "_perf_metrics_cls")


DRAFTS = "satori_drafts"
"""In a frontend's `additional_config`: how many tokens are drafted a step at most, 0 without speculation."""


class _SharedMetrics:
    """Makes the metrics of one kind: each name once, for any number of loggers. Without a registry, they are not shown."""

    def __init__(self, kind: type, registry: CollectorRegistry | None) -> None:
        self._kind, self._registry = kind, registry
        self._made: dict[str, Any] = {}

    def __call__(self, name: str, documentation: str, **options: Any) -> Any:
        if name not in self._made:
            self._made[name] = self._kind(name, documentation, registry=self._registry, **options)
        return self._made[name]


def _logger_maker(registry: CollectorRegistry, *shown: type) -> Callable[[Any, int], PrometheusStatLogger]:
    """Return a function that makes vLLM's logger for an engine's index; only the `shown` kinds are in the registry."""
    makers = {
        f"_{kind.__name__.lower()}_cls": _SharedMetrics(kind, registry if kind in shown else None)
        for kind in (Gauge, Counter, Histogram)
    }
    parts = {name: type("Part", (getattr(PrometheusStatLogger, name),), makers) for name in PARTS}
    logger = type("EngineLogger", (PrometheusStatLogger,), makers | parts)

    def make(config: Any, engine: int) -> PrometheusStatLogger:
        with patched(
            loggers,
            "unregister_vllm_metrics",
            lambda: None,
            why="vLLM 0.32.0 unregisters the metrics of all its loggers when it makes another one",
            until="a logger can be made for engines that appear later",
        ):
            return logger(config, [engine])

    return make


class FrontendMetrics(PrometheusStatLogger):
    """What an ingress's AsyncLLM counts, for any number of engines."""

    def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
        unregister_vllm_metrics()
        self._config = vllm_config
        if drafts := vllm_config.additional_config.get(DRAFTS):  # vLLM counts them where its configuration has speculation
            self._config = copy(vllm_config)
            self._config.speculative_config = SimpleNamespace(num_speculative_tokens=drafts)
        self._make = _logger_maker(REGISTRY, Counter, Histogram)
        self._of = {0: self._make(self._config, 0)}

    def record(self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any | None = None, engine_idx: int = 0) -> None:
        """Count the statistics of one step of an engine."""
        if (logger := self._of.get(engine_idx)) is None:
            logger = self._of[engine_idx] = self._make(self._config, engine_idx)
        if iteration_stats is not None and (gaps := iteration_stats.inter_token_latencies_iter):
            metrics.observe_all(logger.histogram_inter_token_latency[engine_idx], gaps)
            iteration_stats.inter_token_latencies_iter = []
        logger.record(scheduler_stats, iteration_stats, mm_cache_stats, engine_idx)

    def record_admission_rejection(self, reason: str) -> None:
        """Count a request that was refused because the queue was full."""
        self._of[0].record_admission_rejection(reason)

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """Nothing to do: no engine of ours sleeps."""

    def log_engine_initialized(self) -> None:
        """Nothing to do: the replica reports its engine."""


class EngineGauges(Collector):
    """An engine's gauges. They are set with each scrape, not with each step: `latest` returns the statistics of the last step."""

    def __init__(self, config: Any, rank: Callable[[], int], latest: Callable[[], SchedulerStats | None]) -> None:
        self._config, self._rank, self._latest = config, rank, latest
        self._engine = -1

    def collect(self) -> Iterable[Any]:
        """Return the metrics as they are now."""
        if (engine := self._rank()) != self._engine:
            self._engine, self._registry = engine, CollectorRegistry()
            self._logger = _logger_maker(self._registry, Gauge)(self._config, engine)
            self._logger.log_engine_initialized()
        self._logger.record(self._latest() or SchedulerStats(), None, None, engine)
        return self._registry.collect()
