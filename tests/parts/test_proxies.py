"""nginx and Caddy in front of HAProxy: streams pass as they come, addresses are right."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from deployments.ingress.middleware.response_headers import ResponseHeaders
from tests.support.haproxy import haproxy
from tests.support.ports import free_ports
from tests.support.proxies import PROXIES, in_front
from tests.support.until import until_async

FIRST = b"data: " + b"r" * 300 + b"\n\n" + b"data: " + b"t" * 300 + b"\n\n"  # role and first token, in one piece
REST = [b"data: %d\n\n" % number for number in range(5)]


class Ingress:
    """An ingress whose stream sends its next piece only when the client has the one before."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.arrived = asyncio.Queue[None]()
        routes = [Route("/-/healthz", self._healthy), Route("/headers", self._headers), Route("/stream", self._streaming)]
        app = Starlette(routes=[*routes, Route("/whole", self._whole, methods=["POST"])])
        served = ResponseHeaders(app, pace_s=lambda: 1)
        self._server = uvicorn.Server(uvicorn.Config(served, port=port, log_level="error", lifespan="off"))

    async def __aenter__(self) -> "Ingress":
        self._task = asyncio.create_task(self._server.serve())
        await until_async(lambda: self._server.started, "the ingress listens")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        await self._task

    async def _healthy(self, request: Request) -> Response:
        return Response()

    async def _headers(self, request: Request) -> JSONResponse:
        return JSONResponse(dict(request.headers))

    async def _whole(self, request: Request) -> JSONResponse:
        return JSONResponse(len(await request.body()))

    async def _streaming(self, request: Request) -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            for piece in (FIRST, *REST):
                yield piece
                await self.arrived.get()

        return StreamingResponse(pieces(), media_type="text/event-stream")


async def read(http: httpx.AsyncClient, ingress: Ingress) -> bytes:
    """Return the stream, each piece of which has arrived before the next one was sent. Raises TimeoutError where one is held."""
    received = b""
    async with http.stream("GET", "/stream", headers={"accept-encoding": "gzip"}) as response:
        pieces = response.aiter_bytes()
        for end in (FIRST, *REST):
            while not received.endswith(end):
                received += await asyncio.wait_for(anext(pieces), 60)
            ingress.arrived.put_nowait(None)
    return received


@pytest.mark.parametrize("name", PROXIES)
async def test_streams_pass_as_they_come_and_client_addresses_are_right(name: str, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    (front := tmp_path / "front").mkdir()
    async with Ingress(port) as ingress, haproxy(tmp_path, [ingress.port]) as proxy:
        with in_front(name, front, f"127.0.0.1:{proxy.port}") as url:
            async with httpx.AsyncClient(base_url=url, verify=False, trust_env=False) as http:
                assert await read(http, ingress) == FIRST + b"".join(REST)
                told = (await http.get("/headers", headers={"x-forwarded-for": "203.0.113.7"})).json()
                assert told["x-forwarded-for"] in ("127.0.0.1", "::1"), "the client's own word does not count"
                assert (told["x-forwarded-proto"], f"https://{told['host']}") == ("https", url)
                assert (await http.post("/whole", content=b"x" * 4 * 2**20)).json() == 4 * 2**20
