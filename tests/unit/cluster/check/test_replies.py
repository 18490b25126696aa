"""What replies must be, on scripted replies: those that are not so are found."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch

from cluster.check import replies
from cluster.check.report import Failed


class Successor:
    """A model after whose tokens the next number comes, and the one after that almost."""

    def __call__(self, ids: torch.Tensor) -> Any:
        logits = torch.full((*ids.shape, 20), -9.0)
        logits.scatter_(2, (ids + 1).unsqueeze(2), 1.0)
        logits.scatter_(2, (ids + 2).unsqueeze(2), 0.99)
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize(("reply", "far"), [([3, 4, 5], 0.0), ([3, 5, 6], 0.01), ([3, 4, 9], 10.0), ([1, 2], 10.0)])
def test_the_worst_token_of_a_reply(reply: Sequence[int], far: float) -> None:
    model: Any = Successor()
    assert replies.behind(model, [1, 2], reply) == pytest.approx(far, abs=1e-6)


def completions(ids: list[int], finish: str) -> httpx.Client:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"choices": [{"token_ids": ids, "finish_reason": finish}]})

    return httpx.Client(base_url="http://ingress", transport=httpx.MockTransport(answer))


@pytest.mark.parametrize(
    ("ids", "finish", "message"),
    [
        ([], "stop", "0 tokens"),
        ([5, 6], "length", "2 tokens, finish_reason 'length'"),
        ([5] * replies.TOKENS, "length", r"0 of 12 replies \(576 tokens\) .* worst token: 10 behind its best, allowed: 0.02"),
    ],
)
def test_replies_that_are_not_those_of_transformers(
    ids: list[int], finish: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies.AutoModelForCausalLM, "from_pretrained", lambda folder, dtype: Successor())
    monkeypatch.setattr(replies.AutoTokenizer, "from_pretrained", lambda folder: lambda prompt: {"input_ids": [1, 2]})
    with completions(ids, finish) as http, pytest.raises(Failed, match=message):
        replies.parity(http, Path("nano"), "nano")
    with completions([3, 4, 5], "stop") as http:
        assert replies.parity(http, Path("nano"), "nano").startswith("12 of 12 replies (36 tokens)")


def test_what_is_not_kept_is_named() -> None:
    """A server that gives each request the same reply, with too much of everything."""
    segments = [{"action": "explore"}] + [{"action": "reflect"}] * 3
    message = {"content": json.dumps({"result": 1}), "reasoning": "", "coat": {"segments": segments, "answer": "1"}}
    message["coat"]["vote"] = {"votes": [{"answer": "1"}]}
    logprobs = {"content": [{"logprob": 0.5}]}
    reply = {"choices": [{"message": message, "logprobs": logprobs}]}
    reply["usage"] = {"completion_tokens_details": {"reasoning_tokens": 22}}
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=reply))
    with httpx.Client(base_url="http://ingress", transport=transport) as http, pytest.raises(Failed) as raised:
        replies.limits(http, "nano")
    names = "max_reflections min_reflections max_explorations max_reasoning_tokens".split()
    names += ["vote", "structured output", "a format behind a thought", "logprobs", "choices"]
    assert str(raised.value) == f"not kept: {', '.join(names)}"


def test_a_refusal_is_told() -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(503, text="no replica"))
    with httpx.Client(base_url="http://ingress", transport=transport) as http, pytest.raises(Failed, match="503: no replica"):
        replies.limits(http, "nano")
