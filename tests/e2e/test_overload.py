"""More than can be served: full queues refuse at once, clients take turns, and a slow reader holds up nobody else."""

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.access.keys import digest
from tests.support.application import LOGS, Served, logged
from tests.support.status import ended, ready, until_states
from tests.support.until import until_async

ARGUMENTS = ("engine.max_num_seqs=1", "engine.max_num_queued_reqs=120", "engine.max_num_queued_tokens=40000", "ui.enabled=false")
CROWD, SINGLE, SLOW = "sk-of-a-crowd", "sk-of-a-single-one", "sk-of-a-slow-one"
CHAT: dict[str, Any] = {"model": "nano", "messages": [{"role": "user", "content": "What is 2 + 2?"}], "stream": True}
CHAT |= {"max_tokens": 20, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """One sequence at a time, and three keys."""
    keys = [f"{name}:{digest(key)}" for name, key in zip("abc", (CROWD, SINGLE, SLOW), strict=True)]
    with Served(*ARGUMENTS, environment={"SATORI_API_KEYS": ",".join(keys)}) as application:
        yield application


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


class Asked:
    """A streamed chat: when its first token came in the order of all first tokens, and how it ended."""

    def __init__(self, http: httpx.AsyncClient, key: str, started: list["Asked"], **body: Any) -> None:
        self.key, self._started = key, started
        self.status, self.retry_after, self.events = 0, "", list[str]()
        self.task = asyncio.create_task(self._read(http, CHAT | body))

    async def _read(self, http: httpx.AsyncClient, body: dict[str, Any]) -> None:
        async with http.stream("POST", "/v1/chat/completions", json=body, headers=bearer(self.key)) as response:
            self.status, self.retry_after = response.status_code, response.headers.get("retry-after", "")
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    self.events.append(line)
                    if len(self.events) == 2:  # the first one tells the role only
                        self._started.append(self)


@pytest.fixture
async def http(served: Served) -> Any:
    limits = httpx.Limits(max_connections=300)
    async with httpx.AsyncClient(base_url=served.url, timeout=80, limits=limits) as client:
        yield client


async def test_a_full_queue_refuses_at_once_and_the_rest_is_answered(http: httpx.AsyncClient) -> None:
    asked = [Asked(http, CROWD, []) for _ in range(150)]
    await asyncio.gather(*(one.task for one in asked))
    statuses = [one.status for one in asked]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 120
    refused = [one for one in asked if one.status == 429]
    assert all(int(one.retry_after) >= 1 for one in refused)
    assert all(one.events[-1] == "data: [DONE]" for one in asked if one.status == 200)
    assert (await ready(http))["ingress"]["states"] == 0


async def test_tokens_bound_the_queue_too(http: httpx.AsyncClient) -> None:
    body = {"model": "nano", "prompt": "1 " * 1500, "max_tokens": 400, "ignore_eos": True}
    http.headers.update(bearer(SINGLE))  # metrics need a key, too
    before = (await ended(http))["length"]
    calls = [asyncio.create_task(http.post("/v1/completions", json=body, headers=bearer(CROWD))) for _ in range(40)]
    done, going_on = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    refusal = done.pop().result()
    assert refusal.status_code == 429
    assert "engine.max_num_queued_tokens=40000" in refusal.json()["error"]["message"]
    for call in going_on:
        call.cancel()
    await until_states(http, 0)
    assert (await ended(http))["length"] <= before + 1, "nobody is there any more"


async def test_a_single_request_starts_before_two_more_of_a_crowd(served: Served, http: httpx.AsyncClient) -> None:
    started: list[Asked] = []
    frozen = served.engine()
    frozen.suspend()  # until all of the crowd are there
    try:
        crowd = [Asked(http, CROWD, started) for _ in range(100)]
        await until_states(http, 100)
    finally:
        frozen.resume()
    await until_async(lambda: len(started), "10 of the crowd have started", holds=lambda count: count >= 10, every_s=0.001)
    frozen.suspend()
    try:
        before = len(started)
        single = Asked(http, SINGLE, started)
        await until_states(http, 100 - sum(one.task.done() for one in crowd) + 1)
    finally:
        frozen.resume()
    await asyncio.gather(single.task, *(one.task for one in crowd))
    # One of the crowd may be running when the single one comes, and its first token on the way; then one more may start.
    assert before <= started.index(single) <= before + 2


async def drip(slow: socket.socket, read: list[bytes]) -> None:
    """Read a byte a second, until the connection ends."""
    while byte := await asyncio.get_running_loop().sock_recv(slow, 1):
        read.append(byte)
        await asyncio.sleep(1)


async def test_a_slow_reader_holds_up_only_itself(served: Served, http: httpx.AsyncClient) -> None:
    url = httpx.URL(served.url)
    body = json.dumps(CHAT | {"max_tokens": 1500, "messages": [{"role": "user", "content": "Count."}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {SLOW}\r\ncontent-type: application/json\r\n"
    read: list[bytes] = []
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        slow.connect((url.host, url.port))
        slow.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        slow.setblocking(False)
        reading = asyncio.create_task(drip(slow, read))
        await until_async(lambda: read, "the slow reader's first byte")
        others = [Asked(http, SINGLE, []) for _ in range(5)]
        await asyncio.gather(*(one.task for one in others))
        assert all(one.events[-1] == "data: [DONE]" for one in others)
        before = len(read)
        await until_async(lambda: len(read), "the slow reader's next byte", holds=lambda count: count > before)
        assert b"HTTP/1.1 200 OK".startswith(b"".join(read)[:15])
        assert not reading.done(), "its reply goes on"
        reading.cancel()
    await until_states(http, 0)


async def test_keys_are_asked_for_and_told_nowhere(served: Served, http: httpx.AsyncClient) -> None:
    assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 401
    wrong = await http.post("/v1/chat/completions", json=CHAT, headers=bearer("sk-wrong"))
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (401, "invalid_api_key")
    assert (await http.get("/v1/models", headers={"x-api-key": SINGLE})).status_code == 200
    assert (await http.get("/metrics")).status_code == 401, "it names the keys, with their use"
    measured = await http.get("/metrics", headers={"x-api-key": SINGLE})
    assert measured.status_code == 200
    everything = measured.text + wrong.text + logged()
    assert [key for key in (CROWD, SINGLE, SLOW, "sk-wrong") if key in everything] == []


async def test_a_request_has_one_id_everywhere(served: Served, http: httpx.AsyncClient) -> None:
    ask = CHAT | {"stream": False}
    reply = await http.post("/v1/chat/completions", json=ask, headers=bearer(SINGLE) | {"x-request-id": "mine"})
    assert reply.headers["x-request-id"] == "mine"
    assert reply.json()["id"] == "chatcmpl-mine"
    given = (await http.post("/v1/chat/completions", json=ask, headers=bearer(SINGLE))).headers["x-request-id"]
    for deployment in ("Ingress", "LLM"):
        [log] = LOGS.glob(f"serve/requests_{deployment}_*.log")

        def counts(log: Path = log) -> list[int]:
            return [log.read_text().count(f"chatcmpl-{name}") for name in ("mine", given)]

        await until_async(counts, f"both ids in {log.name}, once each", holds=lambda found: found == [1, 1])
    assert "What is 2 + 2" not in logged()
