"""Draining: requests that are here go on, new ones are refused, the UI stays."""

import asyncio
import os
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from deployments.host.run import FOLDER, marker
from deployments.ingress.middleware.draining import Draining, Ongoing
from tests.support.until import until_async


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What tells that the run is draining, where it is."""
    monkeypatch.setenv(FOLDER, str(tmp_path))
    return marker(os.environ)


async def test_requests_that_are_here_go_on_and_new_ones_are_refused(mark: Path) -> None:
    go_on = asyncio.Event()

    async def answer(request: Request) -> PlainTextResponse:
        if "wait" in request.url.query:
            await go_on.wait()
        return PlainTextResponse("well")

    ongoing = Ongoing()
    routes = [Route(path, answer, methods=["GET", "POST"]) for path in ("/v1/completions", "/ui/x")]
    app = Draining(Starlette(routes=routes), ongoing)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        early = asyncio.create_task(http.post("/v1/completions?wait"))
        await until_async(lambda: ongoing.count, "the early request is here")
        mark.touch()
        late = await http.post("/v1/completions")
        assert (late.status_code, ongoing.count) == (503, 1)
        assert "about to stop" in late.json()["error"]["message"]
        assert (await http.get("/v1/completions")).status_code == 200
        assert (await http.post("/ui/x")).status_code == 200
        go_on.set()
        assert (await early).text == "well"
        assert ongoing.count == 0


async def test_without_a_run_nothing_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    app = Draining(Starlette(routes=[Route("/v1/completions", lambda _: PlainTextResponse("well"), methods=["POST"])]), Ongoing())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        assert (await http.post("/v1/completions")).text == "well"


async def test_requests_that_fail_or_have_no_body_are_not_ongoing() -> None:
    ongoing, counts = Ongoing(), []

    async def fail(request: Request) -> PlainTextResponse:
        counts.append(ongoing.count)
        raise ValueError("bad request")

    app = Draining(Starlette(routes=[Route(path, fail, methods=["GET", "POST"]) for path in ("/v1/x", "/ui/x")]), ongoing)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        for method, path in (("POST", "/v1/x"), ("GET", "/v1/x"), ("POST", "/ui/x")):
            assert (await http.request(method, path)).status_code == 500
    assert (counts, ongoing.count) == ([1, 0, 0], 0)
