"""How sure an answer is."""

from typing import Any

import pytest

from ui.assurance import assurance, described
from ui.texts import texts


def chain(*actions: str) -> list[dict[str, Any]]:
    return [{"action": action, "text": "", "tokens": 1} for action in actions]


def vote(counted: int, *votes: int) -> dict[str, Any]:
    return {"samples": 8, "counted": counted, "votes": [{"answer": str(at), "votes": count} for at, count in enumerate(votes)]}


@pytest.mark.parametrize(
    ("segments", "counted", "finish", "level", "text"),
    [
        (chain("continue"), None, "stop", "some", "One attempt · not checked"),
        (chain("continue", "reflect", "continue"), None, "stop", "some", "One attempt · checked itself once"),
        (
            chain("continue", "reflect", "explore", "reflect", "continue"),
            None,
            "stop",
            "some",
            "One attempt · checked itself 2 times · one mistake found and another way taken",
        ),
        (chain("continue", "explore"), None, "stop", "some", "One attempt · not checked"),
        (chain("continue", "reflect"), None, "length", "weak", "One attempt · checked itself once · unfinished"),
        (None, None, "stop", "some", "One attempt"),
        (chain("continue"), vote(5, 5), "stop", "strong", "5 of 5 attempts agree · not checked"),
        (chain("continue"), vote(8, 5, 2, 1), "stop", "some", "5 of 8 attempts agree · not checked"),
        (chain("continue"), vote(8, 4, 4), "stop", "weak", "4 of 8 attempts agree · not checked"),
        (chain("continue"), vote(2, 2), "stop", "some", "2 of 2 attempts agree · not checked"),
        (chain("continue"), vote(3), "stop", "weak", "0 of 3 attempts agree · not checked"),
        (chain("continue"), vote(3, 3), "length", "weak", "3 of 3 attempts agree · not checked · unfinished"),
    ],
)
def test_what_speaks_for_an_answer(
    segments: list[dict[str, Any]] | None, counted: dict[str, Any] | None, finish: str, level: str, text: str
) -> None:
    found = assurance(segments, counted, finish)
    assert found["level"] == level
    assert described(found, texts("en")) == text
    assert described(found, texts("zh"))
