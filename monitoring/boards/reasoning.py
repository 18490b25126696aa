"""How does the model reason: how long, with which actions, and does it come to an answer?"""

from deployments.observability import metrics
from monitoring.board import Board, Row, graph, stat
from monitoring.queries import mean, quantile, rate, ratio

THOUGHT = rate(metrics.COAT_TOKENS, "action", where=['action!="answer"'])
PREDICTED = rate(metrics.LENGTHS_PREDICTED)
OUTPUT = rate(metrics.TOKENS, where=['kind!="prompt"'])

NOW = (
    stat(
        "Answers in a box",
        "Share of complete chat replies whose answer is in \\boxed{}. The others did not reach one.",
        "percentunit",
        ratio(rate(metrics.ANSWERS, where=['boxed="yes"']), rate(metrics.ANSWERS)),
        warn=0.9,
        bad=0.7,
    ),
    stat(
        "Reasoning share",
        "Share of generated tokens that are reasoning.",
        "percentunit",
        ratio(rate(metrics.TOKENS, where=['kind="reasoning"']), OUTPUT),
    ),
    stat("Reflections per answer", "Mean number of reflections in an answer's reasoning.", "short", mean(metrics.REFLECTIONS)),
    stat("Explorations per answer", "Mean number of explorations in an answer's reasoning.", "short", mean(metrics.EXPLORATIONS)),
    stat(
        "Thinking time",
        "Mean time from a stream's first token to the first token of its answer.",
        "s",
        f"{mean(metrics.TTFAT)} - {mean(metrics.TTFT)}",
    ),
    stat("Answers", "Complete chat replies per second.", "short", rate(metrics.ANSWERS)),
)

CHAINS = (
    graph(
        "Actions",
        "Actions of the chains per second: continue (next step), reflect (check), explore (another way).",
        "short",
        (rate(metrics.COAT_ACTIONS, "action"), "{{action}}"),
        empty="no chat reply yet",
    ),
    graph(
        "Tokens by action",
        "Tokens of complete chat replies, by the action to which they belong.",
        "short",
        (rate(metrics.COAT_TOKENS, "action"), "{{action}}"),
        stacked=True,
        empty="no chat reply yet",
    ),
    graph(
        "Tokens per action",
        "Mean length of a segment, by the action that opened it.",
        "short",
        (
            f"{THOUGHT} / ({rate(metrics.COAT_ACTIONS, 'action')} > 0)",
            "{{action}}",
        ),
        empty="no chat reply yet",
    ),
    graph(
        "Reflections per answer",
        "Reflections in an answer's reasoning.",
        "short",
        (quantile(0.5, metrics.REFLECTIONS), "p50"),
        (quantile(0.95, metrics.REFLECTIONS), "p95"),
        empty="no chat reply yet",
    ),
    graph(
        "Explorations per answer",
        "Explorations in an answer's reasoning.",
        "short",
        (quantile(0.5, metrics.EXPLORATIONS), "p50"),
        (quantile(0.95, metrics.EXPLORATIONS), "p95"),
        empty="no chat reply yet",
    ),
    graph(
        "From question to answer",
        "Median times to the first token and to the first token of the answer. Between the two the model thinks.",
        "s",
        (quantile(0.5, metrics.TTFT), "first token"),
        (quantile(0.5, metrics.TTFAT), "first token of the answer"),
    ),
)

LENGTHS = (
    graph(
        "Predicted lengths",
        "Share of replies whose length was below, inside or above the interval of 80 % that was predicted at their start. A lump of"
        " equally long replies makes more than 80 % lie inside.",
        "percentunit",
        (f"{rate(metrics.LENGTHS_PREDICTED, 'length')} / ignoring(length) group_left() ({PREDICTED} > 0)", "{{length}}"),
        stacked=True,
        empty="no reply yet",
    ),
)

VOTING = (
    graph(
        "Votes",
        "Votes over several chains, by whether they were decided before all chains had ended.",
        "short",
        (rate(metrics.VOTES, "decided"), "{{decided}}"),
    ),
    graph(
        "Tokens saved by early decisions",
        "An estimate, per second: the tokens by which stopped chains were shorter than the others' mean length.",
        "short",
        (rate(metrics.VOTE_TOKENS_SAVED), "saved"),
    ),
)

BOARD = Board(
    "satori-reasoning",
    "Satori / Reasoning",
    "How does the model reason: how long, with which actions, and does it come to an answer?",
    (Row("Now", NOW), Row("Chains of action-thought", CHAINS), Row("Lengths", LENGTHS), Row("Votes", VOTING)),
)
