"""The way to the UI, with a small ASGI app in the place of the UI and the replica called without Serve."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
from ray.exceptions import RayActorError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Mount, Route

from deployments.ui.bridge import COOKIE, LARGEST_BODY_BYTES, UIBridge
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


ECHO = Starlette(routes=[Route("/ui/echo", echo, methods=["GET", "POST"])])


async def test_requests_arrive_as_they_were() -> None:
    async with client(Handle(ECHO)) as http:
        answer = await http.post("/ui/echo?a=1", content="hello")
        assert answer.json() == {"path": "/ui/echo", "query": "a=1", "body": "hello"}
        assert (await http.get("/ui/none")).status_code == 404


async def test_a_browser_keeps_its_session() -> None:
    handle = Handle(ECHO)
    async with client(handle) as http:
        first = await http.get("/ui/echo")
        second = await http.get("/ui/echo")
    assert COOKIE in first.cookies
    assert "set-cookie" not in second.headers
    assert handle.sessions[0] == handle.sessions[1] == first.cookies[COOKIE]


async def test_a_body_that_is_too_large_is_refused() -> None:
    async with client(Handle(ECHO)) as http:
        assert (await http.post("/ui/echo", content=b"x" * (LARGEST_BODY_BYTES + 1))).status_code == 413


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

    scope = {"type": "http", "method": "GET", "path": "/ui/stream", "root_path": "", "query_string": b"", "headers": []}
    handle = Handle(Starlette(routes=[Route("/ui/stream", endless)]))
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
        answer = await http.get("/ui/echo")
    assert answer.status_code == 503
    assert "reload" in answer.text


async def test_an_error_in_the_ui_is_an_error() -> None:
    async def fail(request: Request) -> JSONResponse:
        raise RuntimeError("wrong")

    transport = httpx.ASGITransport(ingress(Handle(Starlette(routes=[Route("/ui/fail", fail)]))), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://ingress") as http:
        assert (await http.get("/ui/fail")).status_code == 500
