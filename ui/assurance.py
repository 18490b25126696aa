"""How sure an answer is, as far as its reply says so: votes that agree, checks in the chain, an end that was not reached."""

from itertools import pairwise
from typing import Any

STRONG_VOTES = 3
"""The fewest counted attempts whose agreement says something."""


def assurance(segments: list[dict[str, Any]] | None, vote: dict[str, Any] | None, finish: str | None) -> dict[str, Any]:
    """Return what speaks for an answer and against it, from the end of its reply.

    `level` is "strong" where at least two thirds of a vote's attempts agree, "weak" where no more than half of them do or the
    reply was cut off, else "some": one chain's own checks can be as wrong as its steps. `agree` of `counted` attempts gave the
    answer (None without a vote). `checks` are the reflections in the chain, and `refuted` those that an exploration follows, which
    is how a chain takes back what it has found wrong; None where the API tells no actions.
    """
    counted = vote["counted"] if vote else None
    agree = max((group["votes"] for group in vote["votes"]), default=0) if vote else None
    unfinished = finish == "length"
    actions = None if segments is None else [segment["action"] for segment in segments]
    checks = None if actions is None else actions.count("reflect")
    refuted = None if actions is None else list(pairwise(actions)).count(("reflect", "explore"))
    level = "some"
    if unfinished or (counted and agree is not None and 2 * agree <= counted):
        level = "weak"
    elif counted and agree is not None and counted >= STRONG_VOTES and 3 * agree >= 2 * counted:
        level = "strong"
    return {"level": level, "agree": agree, "counted": counted, "checks": checks, "refuted": refuted, "unfinished": unfinished}


def described(assurance: dict[str, Any], words: dict[str, str]) -> str:
    """Return it as a line of text."""
    parts = []
    if assurance["counted"] is None:
        parts.append(words["sure.single"])
    else:
        parts.append(words["sure.votes"].format(agree=assurance["agree"], counted=assurance["counted"]))
    for name in ("checks", "refuted"):
        count = assurance[name]
        if count == 0 and name == "checks":
            parts.append(words["sure.unchecked"])
        elif count:
            parts.append(words[f"sure.{name}.one" if count == 1 else f"sure.{name}"].format(count=count))
    if assurance["unfinished"]:
        parts.append(words["sure.unfinished"])
    return " · ".join(parts)
