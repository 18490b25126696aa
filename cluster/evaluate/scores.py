"""Scores of judged replies (accuracy with its interval, pass@k, maj@k, tokens, actions), and their table."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from deployments.reasoning import coat
from deployments.reasoning.vote import rank

Answer = TypeVar("Answer")
ACTIONS = tuple(coat.ACTIONS.values())
Z = 1.959964
"""The quantile of the standard normal distribution for an interval of 95 %."""


@dataclass(frozen=True)
class Judged:
    """A reply to a question: the answer in its box, whether it is right, its length in tokens, and the number of each action.

    `tokens` and `actions` are None if the server does not tell them.
    """

    sample: int
    box: str | None
    right: bool
    cut_off: bool
    tokens: int | None
    actions: dict[str, int] | None


@dataclass(frozen=True)
class Marked:
    """A question's judged replies, and whether the most frequent answer is right."""

    id: str
    group: str
    answer: str
    majority: bool
    replies: tuple[Judged, ...]


@dataclass(frozen=True)
class Score:
    """The score of a set of questions. Shares are from 0 to 1; `low` and `high` are the 95 % interval of the accuracy.

    `majority` counts the questions that have all their replies, and `pass_at` those with k replies at least. They are None if there
    are no such questions.
    """

    questions: int
    replies: int
    accuracy: float
    low: float
    high: float
    pass_at: dict[int, float | None]
    majority: float | None
    tokens_mean: float | None
    tokens_median: float | None
    tokens_p95: float | None
    cut_off: float
    no_box: float
    actions: dict[str, float] | None


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share in `n` trials (Wilson, JASA 22, 1927); n is at least 1.

    With several samples a question, n is the number of questions. Samples of one question are correlated: to count each of them as
    a trial would make the interval too narrow. To count questions makes it too wide at worst.
    """
    centre = share + Z * Z / (2 * n)
    half = Z * math.sqrt(max(0.0, share * (1 - share)) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def pass_at(n: int, right: int, k: int) -> float:
    """Return the probability of a right one among k of n samples, drawn without replacement (Chen et al. 2021, arXiv 2107.03374).

    `right` of the n samples are right; k is at most n. It is an unbiased estimate for k new samples.
    """
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def majority(answers: Sequence[Answer], key: Callable[[Answer], str | None]) -> Answer | None:
    """Return the most frequent answer, whatever the order of the answers; None if there are none.

    Equally frequent ones are ordered as in a vote. Answers with the same key count together, as most of them are written.
    """
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(repr(key(answer)), []).append(answer)
    if not groups:
        return None
    counts = Counter(groups[min(groups, key=lambda one: (-len(groups[one]), rank(one)))])
    return min(counts, key=lambda answer: (-counts[answer], len(str(answer)), str(answer)))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` of the values do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def ks(samples: int) -> list[int]:
    """Return the values of k for pass@k: the powers of two below the number of samples, and that number."""
    return [2**i for i in range(samples.bit_length()) if 2**i < samples] + [samples]


def score(marked: Sequence[Marked], samples: int) -> Score:
    """Return the score of questions with at least one reply each, of `samples` that were requested."""
    replies = [reply for one in marked for reply in one.replies]
    accuracy = statistics.fmean(statistics.fmean(reply.right for reply in one.replies) for one in marked)
    low, high = wilson(accuracy, len(marked))
    tokens = [reply.tokens for reply in replies if reply.tokens is not None]
    return Score(
        questions=len(marked),
        replies=len(replies),
        accuracy=accuracy,
        low=low,
        high=high,
        pass_at={k: _mean(_pass_at(one, k) for one in marked if len(one.replies) >= k) for k in ks(samples)},
        majority=_mean(one.majority for one in marked if len(one.replies) == samples),
        tokens_mean=statistics.fmean(tokens) if tokens else None,
        tokens_median=statistics.median(tokens) if tokens else None,
        tokens_p95=percentile(tokens, 95) if tokens else None,
        cut_off=statistics.fmean(reply.cut_off for reply in replies),
        no_box=statistics.fmean(reply.box is None for reply in replies),
        actions=_actions(replies),
    )


def table(model: str, published: Mapping[str, float], total: Score, groups: Mapping[str, Score]) -> str:
    """Return the scores as Markdown, in percent: those of this run, the published ones by model, then those of the groups."""
    k = max(total.pass_at)
    head = ["model", "accuracy %", "95 %", *(f"pass@{k} %" for k in total.pass_at if k > 1), *([f"maj@{k} %"] if k > 1 else [])]
    head += ["tokens mean", "median", "p95", "cut off %", "no box %", *ACTIONS]
    rows = [[model, *_cells(total)]]
    rows += [[f"{name}, published", f"{percent:.1f}", *[""] * (len(head) - 2)] for name, percent in published.items()]
    text = _markdown(head, rows)
    if groups:
        rows = [[name, str(group.questions), *_cells(group)] for name, group in groups.items()]
        text += "\n\n" + _markdown(["part", "questions", *head[1:]], rows)
    return text


def _cells(score: Score) -> list[str]:
    shares = [value for k, value in score.pass_at.items() if k > 1] + ([score.majority] if max(score.pass_at) > 1 else [])
    return [
        f"{100 * score.accuracy:.1f}",
        f"{100 * score.low:.1f} to {100 * score.high:.1f}",
        *("" if share is None else f"{100 * share:.1f}" for share in shares),
        *("" if n is None else f"{n:.0f}" for n in (score.tokens_mean, score.tokens_median, score.tokens_p95)),
        f"{100 * score.cut_off:.1f}",
        f"{100 * score.no_box:.1f}",
        *("" if score.actions is None else f"{score.actions.get(action, 0):.2f}" for action in ACTIONS),
    ]


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def _pass_at(one: Marked, k: int) -> float:
    return pass_at(len(one.replies), sum(reply.right for reply in one.replies), k)


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.fmean(found) if found else None


def _actions(replies: Sequence[Judged]) -> dict[str, float] | None:
    """Return the mean count of each action; None if no reply has counts. A reply without counts has 0 of each."""
    counts = [reply.actions for reply in replies if reply.actions is not None]
    names = dict.fromkeys(name for count in counts for name in count)
    return {name: sum(count.get(name, 0) for count in counts) / len(replies) for name in names} if counts else None
