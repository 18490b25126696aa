"""Chats of the runs that break something: a client of stored streams goes on wherever they break."""

import asyncio
from collections.abc import Callable

import httpx
import pytest

from cluster.bench import chats
from cluster.bench.chats import StoredReply

CHUNK = '{"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":%s}]}'
EVENTS = [CHUNK % ("a", "null"), CHUNK % ("b", "null"), CHUNK % ("c", '"stop"'), "[DONE]"]
BUSY = httpx.Response(503, json={})
Answer = httpx.Response | httpx.HTTPError


def stream(first: int, last: int, more: str = "") -> httpx.Response:
    """Return a response with some of the events."""
    return httpx.Response(200, text="".join(f"id: {n}\ndata: {EVENTS[n]}\n\n" for n in range(first, last)) + more)


def read(*answers: Answer) -> tuple[StoredReply, list[str]]:
    """Return what a client has of these answers, and what it asked for."""
    left, asked = list(answers), list[str]()

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.query.decode()}".strip())
        found = left.pop(0)
        if isinstance(found, httpx.HTTPError):
            raise found
        return found

    async def run() -> StoredReply:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://test") as http:
            reply = StoredReply()
            await reply.read(http, {})
            return reply

    return asyncio.run(run()), asked


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chats, "AGAIN_S", 0.0)


REFUSED = httpx.ConnectError("refused")
LATER = 'data: {"error": {"message": "ends here"}}\n\n'


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        (lambda: [stream(0, 4)], ["POST"]),
        (lambda: [stream(0, 2), REFUSED, BUSY, stream(2, 4)], ["POST", *["GET starting_after=1"] * 3]),
        (lambda: [stream(0, 1, LATER), stream(1, 4)], ["POST", "GET starting_after=0"]),
        (lambda: [REFUSED, stream(0, 4)], ["POST", "POST"]),
        (lambda: [REFUSED, httpx.Response(409), stream(0, 4)], ["POST", "POST", "GET"]),
    ],
    ids=["whole", "broken", "ended early", "not begun", "begun unheard"],
)
def test_a_stream_goes_on_after_the_last_event(answers: Callable[[], list[Answer]], asked: list[str]) -> None:
    reply, seen = read(*answers())
    assert (reply.text, reply.finish, reply.errors) == ({0: "abc"}, {0: "stop"}, [])
    assert seen == asked
    assert reply.resumed == sum(word.startswith("GET") for word in asked)


@pytest.mark.parametrize(("first", "error"), [(0, "event 0 comes after event 1"), (3, "event 3 comes after event 1")])
def test_a_gap_and_a_repeated_event_are_errors(first: int, error: str) -> None:
    reply, _ = read(stream(0, 2), stream(first, 4))
    assert error in reply.errors
    assert not reply.well


def test_a_stream_without_an_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chats, "PATIENCE_S", 0.0)
    reply, _ = read()
    assert reply.errors == ["no end after 0 s; status 0"]


def test_no_stored_chat_asks_for_what_cannot_be_resumed() -> None:
    assert not {name for number in range(chats.STREAMS) for name in chats.storable(number)} & set(chats.UNSTORABLE)
