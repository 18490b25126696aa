"""The application on vLLM's Model Runner V2, without and with speculation: what it replies is what it replies on the first runner.

Speculation drafts what has come before (n-grams), and must change no greedy reply. Triton's interpreter is slow, so chains are
short: nano writes 57 tokens about 2 + 3. Nothing here depends on speed, so the time limits are those of a crowded machine.
"""

import asyncio
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest

from cluster.bench.chaos import counted
from cluster.bench.chats import Reply
from cluster.plan.ngrams import tokens_a_step
from tests.support.application import Served
from tests.support.paths import ROOT
from tests.support.status import ready, until_idle

DRAFTS, SHORTEST, LONGEST = 2, 1, 3
FULL = 32
"""With so many requests, nothing is drafted any more."""
SPECULATION = {
    "method": "ngram_gpu",
    "num_speculative_tokens": DRAFTS,
    "prompt_lookup_min": SHORTEST,
    "prompt_lookup_max": LONGEST,
    "num_speculative_tokens_per_batch_size": [[1, FULL - 1, DRAFTS], [FULL, FULL, 0]],
}
ARGUMENTS = (
    "preset=nano-cpu",
    "ui.enabled=false",
    f"engine.max_num_seqs={FULL}",
    "engine.max_model_len=1024",
    "llm.hung_after_s=600",
    "llm.wait_s=900",
)
STARTED_S = PATIENCE_S = 900
TOKENS = 32
"""Of a stream whose engine is killed."""
STREAMS = 20

SCHEMA = {"type": "object", "properties": {"result": {"type": "integer"}}, "required": ["result"], "additionalProperties": False}
NUMBER = {"type": "json_schema", "json_schema": {"name": "number", "schema": SCHEMA}}


def question(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def planted(thought: str) -> dict[str, Any]:
    """Return a chat in which the client has begun the chain."""
    messages = [question("What is 2 + 3?"), {"role": "assistant", "content": thought}]
    return {"messages": messages, "add_generation_prompt": False, "continue_final_message": True}


RIGHT = "<|continue|>2+3: 2+3=5 → 5<|reflect|>Let me check.\n5-3:"
WRONG = "<|continue|>2+3: 2+3=6 → 6<|reflect|>Let me check.\n6-3: 6-3=3 → 3, expected 2: 3/2 not. Wrong."

CASES: dict[str, dict[str, Any]] = {
    "a chain": {},
    "few reasoning tokens": {"coat": {"max_reasoning_tokens": 8}},
    "no reflections": {"coat": {"max_reflections": 0}},
    "two reflections at least": {"coat": {"min_reflections": 2}},
    "a mistake": planted(WRONG),
    "no explorations": planted(WRONG) | {"coat": {"max_explorations": 0}},
    "all limits": planted(WRONG)
    | {"coat": {"min_reflections": 2, "max_reflections": 2, "max_explorations": 0, "max_reasoning_tokens": 30}},
    "a chain that goes on": planted(RIGHT),
    "a chain that goes on and must answer": planted(RIGHT) | {"coat": {"max_reasoning_tokens": 5}},
    "a chain that goes on and must reflect again": planted(RIGHT) | {"coat": {"min_reflections": 2}},
    "a vote": {"coat": {"vote": {"samples": 3, "temperature": 0.01, "stop_when_decided": False}}},
    "log probabilities": {"logprobs": True, "top_logprobs": 2},
    "two choices": {"n": 2, "temperature": 0.01},
    "penalties": {"frequency_penalty": 2, "presence_penalty": 2, "repetition_penalty": 1.5},
    "a long prompt": {"messages": [question("What is 2 + 3?\n" * 30)], "max_tokens": 20},
    "a format alone": {"structured_outputs": {"regex": "[0-9]{3}( [0-9]{2}){5}"}, "coat": {"parse": False}},
    "a number in JSON": {"response_format": NUMBER},
    "a format behind a short thought": {
        "structured_outputs": {"regex": "(yes|no): [0-9]{1,4}"},
        "coat": {"max_reasoning_tokens": 8},
    },
    "a format and a second reflection": {"response_format": NUMBER, "coat": {"min_reflections": 2}},
    "a vote over JSON": {
        "response_format": NUMBER,
        "coat": {"vote": {"samples": 2, "temperature": 0.01, "stop_when_decided": False}},
    },
}
TELLING = {
    "a chain": (
        "few reasoning tokens",
        "no reflections",
        "two reflections at least",
        "penalties",
        "a format alone",
        "a number in JSON",
        "a format behind a short thought",
    ),
    "a mistake": ("no explorations", "all limits"),
    "a chain that goes on": ("a chain that goes on and must answer", "a chain that goes on and must reflect again"),
    "a number in JSON": ("a format and a second reflection",),
}
"""Cases whose chain must be another one than that of the first: there, what is asked for changes something."""


def body(**more: Any) -> dict[str, Any]:
    """Return a chat."""
    return {"model": "nano", "temperature": 0, "max_tokens": 130, "messages": [question("What is 2 + 3?")]} | more


async def ask(http: httpx.AsyncClient, asked: Mapping[str, Any]) -> Any:
    """Return what a reply says: its choices without identifiers, with their tokens, log probabilities rounded."""
    response = await http.post("/v1/chat/completions", json={**asked, "return_token_ids": "vote" not in (asked.get("coat") or {})})
    assert response.status_code == 200, response.text
    choices = response.json()["choices"]
    for choice in choices:
        for item in (choice["logprobs"] or {}).get("content") or []:
            item["logprob"] = round(item["logprob"], 2)
            item["top_logprobs"] = [(top["token"], round(top["logprob"], 2)) for top in item["top_logprobs"]]
    return choices


def client(served: Served) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=served.url, timeout=PATIENCE_S, limits=httpx.Limits(max_connections=2 * STREAMS))


async def every_case(served: Served) -> dict[str, Any]:
    """Return the reply of each case; they run together."""
    async with client(served) as http:
        replies = await asyncio.gather(*(ask(http, body(**more)) for more in CASES.values()))
    return dict(zip(CASES, replies, strict=True))


async def count(http: httpx.AsyncClient, name: str) -> float:
    """Return one of vLLM's counters."""
    return sum(map(float, re.findall(rf"^vllm:{name}_total\{{.*\}} (\S+)", (await http.get("/metrics")).text, re.MULTILINE)))


@pytest.fixture(scope="module")
def wanted() -> dict[str, Any]:
    """The replies of the first runner, which has no Triton on a CPU."""
    without = os.environ["PYTHONPATH"].partition(os.pathsep)[2]
    with Served(*ARGUMENTS, environment={"VLLM_USE_V2_MODEL_RUNNER": "0", "PYTHONPATH": without}, started_s=STARTED_S) as served:
        return asyncio.run(every_case(served))


@pytest.fixture(scope="module", params=["plain", "speculating"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def served(mode: str, wanted: dict[str, Any]) -> Iterator[Served]:
    """An application on the second runner. The first runner's comes before it: two would want the same ports."""
    assert os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1", "run it with dev/v2.py, as `make v2` does"
    speculation = (f"engine.speculative_config={json.dumps(SPECULATION)}",) if mode == "speculating" else ()
    with Served(*ARGUMENTS, *speculation, started_s=STARTED_S) as application:
        yield application


def test_the_engine_has_the_second_runner(served: Served) -> None:
    """Otherwise vLLM says that it takes the first."""
    log = (ROOT / ".run" / "serve.log").read_text()
    assert "engine: start" in log
    assert "V1 model runner instead" not in log


def test_what_is_asked_for_changes_the_chain(wanted: dict[str, Any]) -> None:
    """Otherwise equal replies would say nothing of it."""

    def tokens(name: str) -> list[int]:
        [choice] = wanted[name]
        found: list[int] = choice["token_ids"]
        return found

    assert all(tokens(name) for names in TELLING.values() for name in names)
    assert [name for first, names in TELLING.items() for name in names if tokens(name) == tokens(first)] == []


async def test_every_reply_is_that_of_the_first_runner(wanted: dict[str, Any], served: Served) -> None:
    replies = await every_case(served)
    assert {name: reply for name, reply in replies.items() if reply != wanted[name]} == {}
    async with client(served) as http:
        hits = await count(http, "prefix_cache_hits")
        again = {name: await ask(http, body(**CASES[name])) for name in ("a long prompt", "two reflections at least")}
        assert again == {name: replies[name] for name in again}
        assert await count(http, "prefix_cache_hits") > hits


async def test_a_client_that_leaves_frees_its_place(served: Served) -> None:
    """Beside it, another request goes on, which would end after it if nobody left."""
    most, written = 900, 0
    usage = {"include_usage": True, "continuous_usage_stats": True}
    asked = body(stream=True, ignore_eos=True, max_tokens=most, stream_options=usage)
    async with client(served) as http, http.stream("POST", "/v1/chat/completions", json=asked) as leaving:
        await anext(leaving.aiter_lines())
        async with http.stream("POST", "/v1/chat/completions", json=asked) as staying:
            lines = staying.aiter_lines()
            await anext(lines)
            await leaving.aclose()
            async for line in lines:
                if line.startswith("data: {"):
                    written = json.loads(line.removeprefix("data: "))["usage"]["completion_tokens"]
                if (await ready(http))["replica"]["running"] == 1:
                    break
        assert written < most - 50
        await until_idle(http, PATIENCE_S)


async def test_drafts_are_accepted_and_those_of_other_texts_too(served: Served, mode: str) -> None:
    """A chain that was written before is drafted whole, but for the places at which it is not yet told from others."""
    steps = []
    async with client(served) as http:
        for _ in range(2):
            before = await count(http, "spec_decode_num_accepted_tokens")
            asked = body(messages=[question("What is 47 * 6 - 100?")], max_tokens=250, return_token_ids=True)
            response = (await http.post("/v1/chat/completions", json=asked)).json()
            reply = response["choices"][0]["token_ids"]
            accepted = await count(http, "spec_decode_num_accepted_tokens") - before
            steps.append((len(reply) - 1) / (len(reply) - 1 - accepted))
    alone = tokens_a_step([(response["prompt_token_ids"], reply)], DRAFTS, SHORTEST, LONGEST)
    print(
        f"tokens a step: {steps[0]:.3f}, and again {steps[1]:.3f}, of {len(reply)}; {alone:.3f} by cluster.plan for this text alone"
    )
    if mode == "speculating":
        assert alone * 0.9 < steps[0] < steps[1]
        assert steps[1] > 0.8 * (1 + DRAFTS)
    else:
        assert steps == [1, 1]


async def test_nothing_is_drafted_where_too_many_requests_run_for_it_to_pay(served: Served, mode: str) -> None:
    """Not all requests run in the first and last steps, which draft. The rest of the drafts of as many requests alone is saved."""
    tokens = 16
    async with client(served) as http:
        before = await count(http, "spec_decode_num_drafts")
        await ask(http, body(ignore_eos=True, max_tokens=tokens))
        between = await count(http, "spec_decode_num_drafts")
        await ask(http, body(ignore_eos=True, max_tokens=tokens, n=FULL, temperature=0.01))
        after = await count(http, "spec_decode_num_drafts")
    alone, together = between - before, after - between
    print(f"{alone:.0f} drafts in {tokens} tokens of a request, {together:.0f} in those of {FULL}")
    assert (alone > 0) == (mode == "speculating")
    assert together <= FULL * alone / 3


def stream(number: int) -> dict[str, Any]:
    """Return one of the streams that go on when the engine is killed; for each kind the engine keeps something else."""
    kinds: tuple[dict[str, Any], ...] = (
        {"coat": {"parse": False}},
        {"coat": {"max_reasoning_tokens": TOKENS // 2, "max_reflections": 1}},
        {"temperature": 1, "seed": number},
        {"structured_outputs": {"regex": f"[0-9 ]{{{TOKENS - 10}}}"}, "coat": {"parse": False}, "ignore_eos": False},
        {"response_format": NUMBER, "coat": {"max_reasoning_tokens": TOKENS // 3}, "ignore_eos": False},
        {"frequency_penalty": 0.2, "logprobs": True, "top_logprobs": 1},
    )
    asked = question(f"What is {100 + number} * 6 - {3 * number}?")
    return body(messages=[asked], stream=True, ignore_eos=True, max_tokens=TOKENS) | kinds[number % len(kinds)]


async def test_a_killed_engine_changes_no_stream(served: Served, mode: str) -> None:
    async with client(served) as http:
        calm, struck = ([Reply() for _ in range(STREAMS)] for _ in range(2))
        await asyncio.gather(*(reply.read(http, stream(number)) for number, reply in enumerate(calm)))
        assert all(reply.well for reply in calm), [reply.errors for reply in calm]
        before, _ = await counted(http)
        engine = served.engine()
        reading = asyncio.gather(*(reply.read(http, stream(number)) for number, reply in enumerate(struck)))
        while sum(reply.chunks for reply in struck) < STREAMS * TOKENS // 4:
            assert not reading.done(), [reply.errors for reply in struck]
            await asyncio.sleep(0.01)
        engine.kill()
        await reading
        moved = (await counted(http))[0] - before
    assert {number: reply.errors for number, reply in enumerate(struck) if not reply.well} == {}
    # With speculation, what a seed gives depends on the engine's steps, too.
    compared = [number for number in range(STREAMS) if mode == "plain" or "seed" not in stream(number)]
    assert [number for number in compared if not struck[number].same(calm[number])] == []
    assert moved > STREAMS // 2
