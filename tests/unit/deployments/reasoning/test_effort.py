"""Efforts and budgets of other APIs as limits of a chain: the pure function, and every API's way to it."""

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from vllm.sampling_params import SamplingParams

from deployments.reasoning.effort import EFFORTS, apply
from deployments.reasoning.limits import ARGUMENT
from deployments.reasoning.request import CoatOptions
from tests.support.in_process import Server, served
from tests.support.paths import ROOT
from ui import question

TOKENS = {"reflect": 4, "end": [2]}
USER = [{"role": "user", "content": "1"}]
CHAT, MESSAGES, RESPONSES, COMPLETIONS = "/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/completions"


def applied(effort: str | None, budget: int | None = None, **own: int) -> dict[str, Any] | None:
    params = SamplingParams(thinking_token_budget=budget, extra_args={ARGUMENT: TOKENS | own} if own else None)
    apply(params, effort, TOKENS)
    assert params.thinking_token_budget is None
    found = (params.extra_args or {}).get(ARGUMENT)
    return None if found is None else {name: value for name, value in found.items() if name not in (*TOKENS, "planted")}


@pytest.mark.parametrize(
    ("given", "own", "limits"),
    [
        ((None, None), {}, None),
        (("medium", None), {}, None),
        (("unheard of", None), {}, None),
        (("none", None), {}, {"max_reasoning_tokens": 0}),
        ((None, 7), {}, {"max_reasoning_tokens": 7}),
        (("low", 7), {}, {"max_reasoning_tokens": 7, "max_reflections": 1, "max_explorations": 1}),
        (("high", None), {}, {"min_reflections": 2}),
        (("low", None), {"max_reflections": 3}, {"max_reasoning_tokens": 400, "max_reflections": 3, "max_explorations": 1}),
        (("high", None), {"max_reflections": 1}, {"max_reflections": 1}),
        (("high", 9), {"min_reflections": 1, "max_reasoning_tokens": 5}, {"min_reflections": 1, "max_reasoning_tokens": 5}),
        (("medium", None), {"max_reflections": 1}, {"max_reflections": 1}),
    ],
)
def test_what_a_request_asks_for_in_coat_comes_first(
    given: tuple[str | None, int | None], own: dict[str, int], limits: dict[str, int] | None
) -> None:
    assert applied(*given, **own) == limits


def test_each_effort_is_a_set_of_limits_and_the_page_has_the_same() -> None:
    for limits in EFFORTS.values():
        assert CoatOptions(**limits).limits == limits
    assert [EFFORTS[name] for name in ("low", "medium", "high")] == [
        question.EFFORTS[name] for name in ("quick", "normal", "thorough")
    ]


def test_the_documentation_has_them() -> None:
    rows = re.findall(r"^\| (`(?:none|minimal|low|medium|high|xhigh)`.*?) \| (.*?) \|$", (ROOT / "docs/api.md").read_text(), re.M)
    told = {}
    for names, limits in rows:
        efforts = re.findall(r"`(\w+)`", names)
        for place, effort in enumerate(efforts):
            told[effort] = {
                name: int(numbers.split(", ")[place]) for name, numbers in re.findall(r"`(\w+)` (\d+(?:, \d+)*)", limits)
            }
    assert told == EFFORTS


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Server]:
    async with served() as server:
        yield server


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "limits"),
    [
        (CHAT, {"messages": USER, "reasoning_effort": "low"}, EFFORTS["low"]),
        (
            CHAT,
            {"messages": USER, "reasoning_effort": "high", "coat": {"max_reflections": 3}},
            {"min_reflections": 2, "max_reflections": 3},
        ),
        (CHAT, {"messages": USER, "thinking_token_budget": 5}, {"max_reasoning_tokens": 5}),
        (CHAT, {"messages": USER}, None),
        (COMPLETIONS, {"prompt": "1", "thinking_token_budget": 5}, {"max_reasoning_tokens": 5}),
        (RESPONSES, {"input": "1", "reasoning": {"effort": "minimal"}}, EFFORTS["minimal"]),
        (MESSAGES, {"messages": USER, "max_tokens": 2000, "output_config": {"effort": "high"}}, EFFORTS["high"]),
        (
            MESSAGES,
            {"messages": USER, "max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 1024}},
            {"max_reasoning_tokens": 1024},
        ),
        (MESSAGES, {"messages": USER, "max_tokens": 2000, "thinking": {"type": "disabled"}}, EFFORTS["none"]),
    ],
)
async def test_every_api_sets_them(
    server: Server, path: str, body: dict[str, Any], limits: dict[str, int] | None, stream: bool
) -> None:
    answer = await server.http.post(path, json={"model": "nano", "stream": stream} | body)
    assert answer.status_code == 200, answer.text
    sent = (server.core.requests[-1].sampling_params.extra_args or {}).get(ARGUMENT)  # type: ignore[union-attr]
    assert (sent is None) == (limits is None)
    if limits is not None:
        assert {name: sent[name] for name in sent if name.startswith(("max_", "min_"))} == limits
        assert sent["actions"] == [3, 4, 5]
