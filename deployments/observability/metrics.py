"""Every metric of ours, declared once. vLLM's own keep their names (`vllm:*`); ours begin with `satori_` and are in base units.

TTFT is the time to the first token of any kind, TTFAT to the first of the answer, ITL one gap between two tokens, TPOT
(E2E - TTFT) / (n - 1). Each metric is kept by the processes of one or more parts of the application, and each process serves its
own (see `deployments.observability.exposition`). A metric of a model has the label `model`.
"""

from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Sequence
from typing import Any

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, disable_created_metrics

INGRESS, LLM, CONTROLLER = "Ingress", "LLM", "ServeController"

STEPS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50)
SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200)
GAPS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
OVERHEAD = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)

DROPPED = ("handshake", "secret", "version", "malformed")
FEW = 3  # with fewer values, it is quicker to count them one by one
ALL: list["Metric"] = []
_kept: set[str] = set()


class Metric:
    """A declared metric. `unit` is the unit of its values; `parts` are the parts of the application that keep it."""

    def __init__(
        self,
        kind: type[Counter] | type[Gauge] | type[Histogram],
        name: str,
        help: str,
        unit: str,
        *,
        labels: Sequence[str] = (),
        buckets: Sequence[float] = (),
        parts: Sequence[str] = (INGRESS,),
    ) -> None:
        self.kind, self.name, self.help, self.unit = kind, name, help, unit
        self.label_names, self.buckets, self.parts = tuple(labels), tuple(buckets), tuple(parts)
        options: dict[str, Any] = {"buckets": buckets} if kind is Histogram else {}
        self.collector: Any = kind(name, help, labels, registry=None, **options)
        self._series: dict[tuple[str, ...], Any] = {}
        ALL.append(self)

    def labels(self, *values: str) -> Any:
        """Return the series of these label values (none for a metric without labels), quicker than the library's own look-up."""
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = self.collector.labels(*values) if values else self.collector
        return series


def observe_all(series: Any, values: Sequence[float]) -> None:
    """Count many values in a series of a histogram, at a quarter of the cost of `observe` for each (prometheus-client 0.26.0)."""
    if len(values) < FEW:
        for value in values:
            series.observe(value)
        return
    counts: Counts[int] = Counts()
    total, bounds = 0.0, series._upper_bounds
    for value in values:
        total += value
        counts[bisect_left(bounds, value)] += 1
    series._sum.inc(total)
    for place, count in counts.items():
        series._buckets[place].inc(count)


def keep(part: str) -> None:
    """Make this process keep the metrics of a part of the application, and show them with all others that it measures."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # they are a third of all series, and nothing reads them
    for metric in ALL:
        if part in metric.parts and metric.name not in _kept:
            _kept.add(metric.name)
            REGISTRY.register(metric.collector)


# Latency, as clients see it: from a request's arrival at the ingress to the events of its stream going out.
TTFT = Metric(
    Histogram,
    "satori_ttft_seconds",
    "From a stream's arrival to its first token of any kind.",
    "s",
    labels=["model"],
    buckets=SECONDS,
)
TTFAT = Metric(
    Histogram,
    "satori_ttfat_seconds",
    "From a streaming chat's arrival to the first token of its answer.",
    "s",
    labels=["model"],
    buckets=SECONDS,
)
ITL = Metric(
    Histogram, "satori_itl_seconds", "Gaps between the tokens of a stream, as they go out.", "s", labels=["model"], buckets=GAPS
)
TPOT = Metric(
    Histogram, "satori_tpot_seconds", "Time per output token of a stream, after the first.", "s", labels=["model"], buckets=GAPS
)
E2E = Metric(
    Histogram, "satori_e2e_seconds", "From a request's arrival to the end of its reply.", "s", labels=["model"], buckets=SECONDS
)
QUEUE = Metric(
    Histogram,
    "satori_queue_seconds",
    "From a request's arrival until its engine starts it: all waiting, and the way to the engine.",
    "s",
    labels=["model"],
    buckets=SECONDS,
)
OVERHEAD_TTFT = Metric(
    Histogram,
    "satori_overhead_ttft_seconds",
    "What the platform adds to TTFT: the stream's TTFT less the engine's time from its queue to the first token.",
    "s",
    labels=["model"],
    buckets=OVERHEAD,
)
OVERHEAD_ITL = Metric(
    Histogram,
    "satori_overhead_itl_seconds",
    "What the platform adds to a stream's mean ITL: the ITL of tokens as they go out less that of tokens as the engine makes them.",
    "s",
    labels=["model"],
    buckets=OVERHEAD,
)

# Requests and tokens.
REQUESTS = Metric(
    Counter,
    "satori_requests_total",
    "API requests that have ended, by outcome: ok, refused (4xx, 503), failed (5xx or an error in the stream), disconnected.",
    "requests",
    labels=["model", "outcome"],
)
REFUSALS = Metric(
    Counter,
    "satori_refusals_total",
    "API requests that ended with an error, by its code (its status if it has no code of ours).",
    "requests",
    labels=["code"],
)
SLO_REQUESTS = Metric(
    Counter,
    "satori_slo_requests_total",
    "Requests that count for goodput, by whether they were answered within `slo.ttft_s` and `slo.tpot_s`. A client's own errors"
    " and requests whose client left are not counted.",
    "requests",
    labels=["model", "met"],
)
SLO_LIMIT = Metric(
    Gauge, "satori_slo_limit_seconds", "The settings `slo.ttft_s` and `slo.tpot_s`.", "s", labels=["objective"], parts=[INGRESS]
)
TOKENS = Metric(
    Counter,
    "satori_tokens_total",
    "Tokens of requests that have ended: prompt, reasoning, answer (all generated tokens if reasoning is not parsed).",
    "tokens",
    labels=["model", "kind"],
)
LENGTHS_PREDICTED = Metric(
    Counter,
    "satori_lengths_predicted_total",
    "Replies that have ended, by where their length was: below, inside, above the interval of 80 % predicted at their start.",
    "replies",
    labels=["model", "length"],
)
WASTED_TOKENS = Metric(
    Counter,
    "satori_wasted_tokens_total",
    "Tokens generated for replies that nobody got, by reason: disconnect, error (deadlines included).",
    "tokens",
    labels=["model", "reason"],
)
KEY_REQUESTS = Metric(
    Counter, "satori_key_requests_total", "Requests that reached an engine, by name of their API key.", "requests", labels=["key"]
)
KEY_TOKENS = Metric(
    Counter,
    "satori_key_tokens_total",
    "Tokens of requests, by name of their API key: prompt, output.",
    "tokens",
    labels=["key", "kind"],
)
KEY_COST = Metric(
    Counter,
    "satori_key_cost_total",
    "What requests cost, by name of their API key, for keys with a price; in the currency of the file of keys.",
    "currency",
    labels=["key"],
)
LOCAL_LIMITS = Metric(
    Counter,
    "satori_local_limits_total",
    "Requests that their ingress let in or refused by its own counts, as the store of counts (`access.store`) was away.",
    "requests",
)

# Chain of Action-Thought, of complete chat replies.
REFLECTIONS = Metric(
    Histogram,
    "satori_answer_reflections",
    "Reflections in the reasoning of an answer.",
    "actions",
    labels=["model"],
    buckets=STEPS,
)
EXPLORATIONS = Metric(
    Histogram,
    "satori_answer_explorations",
    "Explorations in the reasoning of an answer.",
    "actions",
    labels=["model"],
    buckets=STEPS,
)
COAT_TOKENS = Metric(
    Counter,
    "satori_coat_tokens_total",
    "Tokens of complete chat replies, by what they belong to.",
    "tokens",
    labels=["model", "action"],
)
COAT_ACTIONS = Metric(
    Counter,
    "satori_coat_actions_total",
    "Actions in complete chat replies: continue, reflect, explore.",
    "actions",
    labels=["model", "action"],
)
ANSWERS = Metric(
    Counter,
    "satori_answers_total",
    "Complete chat replies, by whether the answer is in a box.",
    "answers",
    labels=["model", "boxed"],
)
VOTES = Metric(
    Counter,
    "satori_votes_total",
    "Votes on an answer, by whether they were decided before all samples ended.",
    "votes",
    labels=["model", "decided"],
)
VOTE_TOKENS_SAVED = Metric(
    Counter,
    "satori_vote_tokens_saved_total",
    "Tokens not generated because a vote was decided: those by which stopped samples are shorter than the mean finished one.",
    "tokens",
    labels=["model"],
)

# Resilience and saturation.
ROUTED = Metric(
    Counter,
    "satori_routed_total",
    "Requests given to an LLM replica, by why that one: only (there is no other), together (samples of its request are there),"
    " cached (more of its prompt is), load (the least work), tie, requests (the fewest requests, as caches are not known).",
    "requests",
    labels=["reason"],
)
FAILOVER_REQUESTS = Metric(
    Counter, "satori_failover_requests_total", "Times that a request moved away from a lost LLM replica.", "requests"
)
FAILOVER_TOKENS = Metric(
    Counter,
    "satori_failover_tokens_total",
    "Tokens that were delivered before a move and computed again after it, in the prompt or as forced tokens.",
    "tokens",
)
STORED_RESPONSES = Metric(
    Counter, "satori_stored_responses_total", "Stored responses that have ended, by status.", "responses", labels=["status"]
)
STORED_CLAIMS = Metric(
    Counter, "satori_stored_claims_total", "Stored responses that an ingress went on with after their holder was lost.", "responses"
)
STORED_RUNNING = Metric(Gauge, "satori_stored_running", "Stored responses that an ingress is making.", "responses")
BATCHES = Metric(Counter, "satori_batches_total", "Batches that have ended, by status.", "batches", labels=["status"])
BATCH_LINES = Metric(
    Counter, "satori_batch_lines_total", "Lines of batches that have ended: done, failed.", "lines", labels=["outcome"]
)
BATCH_RUNNING = Metric(Gauge, "satori_batch_lines_running", "Lines of batches that an ingress is running.", "lines")
STORE_SECONDS = Metric(
    Histogram, "satori_store_seconds", "Seconds that a transaction of the stored responses took.", "seconds", buckets=GAPS
)
STORE_FAILURES = Metric(
    Counter,
    "satori_store_failures_total",
    "Transactions of the store that failed, since the database is away or full. What is being written waits for the next one.",
    "transactions",
)
CACHE_BLOCKS = Metric(Gauge, "satori_cache_index_blocks", "Blocks of KV caches that an ingress knows of.", "blocks")
CACHE_KNOWN = Metric(Gauge, "satori_cache_known_replicas", "LLM replicas whose KV cache an ingress knows.", "replicas")
CACHE_BATCHES = Metric(Counter, "satori_cache_batches_total", "Changes of KV caches that ingresses were told.", "batches")
CACHE_WHOLES = Metric(
    Counter,
    "satori_cache_resyncs_total",
    "Whole contents of KV caches that ingresses were told, by reason: they had begun to follow a replica, or had missed something.",
    "caches",
    labels=["reason"],
)
CACHE_DROPPED = Metric(
    Counter,
    "satori_cache_dropped_total",
    "Messages on KV caches for which the queue to an ingress was full.",
    "messages",
    parts=[LLM],
)
CACHE_EXPECTED = Metric(
    Counter, "satori_cache_expected_tokens_total", "Prompt tokens that were expected in the chosen replica's KV cache.", "tokens"
)
CHANNEL_DROPPED = Metric(
    Counter,
    "satori_channel_dropped_total",
    "What the token channel dropped, by reason: handshake (connections of strangers), secret (messages with a wrong one),"
    " version (messages of another release), malformed.",
    "drops",
    labels=["reason"],
)
ONGOING = Metric(Gauge, "satori_ongoing_requests", "API requests whose response is not complete.", "requests")
UNASSIGNED = Metric(Gauge, "satori_unassigned_requests", "Requests that wait for an LLM replica.", "requests")
STRAYS = Metric(
    Gauge, "satori_stray_states", "States that an ingress keeps of requests which the engine has no longer: a leak.", "states"
)
HAPROXIES = Metric(
    Gauge,
    "satori_haproxy_processes",
    "HAProxy processes on the ingress' host: one, and those that were replaced but still carry replies.",
    "processes",
)
LOOP_LAG = Metric(
    Histogram,
    "satori_event_loop_lag_seconds",
    "How late the ingress' event loop is, sampled twice a second. All that waits for it, tokens included, is as late.",
    "s",
    buckets=OVERHEAD,
)

# Replicas. Every ingress reports the same of Ray Serve: take the maximum over them.
REPLICAS = Metric(Gauge, "satori_replicas", "Replicas, by Serve's state of them.", "replicas", labels=["deployment", "state"])
REPLICAS_TARGET = Metric(Gauge, "satori_replicas_target", "Replicas that there should be.", "replicas", labels=["deployment"])
CLUSTER_GPUS = Metric(Gauge, "satori_cluster_gpus", "GPUs of the Ray cluster's live nodes.", "gpus")
STARTUP = Metric(
    Gauge,
    "satori_startup_seconds",
    "Seconds of a replica's start-up, by phase; `start` is the whole.",
    "s",
    labels=["phase"],
    parts=[INGRESS, LLM],
)
DEVICES = Metric(
    Gauge,
    "satori_replica_devices",
    "GPUs of an LLM replica; 1 of kind cpu if it has none.",
    "devices",
    labels=["kind"],
    parts=[LLM],
)
NODE_CPU = Metric(
    Gauge, "satori_node_cpu_ratio", "Share of its node's CPU time in use, since the last scrape.", "share", parts=[INGRESS, LLM]
)
NODE_MEMORY = Metric(Gauge, "satori_node_memory_available_bytes", "Available memory of its node.", "bytes", parts=[INGRESS, LLM])
MEMORY = Metric(
    Gauge, "satori_memory_bytes", "Resident memory of a replica, its engine's processes included.", "bytes", parts=[INGRESS, LLM]
)
ASYNCIO_TASKS = Metric(Gauge, "satori_asyncio_tasks", "Tasks of a replica's event loop.", "tasks", parts=[INGRESS, LLM])

# Autoscaling. The policy runs in Serve's controller.
AUTOSCALING_DESIRED = Metric(
    Gauge,
    "satori_autoscaling_desired_replicas",
    "LLM replicas that the autoscaling policy wants.",
    "replicas",
    labels=["deployment"],
    parts=[CONTROLLER],
)
AUTOSCALING_ACTUAL = Metric(
    Gauge,
    "satori_autoscaling_actual_replicas",
    "LLM replicas that the autoscaling policy saw running.",
    "replicas",
    labels=["deployment"],
    parts=[CONTROLLER],
)
AUTOSCALING_DECISIONS = Metric(
    Counter,
    "satori_autoscaling_decisions_total",
    "Changes of the wanted number of replicas, by reason.",
    "decisions",
    labels=["deployment", "reason"],
    parts=[CONTROLLER],
)
