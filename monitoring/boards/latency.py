"""How long do requests take, where does the time go, and how much is done?"""

from deployments.observability import metrics
from deployments.observability.metrics import Metric
from monitoring.board import Board, Panel, Row, graph
from monitoring.queries import mean, quantile, rate, select, total

SHARES = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))


def quantiles(title: str, description: str, metric: Metric, *more: tuple[str, str]) -> Panel:
    """Return a panel with the usual quantiles of a histogram of seconds."""
    return graph(title, description, "s", *((quantile(share, metric), legend) for share, legend in SHARES), *more)


def limit(objective: str) -> tuple[str, str]:
    """Return the line of an objective, which is a setting."""
    chosen = select(metrics.SLO_LIMIT, f'objective="{objective}"')
    return f"max({chosen})", f"slo.{objective}_s"


CLIENTS = (
    quantiles(
        "TTFT",
        "Time to the first token of any kind, from a stream's arrival until its first event is sent.",
        metrics.TTFT,
        limit("ttft"),
    ),
    quantiles("TTFAT", "Time to the first token of the answer, after all reasoning, of streaming chats.", metrics.TTFAT),
    quantiles("ITL", "Gaps between the tokens of a stream, as they are sent.", metrics.ITL),
    quantiles("TPOT", "Time per output token of a stream after the first: a stream's pace.", metrics.TPOT, limit("tpot")),
    quantiles("E2E", "From a request's arrival to the end of its reply.", metrics.E2E),
    quantiles("Queue", "From a request's arrival until an engine starts it: all of its waiting.", metrics.QUEUE),
)

WHERE = (
    graph(
        "Where the time to the first token goes",
        "Means: the wait until the engine starts, and prefill. The rest of TTFT is the way back to the client.",
        "s",
        (mean(metrics.QUEUE), "until the engine starts"),
        (mean("vllm:request_prefill_time_seconds"), "prefill"),
        (mean(metrics.TTFT), "TTFT"),
    ),
    graph(
        "Platform overhead on TTFT",
        "What the platform adds: a stream's TTFT minus the engine's, which is from the engine's queue to the first token.",
        "s",
        *((quantile(share, metrics.OVERHEAD_TTFT), legend) for share, legend in SHARES),
    ),
    graph(
        "Platform overhead on ITL",
        "What the platform adds to a stream's mean gap: the gap as tokens are sent, minus the gap as the engine generates them.",
        "s",
        *((quantile(share, metrics.OVERHEAD_ITL), legend) for share, legend in SHARES),
    ),
    graph(
        "ITL at the engine and at the client",
        "99th percentile of the gaps between tokens, at the engine and as they are sent. The difference is jitter that we add.",
        "s",
        (quantile(0.99, metrics.ITL), "sent"),
        (quantile(0.99, "vllm:inter_token_latency_seconds"), "engine"),
    ),
)

WORK = (
    graph(
        "Tokens generated",
        "Tokens that the engines generate, by engine (Serve's rank of the replica).",
        "short",
        (rate("vllm:generation_tokens_total", "engine"), "engine {{engine}}"),
        stacked=True,
    ),
    graph(
        "Tokens by kind",
        "Tokens of requests that have ended: prompt, reasoning, answer.",
        "short",
        (rate(metrics.TOKENS, "kind"), "{{kind}}"),
        stacked=True,
    ),
    graph(
        "Requests",
        "Requests that end per second, and requests in flight.",
        "short",
        (rate(metrics.REQUESTS), "ended per second"),
        (total(metrics.ONGOING), "in flight"),
    ),
)

BOARD = Board(
    "satori-latency",
    "Satori / Latency and throughput",
    "How long do requests take, where does the time go, and how much is done?",
    (Row("As clients see it", CLIENTS), Row("Where the time goes", WHERE), Row("Throughput", WORK)),
)
