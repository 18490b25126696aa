"""The load client, against a small HTTP server that answers from a script."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cluster.bench import load

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"
Script = Sequence[bytes | float]
"""What a server sends, in one write each, and for how many seconds it waits between."""


def chunk(text: str) -> bytes:
    return b"%x\r\n%s\r\n" % (len(text), text.encode())


def event(**fields: Any) -> bytes:
    return chunk(f"data: {json.dumps({'choices': []} | fields)}\n\n")


def ending(tokens: int) -> bytes:
    return event(usage={"prompt_tokens": 7, "completion_tokens": tokens}) + chunk("data: [DONE]\n\n") + LAST


class Server:
    """Counts connections, and keeps the bodies of requests as they come."""

    def __init__(self, script: Script) -> None:
        self.script, self.connections, self.bodies, self.port = script, 0, list[dict[str, Any]](), 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode().lower():
                length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
                self.bodies.append(json.loads(await reader.readexactly(length)))
                for part in self.script:
                    if isinstance(part, float):
                        await asyncio.sleep(part)
                    elif part:
                        writer.write(part)
                        await writer.drain()
                    else:
                        return
        except asyncio.IncompleteReadError:  # the client is done
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(*script: bytes | float) -> AsyncIterator[Server]:
    server = Server(script)
    listening = await asyncio.start_server(server.answer, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield server


async def run(server: Server, clients: int = 1, requests: int = 1, tokens: int = 5, seed: int = 0) -> load.Sample:
    async with asyncio.timeout(20):
        return await load.run("127.0.0.1", server.port, "nano", clients, requests, tokens, seed)


async def test_all_requests_go_over_one_connection_a_client_and_are_counted() -> None:
    async with serving(HEAD + event(), 0.01, event(), 0.01, ending(5)) as server:
        sample = await run(server, clients=2, requests=6)
    assert server.connections == 2
    assert (len(server.bodies), sample.clients) == (6, 2)
    assert (sample.tokens, sample.chunks) == (30, 18), "the server's usage, which has an event of its own"
    assert (len(sample.ttft), len(sample.itl)) == (6, 12)
    assert 0.06 < (sum(sample.ttft) + sum(sample.itl)) / 2 <= sample.seconds


async def test_a_request_asks_for_exactly_so_many_tokens() -> None:
    async with serving(HEAD + ending(9)) as server:
        await run(server, tokens=9)
    [body] = server.bodies
    wanted = {"model": "nano", "max_tokens": 9, "ignore_eos": True, "temperature": 0, "stream": True}
    assert body.items() >= (wanted | {"stream_options": {"include_usage": True}}).items()


async def test_the_seed_decides_the_questions() -> None:
    async with serving(HEAD + ending(1)) as server:
        for seed in (1, 1, 2):
            await run(server, requests=3, seed=seed)
    asked = [body["messages"][0]["content"] for body in server.bodies]
    assert asked[:3] == asked[3:6] != asked[6:]
    assert len(set(asked)) == 6


async def test_ttft_ends_with_the_first_event_not_with_headers_or_comments() -> None:
    async with serving(HEAD, chunk(": wait\n\n"), 0.2, event(), 0.1, ending(2)) as server:
        sample = await run(server)
    assert sample.ttft[0] >= 0.2
    assert sample.itl[0] >= 0.1
    assert sample.ttft[0] + sample.itl[0] <= sample.seconds


async def test_events_that_come_together_have_no_gap() -> None:
    async with serving(HEAD + event(), 0.05, event() * 3, 0.05, ending(4)) as server:
        sample = await run(server)
    assert sample.chunks == 5
    none, also_none, *gaps = sorted(sample.itl)
    assert none == also_none == 0.0
    assert len(gaps) == 2
    assert min(gaps) >= 0.04


@pytest.mark.parametrize("cut", range(1, 60, 3))
async def test_a_stream_may_be_cut_anywhere(cut: int) -> None:
    whole = event() + ending(3)
    async with serving(HEAD, 0.01, whole[:cut], 0.01, whole[cut:-cut], 0.01, whole[-cut:]) as server:
        sample = await run(server, requests=2)
    assert (sample.tokens, sample.chunks) == (6, 4)


@pytest.mark.parametrize("end", [(b"",), (0.01, b"")], ids=["with the event", "later"])
async def test_a_connection_that_ends_amid_a_stream_is_an_error(end: Script) -> None:
    async with serving(HEAD + event(), *end) as server:
        with pytest.raises(ConnectionError, match="lost in mid-stream"):
            await run(server)


async def test_a_stream_that_ends_without_its_usage_is_an_error() -> None:
    async with serving(HEAD + event(error={"message": "lost"}) + chunk("data: [DONE]\n\n") + LAST) as server:
        with pytest.raises(ConnectionError, match=r"without its usage.*lost"):
            await run(server)


async def test_a_refused_request_is_an_error_that_says_why() -> None:
    body = b'{"error": {"message": "full"}}'
    async with serving(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)) as server:
        with pytest.raises(ConnectionError, match=r"refused.*429.*full"):
            await run(server, clients=2, requests=2)


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (50, 3), (60, 3), (61, 4), (95, 5), (100, 5)])
def test_a_percentile_is_the_nearest_rank(percent: float, value: float) -> None:
    assert load.percentile([5, 3, 1, 2, 4], percent) == value


def test_nothing_has_no_percentile() -> None:
    assert math.isnan(load.percentile([], 50))
