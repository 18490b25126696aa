"""The way to the UI, with a small ASGI app in the place of the UI and the replica called without Serve."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from ray.exceptions import RayActorError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Mount, Route

from deployments.ui.bridge import COOKIE, UIBridge
from deployments.ui.deployment import WebUI


class Stream:
    """What a streaming handle call returns: the replica's messages, and a way to cancel."""

    def __init__(self, messages: AsyncIterator[dict[str, Any]]) -> None:
        self._messages = messages
        self._task: asyncio.Task[dict[str, Any]] | None = None

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> dict[str, Any]:
        self._task = asyncio.ensure_future(anext(self._messages))
        try:
            return await self._task
        except asyncio.CancelledError:
            raise StopAsyncIteration from None

    def cancel(self) -> None:
        assert self._task
        self._task.cancel()


class Handle:
    """A handle to one UI replica that holds `app`."""

    def __init__(self, app: Any) -> None:
        self._replica = WebUI.__new__(WebUI)
        self._replica._app = app
        self.sessions: list[str] = []
        self.request = self

    def options(self, stream: bool) -> "Handle":
        assert stream
        return self

    def remote(self, session: str, scope: dict[str, Any], body: bytes) -> Stream:
        self.sessions.append(session)
        return Stream(self._replica.request(session, scope, body))


def ingress(handle: Any) -> Starlette:
    return Starlette(routes=[Mount("/ui", UIBridge(handle))])


def client(handle: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(ingress(handle)), base_url="http://ingress")


async def echo(request: Request) -> JSONResponse:
    return JSONResponse({"path": request.url.path, "query": str(request.query_params), "body": (await request.body()).decode()})


READ, EVENT = "/ui/page/echo", "/ui/ask"
ECHO = Starlette(routes=[Route(READ, echo), Route(EVENT, echo, methods=["POST"])])


async def test_requests_arrive_as_they_were() -> None:
    async with client(Handle(ECHO)) as http:
        answer = await http.post(f"{EVENT}?a=1", json="hello")
        assert answer.json() == {"path": EVENT, "query": "a=1", "body": '"hello"'}
        assert (await http.get("/ui/page/none")).status_code == 404


async def test_a_browser_keeps_its_session() -> None:
    handle = Handle(ECHO)
    async with client(handle) as http:
        first = await http.get(READ)
        second = await http.get(READ)
    assert COOKIE in first.cookies
    assert "set-cookie" not in second.headers
    assert handle.sessions[0] == handle.sessions[1] == first.cookies[COOKIE]


@pytest.mark.parametrize(
    "path", ["upload", "run/answer", "call/answer", "file=/etc/hosts", "../v1/models", "queue/join", "run/predict"]
)
async def test_only_what_the_page_asks_for_reaches_the_ui(path: str) -> None:
    handle = Handle(ECHO)
    async with client(handle) as http:
        for method in ("GET", "POST", "PUT", "DELETE"):
            answer = await http.request(method, f"/ui/gradio_api/{path}", json={})
            assert answer.status_code == 404
    assert handle.sessions == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://ingress"}, 200),
        ({"origin": "https://chat.example", "x-forwarded-host": "chat.example"}, 200),
        ({"origin": "https://chat.example", "sec-fetch-site": "same-origin"}, 200),
        ({"origin": "http://elsewhere"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://ingress:8080"}, 403),
        ({"origin": "http://ingress", "sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
    ],
)
async def test_only_the_page_may_act(headers: dict[str, str], status: int) -> None:
    """A page of another site can send a POST, in a visitor's name, but not hide where it is from."""
    handle = Handle(ECHO)
    async with client(handle) as http:
        answer = await http.post(EVENT, content="{}", headers={"content-type": "application/json"} | headers)
    assert (answer.status_code, len(handle.sessions)) == (status, status == 200)
    if status == 403:
        assert answer.json()["error"]["code"] == "foreign_origin"


async def test_browsers_are_told_what_the_page_may_load_and_who_may_frame_it() -> None:
    async with client(Handle(ECHO)) as http:
        policy = (await http.get(READ)).headers["content-security-policy"]
    assert "frame-ancestors 'self'" in policy
    assert "http" not in policy, "nothing from elsewhere"


async def test_a_browser_that_leaves_ends_the_stream() -> None:
    ended, begun = asyncio.Event(), asyncio.Event()

    async def endless(request: Request) -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            try:
                yield b"first"
                await asyncio.Event().wait()
            finally:
                ended.set()

        return StreamingResponse(parts())

    incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    incoming.put_nowait({"type": "http.request", "body": b""})
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if message.get("body") == b"first":
            begun.set()

    scope = {"type": "http", "method": "GET", "path": "/ui/page/stream", "root_path": "", "query_string": b"", "headers": []}
    handle = Handle(Starlette(routes=[Route("/ui/page/stream", endless)]))
    request = asyncio.create_task(ingress(handle)(scope, incoming.get, send))
    async with asyncio.timeout(20):
        await begun.wait()
        incoming.put_nowait({"type": "http.disconnect"})
        await request
        await ended.wait()


async def test_a_ui_that_is_not_there_says_so() -> None:
    class Dead(Handle):
        def remote(self, session: str, scope: dict[str, Any], body: bytes) -> Stream:
            async def fail() -> AsyncIterator[dict[str, Any]]:
                raise RayActorError
                yield {}

            return Stream(fail())

    async with client(Dead(ECHO)) as http:
        answer = await http.get(READ)
    assert answer.status_code == 503
    assert "reload" in answer.text


async def test_an_error_in_the_ui_is_an_error() -> None:
    async def fail(request: Request) -> JSONResponse:
        raise RuntimeError("wrong")

    transport = httpx.ASGITransport(ingress(Handle(Starlette(routes=[Route("/ui/page/fail", fail)]))), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://ingress") as http:
        assert (await http.get("/ui/page/fail")).status_code == 500
