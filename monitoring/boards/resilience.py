"""What broke, who noticed, and what did it cost?"""

from deployments.observability import metrics
from monitoring import slo
from monitoring.board import Board, Row, graph, stat
from monitoring.queries import quantile, rate, select, total

NOW = (
    stat(
        "Fail-overs in 10 min",
        "Requests that moved away from a lost LLM replica, in mid-stream. Clients do not notice.",
        "short",
        f"round(sum(increase({select(metrics.FAILOVER_REQUESTS)}[10m])))",
        warn=1,
        bad=slo.FAILOVERS,
        empty="no ingress is scraped",
    ),
    stat(
        "Tokens computed again in 10 min",
        "Tokens of moved requests that had to be computed a second time.",
        "short",
        f"round(sum(increase({select(metrics.FAILOVER_TOKENS)}[10m])))",
        empty="no ingress is scraped",
    ),
    stat(
        "Targets down",
        "Processes of the application that Prometheus cannot scrape.",
        "short",
        'count(up{job="satori"} == 0) or vector(0)',
        warn=1,
        bad=2,
    ),
    stat(
        "Stray states",
        "States in an ingress of requests that the engine does not have. More than 0 for a minute is a bug.",
        "short",
        total(metrics.STRAYS),
        warn=1,
        bad=1,
        empty="no ingress is scraped",
    ),
    stat(
        "Waiting for a replica",
        "Requests that no LLM replica has taken yet.",
        "short",
        total(metrics.UNASSIGNED),
        warn=1,
        bad=10,
        empty="no ingress is scraped",
    ),
    stat(
        "Youngest ingress",
        "Time since the newest ingress replica started. A small value is a deploy, a scale-up or a restart.",
        "s",
        'min(time() - process_start_time_seconds{deployment="Ingress"})',
        empty="no ingress is scraped",
    ),
    stat(
        "Youngest LLM replica",
        "Time since the newest LLM replica started. A small value is a deploy, a scale-up or a restart.",
        "s",
        'min(time() - process_start_time_seconds{deployment="LLM"})',
        empty="no LLM replica",
    ),
)

FAULTS = (
    graph(
        "Fail-overs",
        "Requests that moved per minute.",
        "short",
        (f"60 * {rate(metrics.FAILOVER_REQUESTS)}", "requests moved"),
        empty="no ingress is scraped",
    ),
    graph(
        "Tokens for nothing",
        "Tokens per second that were computed again after a move, or that nobody received.",
        "short",
        (rate(metrics.FAILOVER_TOKENS), "computed again"),
        (rate(metrics.WASTED_TOKENS, "reason"), "lost by {{reason}}"),
        stacked=True,
        empty="no ingress is scraped",
    ),
    graph(
        "Refusals by code",
        "Requests that end with an error, by its code; a number is the HTTP status of an error without a code of ours.",
        "reqps",
        (f"{rate(metrics.REFUSALS, 'code')} > 0", "{{code}}"),
        stacked=True,
        empty="none",
        well=True,
    ),
    graph(
        "Requests by outcome",
        "How requests end.",
        "reqps",
        (rate(metrics.REQUESTS, "outcome"), "{{outcome}}"),
        stacked=True,
    ),
    graph(
        "Dropped by the token channel",
        "Drops per second: connections of strangers, and messages that are foreign, from another release or malformed.",
        "short",
        (rate(metrics.CHANNEL_DROPPED, "reason"), "{{reason}}"),
        stacked=True,
        empty="no ingress is scraped",
    ),
    graph(
        "Targets",
        "Processes that Prometheus can scrape, by deployment.",
        "short",
        ('sum by (deployment) (up{job="satori"})', "{{deployment}}"),
        empty="Prometheus finds no target",
    ),
)

FOLLOWED = "several LLM replicas whose caches are followed (routing.cache_events)"

CACHES = (
    graph(
        "Known KV caches",
        "LLM replicas whose KV caches an ingress knows, and the blocks in them, on average. Without, requests go where few are.",
        "short",
        (f"avg({select(metrics.CACHE_KNOWN)})", "replicas"),
        (f"avg({select(metrics.CACHE_BLOCKS)})", "blocks"),
        empty="caches are not followed",
        needs=FOLLOWED,
    ),
    graph(
        "News of KV caches",
        "What ingresses are told of KV caches: changes, whole caches by reason, and messages dropped because a queue was full.",
        "short",
        (rate(metrics.CACHE_BATCHES), "changes"),
        (rate(metrics.CACHE_WHOLES, "reason"), "whole caches: {{reason}}"),
        (rate(metrics.CACHE_DROPPED), "dropped"),
        empty="caches are not followed",
        needs=FOLLOWED,
    ),
    graph(
        "Prompt tokens expected in caches",
        "Prompt tokens per second that the chosen replica should have in its KV cache.",
        "short",
        (rate(metrics.CACHE_EXPECTED), "expected"),
        empty="caches are not followed",
        needs=FOLLOWED,
    ),
)

STORED = (
    graph(
        "Stored responses",
        "Stored responses that end, by status, those that go on after their ingress was lost, and those that are being made.",
        "short",
        (f"60 * {rate(metrics.STORED_RESPONSES, 'status')}", "{{status}} per minute"),
        (f"60 * {rate(metrics.STORED_CLAIMS)}", "gone on with per minute"),
        (f"sum({select(metrics.STORED_RUNNING)})", "being made"),
        empty="no ingress is scraped",
    ),
    graph(
        "Transactions of the store",
        "How long the transactions take that write stored responses. Their tokens wait for it.",
        "s",
        (quantile(0.5, metrics.STORE_SECONDS), "p50"),
        (quantile(0.99, metrics.STORE_SECONDS), "p99"),
        empty="nothing is stored",
    ),
    graph(
        "Failures of the store",
        "Transactions per minute that failed, since the database is away or full; they are done again.",
        "short",
        (f"60 * {rate(metrics.STORE_FAILURES)}", "per minute"),
        empty="no ingress is scraped",
    ),
    graph(
        "Batches",
        "Lines of batches that end, those that are running, and batches that end, by status.",
        "short",
        (f"60 * {rate(metrics.BATCH_LINES, 'outcome')}", "lines {{outcome}} per minute"),
        (f"sum({select(metrics.BATCH_RUNNING)})", "lines running"),
        (f"60 * {rate(metrics.BATCHES, 'status')}", "batches {{status}} per minute"),
        empty="no ingress is scraped",
    ),
)

SATURATION = (
    graph(
        "Event loop of the ingress",
        "How late the ingress' event loop is. Tokens wait for it as long.",
        "s",
        (quantile(0.5, metrics.LOOP_LAG), "p50"),
        (quantile(0.99, metrics.LOOP_LAG), "p99"),
        empty="no ingress is scraped",
    ),
    graph(
        "Tasks of event loops",
        "Tasks of each replica's event loop. They come and go with requests: a number that grows without more requests is a leak.",
        "short",
        (f"max by (deployment, replica) ({select(metrics.ASYNCIO_TASKS)})", "{{deployment}} {{replica}}"),
        empty="no replica is scraped",
    ),
    graph(
        "CPU of the ingresses",
        "CPU seconds per second of each ingress. Each has one event loop: near 1 it is full, and another replica is needed.",
        "short",
        (
            rate("process_cpu_seconds_total", "replica", where=['deployment="Ingress"']),
            "{{replica}}",
        ),
        empty="no ingress is scraped",
    ),
    graph(
        "HAProxy processes",
        "HAProxy processes of each host. Replaced ones that still carry replies count, as after a host drained.",
        "short",
        (f"max by (node) ({select(metrics.HAPROXIES)})", "{{node}}"),
        empty="no ingress is scraped",
    ),
)

BOARD = Board(
    "satori-resilience",
    "Satori / Resilience",
    "What broke, who noticed, and what did it cost?",
    (
        Row("Now", NOW),
        Row("Faults", FAULTS),
        Row("Stored responses and batches", STORED),
        Row("KV caches", CACHES),
        Row("Saturation of the ingress", SATURATION),
    ),
)
