"""Conversations as documents."""

from typing import Any

from ui.export import exported


def conversation() -> dict[str, Any]:
    reply = {
        "phase": "done",
        "steps": [
            {"action": "continue", "text": "2 + 2\n= 4", "seconds": 1.0, "tokens": 5},
            {"action": None, "text": "Hm.", "seconds": 1.0, "tokens": None},
        ],
        "content": "The final answer is \\boxed{4}.",
        "answer": "4",
        "assurance": {"level": "some", "agree": None, "counted": None, "checks": 0, "refuted": 0, "unfinished": False},
        "stats": {"ttft_s": 0.5, "tokens_per_s": None, "tokens": 12},
        "error": None,
    }
    lost = {"phase": "error", "steps": [], "content": "", "answer": None, "stats": None, "error": {"kind": "lost", "message": ""}}
    return {
        "id": "c",
        "title": "Sums\n# of two",
        "turns": [{"id": "1", "question": "2 + 2?", "reply": reply}, {"id": "2", "question": "And?", "reply": lost}],
    }


def test_markdown() -> None:
    text = exported(conversation(), "en")
    assert text == (
        "# Sums # of two\n\n## Question\n\n2 + 2?\n\n### Reasoning\n\n"
        "1. **Continue**\n\n   2 + 2\n   = 4\n\n2. **Thought**\n\n   Hm.\n\n"
        "### Answer\n\nThe final answer is \\boxed{4}.\n\n**4**\n\n"
        "*One attempt · not checked*\n\n*First token after: 0.5 · Tokens: 12*\n\n"
        "## Question\n\nAnd?\n\n*The connection was lost*\n"
    )


def test_markdown_in_chinese() -> None:
    assert "## 问题\n\n2 + 2?" in exported(conversation(), "zh")


def test_a_conversation_without_anything() -> None:
    assert exported({"turns": []}, "fr") == "# New conversation\n"
    assert exported({"turns": [{"question": "Hm?", "reply": None}]}, "en").endswith("## Question\n\nHm?\n")
