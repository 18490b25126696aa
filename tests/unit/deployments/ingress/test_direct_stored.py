"""Stored chats on the direct path: each token's event as vLLM's own way makes it, numbered, for clients on real connections."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from deployments.ingress import direct as direct_module
from deployments.ingress.middleware import keepalive
from tests.support.streams import Reply, Script, Streams, rounds, streaming
from tests.support.until import until_async
from tests.unit.deployments.ingress.test_direct import TOKENS, encoded, written

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "1 + 1"}]}
TEXT = '<|continue|>A "quote", a \\ and\ttabs.\n<|reflect|>检查 😀 done\nThe final answer is \\boxed{1}.'
CASES: list[dict[str, Any]] = [
    {},
    {"stream_options": {"include_usage": True}},
    {"coat": {"parse": False}},
    {"include_reasoning": False},
    {"coat": {"max_reflections": 1}},
    {"stop": ["done"]},
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[bool, Streams]]:
    """Two ingresses with a store each: with direct streams, and without."""
    folder = tmp_path_factory.mktemp("stores")
    async with (
        streaming(False, store__url=str(folder / "queued.sqlite")) as queued,
        streaming(True, store__url=str(folder / "direct.sqlite")) as direct,
    ):
        yield {False: queued, True: direct}
        for streams in (queued, direct):
            streams.server.responses.close()


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[direct_module.SingleStream]:
    """The streams that took the direct path, once for each token."""
    found: list[direct_module.SingleStream] = []
    flush = direct_module.SingleStream.flush
    monkeypatch.setattr(direct_module.SingleStream, "flush", lambda self: (found.append(self), flush(self))[1])
    return found


async def ask(streams: Streams, name: str, **body: Any) -> Reply:
    return await streams.ask(CHAT, QUESTION | {"max_tokens": 400} | body, x_satori_resume="1", x_request_id=name)


async def events(reply: Reply, count: int | None = None) -> list[bytes]:
    return [written(event) for event in await reply.read(count) if event != keepalive.COMMENT]


async def begun(streams: Streams, name: str) -> Reply:
    """Return a reply whose first token its client has."""
    streams.core.script = lambda asked: Script([[token] for token in TOKENS])
    reply = await ask(streams, name)
    await streams.opened()
    await streams.core.step()
    await until_async(lambda: reply.read(2), "the first token", holds=lambda found: len(found) == 2)
    return reply


def numbers(found: list[bytes]) -> list[int]:
    return [int(event.partition(b"\n")[0].removeprefix(b"id: ")) for event in found]


@pytest.mark.parametrize("text", [TEXT, "no action: \\boxed{3} </s>"])
async def test_events_are_the_same_to_the_byte(both: dict[bool, Streams], taken: list[Any], text: str) -> None:
    """Also those that are made again for a client that resumes."""
    for number, case in enumerate(CASES):
        seen, tokens = [], [*encoded(text), TOKENS[-1]]
        for is_direct, streams in both.items():
            before = len(taken)
            streams.core.script = lambda asked, tokens=tokens: Script([[token] for token in tokens])
            reply = await ask(streams, f"same-{number}-{len(text)}", **case)
            reading = asyncio.create_task(events(reply))
            await streams.core.run(until=reading.done)
            seen.append(await reading)
            await streams.close()
            assert (len(taken) - before > len(tokens) / 2) == (is_direct and "stop" not in case)
        assert seen[0] == seen[1], case
        assert numbers(seen[1]) == list(range(len(seen[1])))


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "queued"])
async def test_a_client_that_stops_reading_gets_each_event_later(both: dict[bool, Streams], direct: bool) -> None:
    """None is joined to another, as others make them from the tokens alone."""
    streams = both[direct]
    reply = await begun(streams, "slow")
    [connection] = await until_async(streams.connections, "one connection", holds=lambda found: len(found) == 1)
    connection.pause_writing()
    for _ in range(4):
        await streams.core.step()
    connection.resume_writing()
    await rounds()
    await streams.core.run(until=lambda: not streams.core.open)
    found = await events(reply)
    assert numbers(found) == list(range(len(found)))
    assert len(found) == len(TOKENS) + 2  # one says who speaks, and [DONE]
    await streams.close()


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "queued"])
async def test_a_client_that_leaves_ends_nothing(both: dict[bool, Streams], direct: bool) -> None:
    streams = both[direct]
    await begun(streams, "left")
    [run] = streams.server.responses._runs.values()
    await streams.close()
    await until_async(lambda: run.events, "the client to have left", holds=lambda left: left is None)
    await streams.core.run(until=lambda: not streams.core.open)
    assert run.task is not None
    await run.task
    stored = await streams.server.responses.store.load(run.stored.id, None)
    assert stored is not None
    assert (stored.status, stored.last_event) == ("completed", len(TOKENS) + 1)
