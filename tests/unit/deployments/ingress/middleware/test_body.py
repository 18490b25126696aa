"""Bounds on request bodies: announced or not, one or all together, and what a refusal says."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from deployments.ingress.middleware import body
from deployments.ingress.middleware.body import BodyLimit
from deployments.settings import HttpSettings
from tests.support.in_process import served
from tests.support.until import until_async

MOST, TOGETHER = 100, 250


class App:
    """An app that tells the length of a body, after `release`."""

    def __init__(self) -> None:
        self.asked, self.at_work, self.gone = 0, 0, 0
        self.release = asyncio.Event()
        routes = [Route("/{path:path}", self.handle, methods=["POST", "GET"])]
        self.asgi = BodyLimit(Starlette(routes=routes), HttpSettings(max_body_bytes=MOST, max_bodies_bytes=TOGETHER))
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.asgi), base_url="http://test")

    async def handle(self, request: Request) -> PlainTextResponse:
        self.asked += 1
        try:
            body = await request.body()
        except ClientDisconnect:
            self.gone += 1
            raise
        self.at_work += 1
        await self.release.wait()
        return PlainTextResponse(str(len(body)))


@pytest.fixture
def app() -> App:
    return App()


class Upload:
    """A body in chunks, which tells how many were taken."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = chunks
        self.taken = 0
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            self.taken += 1
            yield chunk
            await self.go_on.wait()


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [0, 1, MOST])
async def test_a_body_within_the_limit_arrives_whole(app: App, size: int, chunked: bool) -> None:
    app.release.set()
    sent = b"x" * size
    assert (await app.http.post("/", content=Upload(sent[:40], sent[40:]) if chunked else sent)).text == str(size)
    assert app.asgi._held == 0


async def test_a_body_announced_as_too_large_is_not_read(app: App) -> None:
    upload = Upload(b"x")
    for announced in (str(MOST + 1), "9" * 5000):
        answer = await app.http.post("/", content=upload, headers={"content-length": announced})
        assert answer.status_code == 413
        assert answer.json() == {
            "error": {
                "message": "the request's body is larger than 100 bytes (http.max_body_bytes)",
                "type": "RequestTooLargeError",
                "param": None,
                "code": "request_too_large",
            }
        }
    assert (upload.taken, app.asked) == (0, 0)


async def test_a_body_that_grows_too_large_is_read_no_further(app: App) -> None:
    upload = Upload(*[b"x" * 40] * 10)
    answer = await app.http.post("/", content=upload)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert (upload.taken, app.asked, app.asgi._held) == (3, 0, 0)


async def test_a_wrong_announcement_is_no_way_around(app: App) -> None:
    for announced in ("1", "-5", "x", "²"):
        request = app.http.build_request("POST", "/", content=Upload(b"x" * (MOST + 1)))
        request.headers.raw.append((b"content-length", announced.encode("latin-1")))
        assert (await app.http.send(request)).status_code == 413


async def test_all_bodies_together_have_a_limit(app: App) -> None:
    calls = [asyncio.create_task(app.http.post("/", content=b"x" * MOST)) for _ in range(2)]
    await until_async(lambda: app.at_work == 2, "both are served")
    refused = await app.http.post("/", content=b"x" * MOST)
    assert (refused.status_code, refused.json()["error"]["code"], refused.headers["retry-after"]) == (429, "overloaded", "1")
    assert app.asked == 2, "refused before any work"
    app.release.set()
    assert {answer.text for answer in await asyncio.gather(*calls)} == {str(MOST)}
    assert (await app.http.post("/", content=b"x" * MOST)).status_code == 200
    assert app.asgi._held == 0


async def test_what_comes_slowly_holds_only_what_came(app: App) -> None:
    app.release.set()
    slow = [Upload(b"x" * 20, b"x" * 20) for _ in range(10)]
    for upload in slow:
        upload.go_on.clear()
    calls = [asyncio.create_task(app.http.post("/", content=upload, headers={"content-length": "40"})) for upload in slow]
    await until_async(lambda: app.asgi._held == 200, "the first halves are here")
    assert (await app.http.post("/", content=b"x" * 50)).status_code == 200
    assert (await app.http.post("/", content=b"x" * 51)).status_code == 429
    for upload in slow:
        upload.go_on.set()
    assert {answer.text for answer in await asyncio.gather(*calls)} == {"40"}
    assert app.asgi._held == 0


@pytest.mark.parametrize("when", ["reading", "working"])
async def test_nothing_is_held_for_a_client_that_left(app: App, when: str) -> None:
    upload = Upload(b"x" * 50, b"x")
    if when == "reading":
        upload.go_on.clear()
    call = asyncio.create_task(app.http.post("/", content=upload))
    await until_async(lambda: app.asgi._held if when == "reading" else app.at_work, f"the server is {when}")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert app.asgi._held == 0


async def test_the_app_is_told_of_a_client_that_left_while_sending(app: App) -> None:
    messages = iter([{"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> dict[str, object]:
        return next(messages)

    async def send(message: object) -> None: ...

    with pytest.raises(ClientDisconnect):
        await app.asgi({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send)  # type: ignore[arg-type]
    assert (app.gone, app.asgi._held) == (1, 0)


async def test_what_the_page_sends_may_be_larger_and_counts_too(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "LARGEST_OF_UI_BYTES", 2 * MOST)
    app.release.set()
    assert (await app.http.post("/ui/queue", content=b"x" * 2 * MOST)).text == str(2 * MOST)
    refused = await app.http.post("/ui/queue", content=b"x" * (2 * MOST + 1))
    assert (refused.status_code, "the most that the page sends" in refused.text) == (413, True)
    app.release.clear()
    call = asyncio.create_task(app.http.post("/ui/queue", content=b"x" * 2 * MOST))
    await until_async(lambda: app.at_work == 2, "it is served")
    assert (await app.http.post("/", content=b"x" * MOST)).status_code == 429
    app.release.set()
    assert (await call).status_code == 200
    assert app.asgi._held == 0


async def test_a_body_that_does_not_arrive_is_not_waited_for(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its deadline is for what follows the first piece, for which HAProxy waits."""
    monkeypatch.setattr(body, "BODY_S", 0.05)
    app.release.set()
    upload = Upload(b"x" * 20, b"x" * 20)
    upload.go_on.clear()
    answer = await app.http.post("/", content=upload, headers={"content-length": "40"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "body_timeout")
    assert "(20 bytes have)" in answer.json()["error"]["message"]
    assert (app.asked, app.asgi._held) == (0, 0)


async def test_in_the_ingress() -> None:
    async with served(http__max_body_bytes=1000) as server:
        assert (await server.chat({"role": "user", "content": "x" * 1000})).status_code == 413
        assert (await server.chat({"role": "user", "content": "x" * 500})).status_code == 200
