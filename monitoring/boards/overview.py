"""Is it well, what does it do, and what does it cost?"""

from deployments.observability import metrics
from monitoring import rules, slo
from monitoring.board import Board, Row, graph, stat
from monitoring.queries import quantile, rate, ratio, select, total

GOOD = rate(metrics.SLO_REQUESTS, where=['met="yes"'])
ASKED = rate(metrics.SLO_REQUESTS)
OUTPUT = rate(metrics.TOKENS, where=['kind!="prompt"'])


def running(deployment: str) -> str:
    """Return the number of running replicas of a deployment, as Serve counts them."""
    chosen = select(metrics.REPLICAS, f'deployment="{deployment}"', 'state="RUNNING"', of=())
    return f"max({chosen})"


WELL = (
    stat(
        "Goodput",
        f"Share of requests answered within the settings slo.ttft_s and slo.tpot_s. The objective is {slo.OBJECTIVE:.0%}.",
        "percentunit",
        ratio(GOOD, ASKED),
        warn=slo.OBJECTIVE,
        bad=slo.OBJECTIVE - 0.04,
    ),
    stat(
        "Error budget left",
        f"What is left of the {1 - slo.OBJECTIVE:.0%} of requests that may be bad in {slo.PERIOD_DAYS} days."
        " Below 0 the objective is missed.",
        "percentunit",
        f"1 - {select(rules.bad(f'{slo.PERIOD_DAYS}d'))} / {1 - slo.OBJECTIVE:.2f}",
        warn=0.5,
        bad=0.0,
        empty="no requests in the period",
    ),
    stat(
        "Alerts firing",
        "Our alerts that are firing now. Prometheus shows their names under /alerts; the runbook says what to do.",
        "short",
        'count(ALERTS{alertstate="firing", alertname=~"Satori.*"}) or vector(0)',
        warn=1,
        bad=2,
    ),
    stat(
        "LLM replicas",
        "Running LLM replicas, as Serve's controller reports them. With none, requests wait.",
        "short",
        running("LLM"),
        warn=1,
        bad=0.5,
        empty="no ingress is scraped",
    ),
    stat(
        "Ingress replicas",
        "Running ingress replicas: the application's front doors.",
        "short",
        running("Ingress"),
        warn=1,
        bad=0.5,
        empty="no ingress is scraped",
    ),
    stat("Requests in flight", "Requests whose response is not complete yet.", "short", total(metrics.ONGOING), empty="no ingress"),
    stat("Requests", "API requests that end per second.", "reqps", rate(metrics.REQUESTS)),
    stat("TTFT p95", "Time to the first token of any kind, for 95 of 100 streams.", "s", quantile(0.95, metrics.TTFT)),
    stat("TTFAT p95", "Time to the first token of the answer, for 95 of 100 streaming chats.", "s", quantile(0.95, metrics.TTFAT)),
    stat("TPOT p95", "Time per output token after the first, for 95 of 100 streams.", "s", quantile(0.95, metrics.TPOT)),
    stat("Tokens", "Tokens that the engines generate per second.", "short", rate("vllm:generation_tokens_total")),
    stat(
        "Answers per device-hour",
        "Complete chat replies per hour of a GPU, or of a replica where there are no GPUs.",
        "short",
        ratio(f"3600 * {rate(metrics.ANSWERS)}", total(metrics.DEVICES)),
        empty="no LLM replica",
    ),
)

TRAFFIC = (
    graph(
        "Goodput and demand",
        "Requests that met the objectives, and all that count for them. The gap is the bad requests.",
        "reqps",
        (GOOD, "good"),
        (ASKED, "asked"),
    ),
    graph(
        "Requests by outcome",
        "How requests end: ok, refused (4xx, 503), failed (5xx or an error in the stream), disconnected (the client left).",
        "reqps",
        (rate(metrics.REQUESTS, "outcome"), "{{outcome}}"),
        stacked=True,
    ),
    graph(
        "Tokens by kind",
        "Tokens of requests that have ended, by kind: prompt, reasoning, answer.",
        "short",
        (rate(metrics.TOKENS, "kind"), "{{kind}}"),
        stacked=True,
    ),
    graph(
        "Replicas",
        "Replicas of each deployment, by their state in Serve.",
        "short",
        (f"max by (deployment, state) ({select(metrics.REPLICAS, of=())}) > 0", "{{deployment}} {{state}}"),
        empty="no ingress is scraped",
    ),
)

COST = (
    graph(
        "Answers per device-hour",
        "Complete chat replies per hour of a GPU, or of a replica where there are no GPUs. The inverse is the cost of an answer.",
        "short",
        (ratio(f"3600 * {rate(metrics.ANSWERS)}", total(metrics.DEVICES)), "answers"),
        empty="no LLM replica",
    ),
    graph(
        "Wasted tokens",
        "Share of ended requests' generated tokens that nobody received: the client left, or the reply ended in an error.",
        "percentunit",
        (
            f"{rate(metrics.WASTED_TOKENS, 'reason')} / ignoring(reason) group_left() ({OUTPUT} > 0)",
            "{{reason}}",
        ),
    ),
)

KEYS = (
    graph(
        "Requests by key",
        "Requests that reached an engine, by name of the API key; (none) where no keys are required.",
        "reqps",
        (f"topk(10, {rate(metrics.KEY_REQUESTS, 'key')})", "{{key}}"),
        stacked=True,
    ),
    graph(
        "Tokens by key",
        "Tokens of prompts and replies, by name of the API key; (none) where no keys are required.",
        "short",
        (f"topk(10, {rate(metrics.KEY_TOKENS, 'key')})", "{{key}}"),
        stacked=True,
    ),
    graph(
        "Cost by key",
        "What prompts and replies cost per hour, by name of the API key; in the currency of the prices in the file of keys.",
        "short",
        (f"topk(10, 3600 * {rate(metrics.KEY_COST, 'key')})", "{{key}}"),
        stacked=True,
        needs="prices of keys (prompt_price, completion_price)",
    ),
    graph(
        "Limits without their store",
        "Requests per second that an ingress checked by its own counts, since the Redis of `access.store` did not answer.",
        "reqps",
        (rate(metrics.LOCAL_LIMITS), "requests"),
    ),
)

BOARD = Board(
    "satori-overview",
    "Satori / Overview",
    "Is it well, what does it do, and what does it cost?",
    (Row("Is it well?", WELL), Row("Traffic", TRAFFIC), Row("Cost", COST), Row("Keys", KEYS)),
)
