"""Settings in plain words, and the request that they become."""

from typing import Any

import pytest
from pydantic import ValidationError

from ui.question import Message, Question


def body(**settings: Any) -> dict[str, Any]:
    return Question.model_validate({"id": "q", "messages": [{"role": "user", "content": "2 + 2?"}], "settings": settings}).body()


def test_untouched_settings_leave_all_to_the_server() -> None:
    assert body() == {
        "messages": [{"role": "user", "content": "2 + 2?"}],
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "coat": {"eta": True},
    }


@pytest.mark.parametrize(
    ("settings", "coat"),
    [
        ({"effort": "normal", "max_reflections": 3}, {}),
        ({"effort": "quick"}, {"max_reasoning_tokens": 400, "max_reflections": 1, "max_explorations": 1}),
        ({"effort": "thorough"}, {"min_reflections": 2}),
        ({"effort": "custom"}, {}),
        ({"effort": "custom", "max_reflections": 0, "min_reflections": 0}, {"max_reflections": 0}),
        (
            {"effort": "custom", "max_reasoning_tokens": 50, "max_explorations": 2, "min_reflections": 1},
            {"max_reasoning_tokens": 50, "max_explorations": 2, "min_reflections": 1},
        ),
        ({"votes": 8}, {"vote": {"samples": 8, "temperature": 0.7, "chains": True}}),
        ({"votes": 4, "temperature": 1.2}, {"vote": {"samples": 4, "temperature": 1.2, "chains": True}}),
    ],
)
def test_what_the_chain_is_told(settings: dict[str, Any], coat: dict[str, Any]) -> None:
    """One chain is to say how long it takes; a vote has none to tell."""
    assert body(**settings)["coat"] == (coat if "vote" in coat else coat | {"eta": True})


def test_model_and_tokens() -> None:
    made = body(model="nano", max_tokens=100, temperature=0.5)
    assert (made["model"], made["max_tokens"], made["temperature"]) == ("nano", 100, 0.5)


def test_the_model_cards_prompt() -> None:
    content = body(card_prompt=True)["messages"][0]["content"]
    assert content.endswith("put your final answer within \\boxed{}.\nProblem: 2 + 2?")


def test_a_thought_is_the_beginning_of_the_reply_and_comes_again_with_it() -> None:
    steps = [{"text": "Well. "}, {"action": "continue", "text": "2+2=5\n"}, {"action": "reflect", "text": "Let me"}]
    made = Question(id="1", messages=[Message(role="user", content="2 + 2?")], thought=steps).body()  # type: ignore[arg-type]
    assert made["messages"][-1] == {"role": "assistant", "content": "Well. <|continue|>2+2=5\n<|reflect|>Let me"}
    assert (made["add_generation_prompt"], made["continue_final_message"], made["echo"]) == (False, True, True)
    assert "echo" not in body()


def test_an_action_of_a_thought_is_one_of_three() -> None:
    with pytest.raises(ValidationError, match="thought"):
        Question(id="1", messages=[Message(role="user", content="2?")], thought=[{"action": "x", "text": ""}])  # type: ignore[arg-type,list-item]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 2.1},
        {"temperature": -1},
        {"votes": 17},
        {"votes": 0},
        {"max_tokens": 0},
        {"min_reflections": 33},
        {"x": 1},
    ],
)
def test_limits(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        body(**settings)
