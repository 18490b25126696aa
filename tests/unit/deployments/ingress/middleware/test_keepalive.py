"""Comments in idle event streams."""

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from deployments.ingress.middleware.keepalive import COMMENT, KeepAlive
from tests.support.until import until_async


class Client:
    """What an application sends, and a wait for it."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def send(self, message: Message) -> None:
        await asyncio.sleep(0)
        if message["type"] == "http.response.body":
            self.bodies.append(message["body"])

    async def has(self, count: int) -> None:
        await until_async(lambda: len(self.bodies) >= count, f"{count} messages")


async def nothing() -> Message:
    raise AssertionError


def application(client: Client, kind: bytes, waits: int = 1, idle_s: float = 0.0) -> Any:
    """Return an application that sends one event, waits for `waits` messages with the client and some time, and sends another."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await client.has(waits)
        await asyncio.sleep(idle_s)
        await send({"type": "http.response.body", "body": b"data: 2\n\n", "more_body": False})

    return app


async def test_an_idle_stream_gets_comments_until_it_goes_on() -> None:
    client = Client()
    app = KeepAlive(application(client, b"text/event-stream; charset=utf-8", waits=4), 0.01)
    await app({"type": "http", "path": "/v1/chat/completions"}, nothing, client.send)
    assert client.bodies[0] == b"data: 1\n\n"
    assert set(client.bodies[1:-1]) == {COMMENT}
    assert client.bodies[-1] == b"data: 2\n\n"
    await asyncio.sleep(0.03)
    assert client.bodies[-1] == b"data: 2\n\n"


@pytest.mark.parametrize(("path", "kind"), [("/v1/models", b"application/json"), ("/ui/queue", b"text/event-stream")])
async def test_other_responses_are_left_alone(path: str, kind: bytes) -> None:
    client = Client()
    app = KeepAlive(application(client, kind, idle_s=0.05), 0.001)
    await app({"type": "http", "path": path}, nothing, client.send)
    assert client.bodies == [b"data: 1\n\n", b"data: 2\n\n"]


async def test_an_application_that_fails_leaves_no_timer() -> None:
    client = Client()

    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        await KeepAlive(fails, 0.001)({"type": "http", "path": "/v1/x"}, nothing, client.send)
    await asyncio.sleep(0.01)
    assert client.bodies == []
