"""The outline of a reply, from the chunks of its stream."""

from typing import Any

import pytest

from tests.support.clock import Clock
from ui.errors import ApiError, LoadingError, LostError, QueueFullError
from ui.reply import Reply


def thought(text: str, action: str | None, index: int, tokens: int) -> dict[str, Any]:
    """A chunk of a segment's thought, with its action if the segment begins with it."""
    begun = {"actions": [action]} if action else {}
    delta = {"reasoning": text, "reasoning_content": text, "coat": {"index": index} | begun}
    return {"choices": [{"delta": delta, "finish_reason": None}], "usage": {"completion_tokens": tokens, "prompt_tokens": 5}}


LAST = {
    "choices": [
        {
            "delta": {
                "content": "The final answer is \\boxed{4}.",
                "coat": {
                    "segments": [
                        {"action": "continue", "text": "2 + 2", "tokens": 4},
                        {"action": "reflect", "text": "Check.", "tokens": 3},
                    ],
                    "answer": "4",
                },
            },
            "finish_reason": "stop",
        }
    ]
}
USAGE = {
    "choices": [],
    "usage": {"completion_tokens": 21, "prompt_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 7}},
}


def test_steps_grow_with_their_time_and_tokens() -> None:
    clock = Clock(100.0)
    reply = Reply("q", clock)
    assert reply.state()["phase"] == "sent"
    assert not reply.begun
    reply.add({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    assert reply.state()["phase"] == "sent"
    clock.now_s += 0.5
    reply.add(thought("2 +", "continue", 0, 2))
    clock.now_s += 1
    reply.add(thought(" 2", None, 0, 4))
    clock.now_s += 1
    reply.add(thought("Check.", "reflect", 1, 7))
    assert reply.begun
    state = reply.state()
    assert state["phase"] == "thinking"
    assert state["stats"] is None
    assert state["steps"] == [
        {"action": "continue", "text": "2 + 2", "seconds": 2.0, "tokens": 4},
        {"action": "reflect", "text": "Check.", "seconds": 0.0, "tokens": 3},
    ]


def test_while_it_thinks_it_says_how_fast_and_how_long_still() -> None:
    clock = Clock(100.0)
    reply = Reply("q", clock)
    reply.add(thought("2 +", "continue", 0, 1))
    assert reply.state()["progress"] == {"tokens_per_s": None, "eta_s": None}
    clock.now_s += 2
    told = thought(" 2", None, 0, 21)
    told["choices"][0]["delta"]["coat"]["eta_s"] = [1.0, 2.5, 9.0]
    reply.add(told)
    clock.now_s += 1
    reply.add(thought(" = 4", None, 0, 31))
    assert reply.state()["progress"] == {"tokens_per_s": 10.0, "eta_s": [1.0, 2.5, 9.0]}, "it holds until the next one"
    reply.add(LAST)
    assert reply.state()["progress"] is None


def test_the_end_has_the_answer_and_what_the_server_counted() -> None:
    clock = Clock(100.0)
    reply = Reply("q", clock)
    clock.now_s += 0.25
    reply.add(thought("2 + 2", "continue", 0, 9))
    clock.now_s += 1
    reply.add(thought("Check.", "reflect", 1, 11))
    clock.now_s += 1
    reply.add(LAST)
    assert reply.state()["phase"] == "answering"
    reply.add(USAGE)
    clock.now_s += 5
    reply.end()
    state = reply.state()
    assert state["phase"] == "done"
    assert state["answer"] == "4"
    assert [step["tokens"] for step in state["steps"]] == [4, 3]  # the summary's, not those of the chunks
    assert state["stats"] == {
        "ttft_s": 0.25,
        "seconds": 2.25,
        "tokens_per_s": 6.0,  # of the 12 tokens after the first chunk, which had 9
        "tokens": 21,
        "prompt_tokens": 5,
        "reasoning_tokens": 7,
        "reflections": 1,
        "explorations": 0,
    }


def test_nothing_is_guessed() -> None:
    reply = Reply("q")
    reply.add({"choices": [{"delta": {"content": "Hello"}, "finish_reason": "stop"}]})
    reply.end()
    stats = reply.state()["stats"]
    assert [stats[name] for name in ("tokens_per_s", "tokens", "reasoning_tokens", "reflections", "explorations")] == [None] * 5


def test_an_action_may_come_before_the_text_of_its_step() -> None:
    reply = Reply("q")
    reply.add({"choices": [{"delta": {"role": "assistant", "coat": {"actions": ["continue"]}}}]})
    reply.add(thought("2 + 2", None, 0, 4))
    assert [(step["action"], step["text"]) for step in reply.state()["steps"]] == [("continue", "2 + 2")]


def test_a_thought_without_actions_is_one_step() -> None:
    reply = Reply("q")
    for text in ("Let me", " see"):
        reply.add({"choices": [{"delta": {"reasoning_content": text}}]})
    assert [(step["action"], step["text"]) for step in reply.state()["steps"]] == [(None, "Let me see")]


def test_votes_come_before_the_reply() -> None:
    clock = Clock(100.0)
    reply = Reply("q", clock)
    vote = {"samples": 8, "counted": 3, "votes": [{"answer": "4", "votes": 3}], "decided": False}
    reply.add({"choices": [], "coat": {"vote": vote}})
    assert reply.state()["phase"] == "voting"
    assert reply.state()["vote"] == vote
    reply.add(thought("2 + 2", "continue", 0, 9))
    clock.now_s += 2
    reply.add(LAST)
    reply.add(USAGE)
    reply.end()
    stats = reply.state()["stats"]
    steps = reply.state()["steps"]
    assert [(step["action"], step["text"], step["seconds"]) for step in steps] == [
        ("continue", "2 + 2", None),
        ("reflect", "Check.", None),
    ], "also those whose text came with another one's"
    assert stats["ttft_s"] is None  # chains in a vote are not streamed
    assert stats["tokens_per_s"] is None
    assert reply.state()["assurance"]["level"] == "strong"


def test_the_chains_of_a_vote_are_collected_as_they_end() -> None:
    reply = Reply("q")
    first, second, stopped = ({"index": index, "finish_reason": end} for index, end in ((1, "stop"), (0, "stop"), (2, None)))
    vote = {"samples": 3, "counted": 1, "votes": [], "decided": False}
    reply.add({"choices": [], "coat": {"vote": vote | {"chains": [first]}}})
    before = reply.state()
    reply.add({"choices": [], "coat": {"vote": vote | {"counted": 2, "chains": [second]}}})
    outcome = vote | {"counted": 2, "winner": 1}
    delta = {"content": "4", "coat": {"answer": "4", "vote": outcome | {"chains": [stopped]}}}
    reply.add({"choices": [{"delta": delta, "finish_reason": "stop"}]})
    assert before["chains"] == [first], "a state stays as it was"
    assert (reply.state()["vote"], reply.state()["chains"]) == (outcome, [first, second, stopped])


@pytest.mark.parametrize(("gap_s", "rate"), [(0.0, None), (0.05, None), (0.5, 24.0)])
def test_no_rate_of_tokens_that_came_at_once(gap_s: float, rate: float | None) -> None:
    clock = Clock(100.0)
    reply = Reply("q", clock)
    reply.add(thought("2 + 2", "continue", 0, 9))
    clock.now_s += gap_s
    reply.add(LAST)
    reply.add(USAGE)
    reply.end()
    assert reply.state()["stats"]["tokens_per_s"] == rate


def test_a_votes_reply_in_one_chunk_has_all_its_steps() -> None:
    """As the API sends it: the whole chain in one chunk, with its segments."""
    [choice] = LAST["choices"]
    delta = choice["delta"] | {"reasoning": "2 + 2\nCheck.", "reasoning_content": "2 + 2\nCheck."}
    delta["coat"] = delta["coat"] | {"index": 1, "actions": ["continue", "reflect"]}
    reply = Reply("q")
    reply.add({"choices": [choice | {"delta": delta}]})
    reply.end()
    assert [(step["action"], step["text"], step["tokens"]) for step in reply.state()["steps"]] == [
        ("continue", "2 + 2", 4),
        ("reflect", "Check.", 3),
    ]


def test_waiting_does_not_count_as_time_to_first_token() -> None:
    clock = Clock(100.0)
    reply = Reply("q", clock)
    reply.wait(LoadingError("no LLM replica is up"))
    clock.now_s += 30
    waiting = reply.state()
    assert (waiting["phase"], waiting["elapsed_s"], waiting["waiting"]["kind"]) == ("waiting", 30.0, "loading")
    reply.send()
    clock.now_s += 0.5
    reply.add(LAST)
    reply.end()
    assert reply.state()["stats"]["ttft_s"] == 0.5


def test_a_short_stream_is_a_lost_one_and_keeps_what_came() -> None:
    reply = Reply("q")
    reply.add(thought("2 +", "continue", 0, 2))
    with pytest.raises(LostError):
        reply.end()
    reply.fail(QueueFullError("busy", 7))
    state = reply.state()
    assert state["phase"] == "error"
    assert state["error"] == {"kind": "queue_full", "message": "busy", "retry_after_s": 7}
    assert state["steps"][0]["text"] == "2 +"


def test_a_choice_that_ends_in_an_error() -> None:
    with pytest.raises(ApiError, match="error"):
        Reply("q").add({"choices": [{"delta": {}, "finish_reason": "error"}]})
