"""Is each engine busy, with what, and why do requests go there? From vLLM's own metrics, and ours of routes."""

from deployments.observability import metrics
from monitoring.board import Board, Row, graph
from monitoring.queries import OF_ENGINE, mean, quantile, rate, ratio, total

NONE = "no LLM replica"


def engine(metric: str) -> str:
    """Return a gauge of each engine."""
    return total(metric, "engine", "replica", of=OF_ENGINE)


BATCH = (
    graph(
        "Running",
        "Requests in each engine's batch.",
        "short",
        (engine("vllm:num_requests_running"), "{{engine}} {{replica}}"),
        stacked=True,
        empty=NONE,
    ),
    graph(
        "Waiting",
        "Requests in each engine's queue. A queue for a moment is normal; a lasting one means too few replicas.",
        "short",
        (engine("vllm:num_requests_waiting"), "{{engine}} {{replica}}"),
        stacked=True,
        empty=NONE,
    ),
    graph(
        "Tokens per step",
        "Tokens that an engine computes in one step, including those of prompts: the size of its batches.",
        "short",
        (quantile(0.5, "vllm:iteration_tokens_total", "engine"), "{{engine}} p50"),
        (quantile(0.95, "vllm:iteration_tokens_total", "engine"), "{{engine}} p95"),
    ),
    graph(
        "Tokens generated",
        "Tokens that each engine generates per second.",
        "short",
        (rate("vllm:generation_tokens_total", "engine"), "{{engine}}"),
        stacked=True,
    ),
    graph(
        "Prompt tokens",
        "Prompt tokens that each engine reads per second, including those from the prefix cache.",
        "short",
        (rate("vllm:prompt_tokens_total", "engine"), "{{engine}}"),
        stacked=True,
    ),
    graph(
        "ITL",
        "Median and 99th percentile of the gaps between tokens, as each engine generates them.",
        "s",
        (quantile(0.5, "vllm:inter_token_latency_seconds", "engine"), "{{engine}} p50"),
        (quantile(0.99, "vllm:inter_token_latency_seconds", "engine"), "{{engine}} p99"),
    ),
)

CACHE = (
    graph(
        "KV cache in use",
        "Share of each engine's KV cache in use. At 1, requests wait or are preempted.",
        "percentunit",
        (engine("vllm:kv_cache_usage_perc"), "{{engine}} {{replica}}"),
        empty=NONE,
    ),
    graph(
        "Preemptions",
        "Requests preempted for lack of KV cache, per minute. Their tokens are computed again.",
        "short",
        (f"60 * {rate('vllm:num_preemptions_total', 'engine')}", "{{engine}}"),
    ),
    graph(
        "Prefix cache hits",
        "Share of prompt tokens that were in an engine's prefix cache.",
        "percentunit",
        (ratio(rate("vllm:prefix_cache_hits_total", "engine"), rate("vllm:prefix_cache_queries_total", "engine")), "{{engine}}"),
    ),
    graph(
        "Routes",
        "Requests given to a replica, by why that one: more of the prompt is cached there, samples of the request are there, it has"
        " the least work. `requests`: by their number alone, because caches are not known.",
        "reqps",
        (rate(metrics.ROUTED, "reason"), "{{reason}}"),
        stacked=True,
    ),
)

PHASES = (
    graph(
        "Phases of a request",
        "Mean time that an ended request spent in an engine: in its queue, in prefill, in decode.",
        "s",
        (mean("vllm:request_queue_time_seconds"), "queue"),
        (mean("vllm:request_prefill_time_seconds"), "prefill"),
        (mean("vllm:request_decode_time_seconds"), "decode"),
        stacked=True,
    ),
    graph(
        "Length of requests",
        "Median tokens of prompts and of replies.",
        "short",
        (quantile(0.5, "vllm:request_prompt_tokens"), "prompt"),
        (quantile(0.5, "vllm:request_generation_tokens"), "reply"),
    ),
    graph(
        "Ends",
        "Requests that engines ended, by reason.",
        "reqps",
        (rate("vllm:request_success_total", "finished_reason"), "{{finished_reason}}"),
        stacked=True,
    ),
)

BOARD = Board(
    "satori-engines",
    "Satori / Engines",
    "Is each engine busy, and with what?",
    (Row("Batch", BATCH), Row("KV cache", CACHE), Row("Requests", PHASES)),
)
