"""vLLM's metrics over several engines: each in one place, with the engine's number."""

from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from vllm.v1.metrics.prometheus import unregister_vllm_metrics
from vllm.v1.metrics.stats import IterationStats, PrefixCacheStats, SchedulerStats
from vllm.v1.spec_decode.metrics import SpecDecodingStats

from deployments.engine.arguments import server_arguments
from deployments.engine.config import frontend_config, prepare
from deployments.observability import metrics
from deployments.observability.vllm_metrics import EngineGauges, FrontendMetrics
from deployments.settings import load


@pytest.fixture(scope="module")
def config() -> Any:
    prepare({"VLLM_TARGET_DEVICE": "cpu"})
    metrics.keep(metrics.INGRESS)  # as an ingress does: it also turns off the times at which counters were made, which are gauges
    return frontend_config(server_arguments(load({"preset": "nano-cpu"})))


@pytest.fixture
def frontend(config: Any) -> Iterator[FrontendMetrics]:
    yield FrontendMetrics(config)
    unregister_vllm_metrics()


def families(registry: Any) -> dict[str, Any]:
    found = text_string_to_metric_families(generate_latest(registry).decode())
    return {family.name: family for family in found if family.name.startswith("vllm:")}


def values(registry: Any, name: str) -> dict[str, float]:
    samples = [sample for family in families(registry).values() for sample in family.samples if sample.name == name]
    return {sample.labels["engine"]: sample.value for sample in samples}


def step(tokens: int, *gaps: float) -> IterationStats:
    made = IterationStats()
    made.num_generation_tokens = tokens
    made.inter_token_latencies_iter = list(gaps)
    return made


def test_counters_stay_with_the_frontend_for_engines_that_come_and_go(frontend: FrontendMetrics) -> None:
    frontend.record(SchedulerStats(5, prefix_cache_stats=PrefixCacheStats(queries=7, hits=3)), step(4, 0.02, 0.02), None, 0)
    frontend.record(None, step(6), None, 2)
    frontend.record(None, step(1), None, 0)
    assert values(REGISTRY, "vllm:generation_tokens_total") == {"0": 5, "2": 6}
    assert values(REGISTRY, "vllm:inter_token_latency_seconds_count") == {"0": 2, "2": 0}
    assert values(REGISTRY, "vllm:prefix_cache_hits_total") == {"0": 3, "2": 0}


def test_drafts_are_counted_where_engines_speculate() -> None:
    """A frontend has no speculation of its own: vLLM's would refuse parameters that the engines can follow."""
    speculation = '{"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3, "prompt_lookup_min": 1}'
    config = frontend_config(server_arguments(load({"preset": "nano-cpu", "engine.speculative_config": speculation})))
    assert config.speculative_config is None
    frontend = FrontendMetrics(config)
    drafted = SpecDecodingStats(2, num_drafts=1, num_draft_tokens=2, num_accepted_tokens=1, num_accepted_tokens_per_pos=[1, 0])
    frontend.record(SchedulerStats(spec_decoding_stats=drafted), step(2), None, 0)
    assert values(REGISTRY, "vllm:spec_decode_num_accepted_tokens_total") == {"0": 1}
    assert values(REGISTRY, "vllm:spec_decode_num_drafts_total") == {"0": 1}
    unregister_vllm_metrics()


def test_no_metric_is_in_both_places(frontend: FrontendMetrics, config: Any) -> None:
    replica = EngineGauges(config, lambda: 1, lambda: None)
    there = {family.name for family in replica.collect() if family.name.startswith("vllm:")}
    here = families(REGISTRY)
    assert not there & set(here)
    assert "gauge" not in {family.type for family in here.values() if any("engine" in sample.labels for sample in family.samples)}
    assert {"vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:cache_config_info"} <= there


def test_gauges_are_as_the_last_step_said_and_follow_the_rank(config: Any) -> None:
    rank, stats = 1, SchedulerStats(num_running_reqs=3, kv_cache_usage=0.25)
    replica = EngineGauges(config, lambda: rank, lambda: stats)

    def running() -> dict[str, float]:
        return {s.labels["engine"]: s.value for f in replica.collect() for s in f.samples if s.name == "vllm:num_requests_running"}

    assert running() == {"1": 3}
    rank, stats = 0, SchedulerStats(num_running_reqs=4)
    assert running() == {"0": 4}
