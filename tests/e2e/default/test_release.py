"""Whatever ends a request, its place in the engine is free at once and no state of it remains anywhere."""

import asyncio
import random
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from tests.support.application import Served
from tests.support.status import ended, ready, until_idle, until_ready, until_running, until_states
from tests.support.until import until_async

LONG = {"model": "nano", "prompt": "count", "max_tokens": 4000, "ignore_eos": True, "stream": True}


@pytest.fixture
async def http(served: Served) -> Any:
    async with httpx.AsyncClient(base_url=served.url, timeout=60) as client:
        await until_idle(client)
        yield client


async def test_a_client_that_leaves_frees_its_place(http: httpx.AsyncClient) -> None:
    async with AsyncExitStack() as streams:
        lines = []  # kept: httpx closes a response whose iterator is collected
        for _ in range(8):
            response = await streams.enter_async_context(http.stream("POST", "/v1/completions", json=LONG))
            lines.append(response.aiter_lines())
            await anext(lines[-1])
        await until_running(http, 8)
    await until_idle(http)


async def test_requests_are_carried_while_there_are_any(http: httpx.AsyncClient) -> None:
    """By one handle call, which ends when the last of them has been gone for a moment."""

    async def carriers() -> int:
        assert (await http.post("/v1/completions", json={"model": "nano", "prompt": "1", "max_tokens": 1})).status_code == 200
        return int((await ready(http))["ingress"]["carriers"])

    await until_async(carriers, "a carrier", holds=lambda count: count == 1)
    await until_ready(http, "no carrier is left", lambda now: not now["ingress"]["carriers"])


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_client_that_leaves_before_the_answer_frees_its_place(served: Served, http: httpx.AsyncClient, path: str) -> None:
    before = await ended(http)
    body = LONG | {"stream": False}
    if "chat" in path:
        body |= {"messages": [{"role": "user", "content": body.pop("prompt")}]}
    call = asyncio.create_task(http.post(path, json=body))
    await until_running(http, 1)
    frozen = served.engine()
    frozen.suspend()  # so that it cannot come to its end before the client leaves, however quick the machine
    try:
        call.cancel()
        await until_states(http, 0)
    finally:
        frozen.resume()
    await until_idle(http)
    after = await ended(http)
    assert after["length"] == before["length"], "it went on to its last token"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_ends_the_engine_work(http: httpx.AsyncClient, stream: bool) -> None:
    before = await ended(http)
    reply = await http.post("/v1/completions", json=LONG | {"stream": stream}, headers={"x-request-timeout-s": "0.5"})
    assert reply.status_code == (200 if stream else 504)
    assert "not finished within 0.5 s" in reply.text
    assert reply.text.endswith("data: [DONE]\n\n") == stream
    await until_idle(http)
    assert (await ended(http))["length"] == before["length"], "it went on to its last token"


async def test_one_of_several_samples_that_stops_frees_its_place(http: httpx.AsyncClient) -> None:
    body = {"model": "nano", "prompt": "x", "n": 4, "max_tokens": 200, "temperature": 1, "seed": 5, "stop": ["a"]}
    done = (await http.post("/v1/completions", json=body)).json()
    assert {choice["finish_reason"] for choice in done["choices"]} >= {"stop"}
    await until_idle(http)


async def test_nothing_remains_after_200_mixed_requests(http: httpx.AsyncClient) -> None:
    rng = random.Random(11)
    served_before = (await ready(http))["replica"]["served"]

    async def stops(number: int) -> int:
        body = {"model": "nano", "prompt": f"p{number}", "max_tokens": 200, "ignore_eos": True, "stop": ["k", "7"]}
        return (await http.post("/v1/completions", json=body)).status_code

    async def reaches_max_tokens(number: int) -> int:
        body = {"model": "nano", "prompt": f"p{number}", "max_tokens": rng.randrange(1, 30), "n": rng.randrange(1, 4)}
        return (await http.post("/v1/completions", json=body)).status_code

    async def leaves(number: int) -> int:
        async with http.stream("POST", "/v1/completions", json=LONG | {"prompt": f"p{number}"}) as response:
            lines = response.aiter_lines()
            await anext(lines)
            return response.status_code

    async def is_wrong(number: int) -> int:
        wrong = rng.choice([{"max_tokens": -1}, {"temperature": 9}, {"n": 0}, {"prompt": "x" * 9000}])
        return (await http.post("/v1/completions", json={"model": "nano", "prompt": f"p{number}"} | wrong)).status_code

    kinds = [stops, reaches_max_tokens, leaves, is_wrong]
    codes = await asyncio.gather(*(kinds[number % 4](number) for number in range(200)))
    assert {number % 4: code for number, code in enumerate(codes)} == {0: 200, 1: 200, 2: 200, 3: 400}
    assert set(codes[3::4]) == {400}
    assert {code for number, code in enumerate(codes) if number % 4 != 3} == {200}
    await until_idle(http)
    assert (await ready(http))["replica"]["served"] >= served_before + 150
