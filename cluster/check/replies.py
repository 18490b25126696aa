"""What the replies of a running application must be: as transformers would write them, within each limit, the same after a kill."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from cluster.bench import chats
from cluster.bench.chats import Reply
from cluster.check.report import Failed

TOKENS = 48
NEAR = 0.02
"""How far behind the best token one may be, in log probability: a card may round float32 (TF32), and ties then fall either way."""
STREAMS = 20
QUESTION = [{"role": "user", "content": "What is 47 * 6 - 100?"}]

SCHEMA = {"type": "object", "properties": {"result": {"type": "integer"}}, "required": ["result"], "additionalProperties": False}
NUMBER = {"type": "json_schema", "json_schema": {"name": "number", "schema": SCHEMA}}


def prompts() -> list[str]:
    """Return prompts of many lengths, around the sizes of blocks and batches."""
    rng = random.Random(5)
    return [
        "".join(rng.choices("0123456789 +-*=?abc\n", k=length)) for length in (1, 2, 5, 13, 34, 127, 128, 129, 255, 257, 500, 900)
    ]


def parity(http: httpx.Client, folder: Path, model: str) -> str:
    """Compare greedy replies, token by token, with what transformers writes in float32 on the CPU after the same tokens."""
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    worst, equal, tokens = 0.0, 0, 0
    for prompt in prompts():
        body = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "return_token_ids": True}
        [choice] = post(http, "/v1/completions", body)["choices"]
        ids = choice["token_ids"]
        if not ids or (choice["finish_reason"] == "length") != (len(ids) == TOKENS):
            raise Failed(f"{len(ids)} tokens, finish_reason {choice['finish_reason']!r}, after {prompt[:20]!r}...")
        short = behind(reference, tokenizer(prompt)["input_ids"], ids)
        worst, equal, tokens = max(worst, short), equal + (short == 0), tokens + len(ids)
    said = (
        f"{equal} of {len(prompts())} replies ({tokens} tokens) are those of transformers; worst token: {worst:.3g} behind its best"
    )
    if worst > NEAR:
        raise Failed(f"{said}, allowed: {NEAR:g}")
    return said


def behind(reference: PreTrainedModel, prompt: Sequence[int], reply: Sequence[int]) -> float:
    """Return how far a reply's worst token is behind the best one in the reference's log probabilities; 0 for a greedy reply."""
    with torch.inference_mode():
        logits = reference(torch.tensor([[*prompt, *reply]])).logits[0, len(prompt) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(reply).unsqueeze(1)).squeeze(1)
    return float((logits.max(dim=1).values - chosen).max())


def post(http: httpx.Client, path: str, body: Mapping[str, Any]) -> Any:
    """Return the reply to a request. Raises Failed with the error's text."""
    response = http.post(path, json=body)
    if response.status_code != 200:
        raise Failed(f"{path}: status {response.status_code}: {response.text[:300]}")
    return response.json()


def limits(http: httpx.Client, model: str) -> str:
    """Ask with each limit of `coat`, a vote and structured output, and see that the reply keeps it."""

    def actions(reply: Any) -> list[str]:
        return [segment["action"] for segment in reply["choices"][0]["message"]["coat"]["segments"]]

    checks: dict[str, tuple[dict[str, Any], Callable[[Any], bool]]] = {
        "max_reflections": ({"coat": {"max_reflections": 0}}, lambda reply: "reflect" not in actions(reply)),
        "min_reflections": ({"coat": {"min_reflections": 4}}, lambda reply: actions(reply).count("reflect") >= 4),
        "max_explorations": ({"coat": {"max_explorations": 0}}, lambda reply: "explore" not in actions(reply)),
        "max_reasoning_tokens": (
            {"coat": {"max_reasoning_tokens": 20}},
            lambda reply: (
                reply["usage"]["completion_tokens_details"]["reasoning_tokens"] <= 21  # the line ends in it
                and bool(reply["choices"][0]["message"]["coat"]["answer"])
            ),
        ),
        "vote": (
            {"coat": {"vote": {"samples": 8, "temperature": 0.5}}},
            lambda reply: reply["choices"][0]["message"]["coat"]["vote"]["votes"][0]["answer"] == "182",
        ),
        "structured output": (
            {"structured_outputs": {"regex": "[0-9]{6}"}, "coat": {"parse": False}},
            lambda reply: len(text := reply["choices"][0]["message"]["content"]) == 6 and text.isdecimal(),
        ),
        "a format behind a thought": (
            {"response_format": NUMBER, "coat": {"max_reflections": 1}},
            lambda reply: (
                isinstance(json.loads((message := reply["choices"][0]["message"])["content"])["result"], int)
                and bool(message["reasoning"])
            ),
        ),
        "logprobs": (
            {"logprobs": True, "top_logprobs": 2},
            lambda reply: all(item["logprob"] <= 0 for item in reply["choices"][0]["logprobs"]["content"]),
        ),
        "choices": ({"n": 3, "temperature": 0.8}, lambda reply: len(reply["choices"]) == 3),
    }
    broken = []
    for name, (asked, kept) in checks.items():
        body = {"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": 1500, "seed": 1} | asked
        if not kept(post(http, "/v1/chat/completions", body)):
            broken.append(name)
    if broken:
        raise Failed(f"not kept: {', '.join(broken)}")
    return f"kept: {', '.join(checks)}"


async def killed(url: str, kill: Callable[[], Awaitable[None]]) -> str:
    """Compare streams during which `kill` ends the engine with the same streams undisturbed."""
    # With speculation, as on a card, what a seed gives depends on the engine's steps, too.
    numbers = [number for number in range(2 * STREAMS) if "seed" not in chats.question(number)][:STREAMS]
    async with chats.client(url) as http:
        wanted = await _streams(http, numbers)
        if bad := [reply.errors for reply in wanted if not reply.well]:
            raise Failed(f"{len(bad)} undisturbed streams failed: {bad[0]}")
        replies = [Reply() for _ in numbers]
        reading = asyncio.gather(
            *(reply.read(http, chats.question(number)) for reply, number in zip(replies, numbers, strict=True))
        )
        while sum(reply.chunks for reply in replies) < 2 * STREAMS and not reading.done():
            await asyncio.sleep(0.001)
        await kill()
        await reading
    lost = [reply.errors for reply in replies if not reply.well]
    wrong = sum(not reply.same(other) for reply, other in zip(replies, wanted, strict=True) if reply.well)
    if lost or wrong:
        raise Failed(f"of {STREAMS} streams {len(lost)} were lost and {wrong} went on differently: {lost[:1]}")
    return f"{STREAMS} streams went on on a new engine, all as undisturbed"


async def _streams(http: httpx.AsyncClient, numbers: Sequence[int]) -> list[Reply]:
    replies = [Reply() for _ in numbers]
    await asyncio.gather(*(reply.read(http, chats.question(number)) for reply, number in zip(replies, numbers, strict=True)))
    return replies
