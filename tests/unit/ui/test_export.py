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


def test_the_chains_of_a_vote() -> None:
    segments = [{"action": "continue", "text": "2 + 2 = 5", "tokens": 5}]
    kept = conversation()
    kept["turns"][0]["reply"] |= {
        "vote": {"samples": 3, "counted": 2, "votes": [], "decided": True, "winner": 0},
        "chains": [
            {"index": 2, "finish_reason": None, "answer": None, "segments": segments, "content": ""},
            {"index": 0, "finish_reason": "stop", "answer": "4", "segments": segments, "content": "It is 4."},
            {"index": 1, "finish_reason": "stop", "answer": "5", "segments": segments, "content": "It is 5."},
        ],
    }
    assert (
        "### Attempts\n\n#### Attempt 1\n\n*the reply above*\n\n"
        "#### Attempt 2\n\n1. **Continue**\n\n   2 + 2 = 5\n\nIt is 5.\n\n"
        "#### Attempt 3\n\n1. **Continue**\n\n   2 + 2 = 5\n\n*stopped early*\n\n"
    ) in exported(kept, "en")


def test_markdown_in_chinese() -> None:
    assert "## 问题\n\n2 + 2?" in exported(conversation(), "zh")


def test_a_conversation_without_anything() -> None:
    assert exported({"turns": []}, "fr") == "# New conversation\n"
    assert exported({"turns": [{"question": "Hm?", "reply": None}]}, "en").endswith("## Question\n\nHm?\n")
