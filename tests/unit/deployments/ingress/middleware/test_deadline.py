"""Deadlines of requests."""

import asyncio
import json

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from deployments.ingress.middleware.deadline import Deadline

left: list[str] = []


async def whole(request: Request) -> Response:
    await request.body()
    listening = asyncio.create_task(request.receive())
    if request.query_params.get("quick"):
        return PlainTextResponse("done")
    await listening  # as vLLM's handlers do
    left.append("whole")
    return PlainTextResponse("to nobody")


async def stream(request: Request) -> Response:
    async def events():  # type: ignore[no-untyped-def]
        try:
            yield "data: 1\n\n"
            await asyncio.Event().wait()
        finally:
            left.append("stream")

    return StreamingResponse(events(), media_type="text/event-stream")


@pytest.fixture
def http() -> httpx.AsyncClient:
    left.clear()
    app = Deadline(Starlette(routes=[Route("/whole", whole, methods=["POST"]), Route("/stream", stream, methods=["POST"])]))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@pytest.mark.parametrize("headers", [{}, {"x-request-timeout-s": "60"}])
async def test_requests_in_time_are_as_they_were(http: httpx.AsyncClient, headers: dict[str, str]) -> None:
    reply = await http.post("/whole?quick=1", headers=headers)
    assert (reply.status_code, reply.text) == (200, "done")


async def test_a_late_answer_is_an_error(http: httpx.AsyncClient) -> None:
    reply = await http.post("/whole", headers={"x-request-timeout-s": "0.01"})
    assert reply.status_code == 504
    assert reply.json()["error"]["message"] == "the request was not finished within 0.01 s"
    assert left == ["whole"]


async def test_a_late_stream_ends_with_the_error(http: httpx.AsyncClient) -> None:
    reply = await http.post("/stream", headers={"x-request-timeout-s": "0.05"})
    first, error, done, _ = reply.text.split("\n\n")
    assert (reply.status_code, first, done) == (200, "data: 1", "data: [DONE]")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == 504
    assert left == ["stream"]


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf", ""])
async def test_a_wrong_value_is_named(http: httpx.AsyncClient, value: str) -> None:
    reply = await http.post("/whole?quick=1", headers={"x-request-timeout-s": value})
    assert reply.status_code == 400
    assert f"x-request-timeout-s={value!r}" in reply.json()["error"]["message"]
