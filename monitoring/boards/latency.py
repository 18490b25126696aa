"""How long do requests take, where does the time go, and how much is done?"""

from deployments import metrics
from deployments.metrics import Metric
from monitoring.board import Board, Panel, Row, graph
from monitoring.queries import mean, quantile, rate, select, total

SHARES = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))


def quantiles(title: str, description: str, metric: Metric, *more: tuple[str, str]) -> Panel:
    """Return a panel with the usual quantiles of a histogram of seconds."""
    return graph(title, description, "s", *((quantile(share, metric), legend) for share, legend in SHARES), *more)


def limit(objective: str) -> tuple[str, str]:
    """Return a line at a setting of what is good."""
    chosen = select(metrics.SLO_LIMIT, f'objective="{objective}"')
    return f"max({chosen})", f"slo.{objective}_s"


CLIENTS = (
    quantiles(
        "TTFT",
        "Time to the first token of any kind, from a stream's arrival to its first event going out.",
        metrics.TTFT,
        limit("ttft"),
    ),
    quantiles("TTFAT", "Time to the first token of the answer, after all reasoning, of streaming chats.", metrics.TTFAT),
    quantiles("ITL", "Gaps between the tokens of a stream, as they go out.", metrics.ITL),
    quantiles("TPOT", "Time per output token of a stream after the first: a stream's pace.", metrics.TPOT, limit("tpot")),
    quantiles("E2E", "From a request's arrival to the end of its reply.", metrics.E2E),
    quantiles("Queue", "From a request's arrival until an engine begins with it: all its waiting.", metrics.QUEUE),
)

WHERE = (
    graph(
        "Where the time to the first token goes",
        "Means: waiting for an engine to begin, and reading the prompt there. What TTFT is more than their sum is the way back.",
        "s",
        (mean(metrics.QUEUE), "until the engine begins"),
        (mean("vllm:request_prefill_time_seconds"), "prefill"),
        (mean(metrics.TTFT), "TTFT"),
    ),
    graph(
        "Platform overhead on TTFT",
        "What the platform adds: a stream's TTFT less the engine's, from the engine's queue to the first token.",
        "s",
        *((quantile(share, metrics.OVERHEAD_TTFT), legend) for share, legend in SHARES),
    ),
    graph(
        "Platform overhead on ITL",
        "What the platform adds to a stream's mean gap: as tokens go out less as the engine makes them.",
        "s",
        *((quantile(share, metrics.OVERHEAD_ITL), legend) for share, legend in SHARES),
    ),
    graph(
        "ITL at the engine and at the client",
        "The 99th percentile of gaps between tokens as engines make them and as they go out: the difference is jitter that we add.",
        "s",
        (quantile(0.99, metrics.ITL), "going out"),
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
        "Requests that end a second, and how many are in flight.",
        "short",
        (rate(metrics.REQUESTS), "ended a second"),
        (total(metrics.ONGOING), "in flight"),
    ),
)

BOARD = Board(
    "satori-latency",
    "Satori / Latency and throughput",
    "How long do requests take, where does the time go, and how much is done?",
    (Row("As clients see it", CLIENTS), Row("Where the time goes", WHERE), Row("Throughput", WORK)),
)
