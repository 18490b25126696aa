"""Greedy output through the whole stack is, token for token, that of Hugging Face transformers on the same weights."""

import asyncio
import random
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.application import Served
from tests.support.status import until_running

TOKENS = 48


def prompts() -> list[str]:
    rng = random.Random(5)
    lengths = [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 127, 128, 129, 144, 200, 233, 255, 256, 257, 300, 377, 500, 610, 900]
    return ["".join(rng.choices("0123456789 +-*=?abcxyz等于多少\n", k=length)) for length in lengths]


@pytest.fixture(scope="module")
def expected(nano: Path) -> dict[str, list[int]]:
    """Prompt -> the token ids that transformers generates greedily, in float32 on the CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other beside an engine that computes take many times as long
    model = AutoModelForCausalLM.from_pretrained(nano, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(nano)
    found = {}
    for prompt in prompts():
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        made = model.generate(ids, do_sample=False, max_new_tokens=TOKENS)
        found[prompt] = made[0][ids.shape[1] :].tolist()
    torch.set_num_threads(threads)
    return found


async def generated(http: httpx.AsyncClient, prompt: str) -> list[int]:
    body = {"model": "nano", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "return_token_ids": True}
    response = await http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    ids: list[int] = response.json()["choices"][0]["token_ids"]
    return ids


def client(served: Served) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=served.url, timeout=60)


async def test_alone(served: Served, expected: dict[str, list[int]]) -> None:
    async with client(served) as http:
        for prompt, ids in expected.items():
            assert await generated(http, prompt) == ids, prompt


async def test_while_sixteen_others_run(served: Served, expected: dict[str, list[int]]) -> None:
    stop = asyncio.Event()

    async def noise(http: httpx.AsyncClient, seed: int) -> int:
        count = 0
        while not stop.is_set():
            body: dict[str, Any] = {"model": "nano", "prompt": f"noise {seed}", "max_tokens": 100, "seed": seed, "ignore_eos": True}
            assert (await http.post("/v1/completions", json=body)).status_code == 200
            count += 1
        return count

    async with client(served) as http:
        others = [asyncio.create_task(noise(http, seed)) for seed in range(16)]
        await until_running(http, 16)
        for prompt, ids in expected.items():
            assert await generated(http, prompt) == ids, prompt
        stop.set()
        assert all(count > 0 for count in await asyncio.gather(*others))


async def test_all_together(served: Served, expected: dict[str, list[int]]) -> None:
    async with client(served) as http:
        assert await asyncio.gather(*(generated(http, prompt) for prompt in expected)) == list(expected.values())
