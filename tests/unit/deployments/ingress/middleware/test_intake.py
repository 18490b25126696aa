"""The intake: a bounded number of requests is prepared at a time, first come first served, and none is held up by a slow upload."""

import asyncio

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from deployments.ingress.middleware import intake
from deployments.ingress.middleware.intake import AT_ONCE, Intake
from tests.support.until import until_async


class App:
    """An app whose handler counts itself while preparing, then hands over and waits for `release`."""

    def __init__(self) -> None:
        self.preparing, self.most, self.handed_over = 0, 0, 0
        self.go, self.release = asyncio.Event(), asyncio.Event()
        routes = [Route("/", self.handle, methods=["POST", "GET"])]
        self.asgi = Intake(Starlette(routes=routes))

    async def handle(self, request: Request) -> PlainTextResponse:
        body = await request.body()
        self.preparing += 1
        self.most = max(self.most, self.preparing)
        await self.go.wait()
        self.preparing -= 1
        if body == b"bad":
            raise ValueError("bad request")
        if body:
            intake.prepared()
            self.handed_over += 1
            await self.release.wait()
        return PlainTextResponse("done")


@pytest.fixture
def app() -> App:
    return App()


def client(app: App) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app.asgi, raise_app_exceptions=False), base_url="http://test")


async def test_few_are_prepared_at_once_but_all_run_together(app: App) -> None:
    async with client(app) as http:
        calls = [asyncio.create_task(http.post("/", content=b"x")) for _ in range(20)]
        await until_async(lambda: app.preparing == AT_ONCE, "all places are taken")
        app.go.set()
        await until_async(lambda: app.handed_over == 20, "the engine has all requests")
        assert app.most == AT_ONCE
        app.release.set()
        assert {response.status_code for response in await asyncio.gather(*calls)} == {200}


async def test_a_failed_request_gives_its_place_back(app: App) -> None:
    app.go.set()
    app.release.set()
    async with client(app) as http:
        failed = [(await http.post("/", content=b"bad")).status_code for _ in range(3 * AT_ONCE)]
        assert failed == [500] * (3 * AT_ONCE)
        assert (await http.post("/", content=b"x")).status_code == 200


async def test_a_slow_upload_holds_up_nobody(app: App) -> None:
    app.go.set()
    app.release.set()
    finish = asyncio.Event()

    async def slowly():  # type: ignore[no-untyped-def]
        yield b"x"
        await finish.wait()
        yield b"y"

    async with client(app) as http:
        slow = [asyncio.create_task(http.post("/", content=slowly())) for _ in range(2 * AT_ONCE)]
        assert (await http.post("/", content=b"x")).status_code == 200
        assert not any(call.done() for call in slow)
        finish.set()
        assert {response.status_code for response in await asyncio.gather(*slow)} == {200}


async def test_requests_without_a_body_need_no_place(app: App) -> None:
    async with client(app) as http:
        posts = [asyncio.create_task(http.post("/", content=b"x")) for _ in range(AT_ONCE + 1)]
        await until_async(lambda: app.preparing == AT_ONCE, "all places are taken")
        get = asyncio.create_task(http.get("/"))
        await until_async(lambda: app.preparing == AT_ONCE + 1, "a request without a body is here")
        app.go.set()
        app.release.set()
        assert (await get).status_code == 200
        await asyncio.gather(*posts)


@pytest.mark.parametrize("listens", [True, False])
async def test_a_request_that_is_cancelled_may_end_by_itself(monkeypatch: pytest.MonkeyPatch, listens: bool) -> None:
    monkeypatch.setattr(intake, "GONE_S", 0.01)
    messages: asyncio.Queue[dict[str, object]] = asyncio.Queue()
    began, ended = asyncio.Event(), []

    async def handler(scope: object, receive: object, send: object) -> None:
        began.set()
        try:
            while (await receive())["type"] != "http.disconnect" or not listens:  # type: ignore[operator]
                pass
            ended.append("by itself")
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def send(message: object) -> None: ...

    request = asyncio.create_task(Intake(handler)({"type": "http", "method": "POST", "path": "/v1/x"}, messages.get, send))
    await began.wait()
    messages.put_nowait({"type": "http.disconnect"})
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await asyncio.sleep(0)
    assert ended == ["by itself" if listens else "cancelled"]
