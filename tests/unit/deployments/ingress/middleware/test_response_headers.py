"""Headers for clients and proxies: when to try again, and streams as they come."""

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from deployments.ingress.middleware.response_headers import LONGEST_S, STREAMED, ResponseHeaders


@pytest.mark.parametrize(
    ("status", "given", "pace_s", "told"),
    [
        (429, None, 0, "1"),
        (503, None, 9, "5"),
        (429, None, 1000, "60"),
        (429, "7", 1000, "7"),
        (200, None, 9, None),
        (500, None, 9, None),
    ],
)
async def test_refusals_tell_when_to_try_again(status: int, given: str | None, pace_s: float, told: str | None) -> None:
    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse("", status, {"retry-after": given} if given else None)

    app = ResponseHeaders(Starlette(routes=[Route("/", answer)]), pace_s=lambda: pace_s)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        assert (await http.get("/")).headers.get("retry-after") == told


def test_nobody_is_told_to_wait_for_more_than_a_minute() -> None:
    assert LONGEST_S == 60


@pytest.mark.parametrize(
    ("kind", "given", "added"),
    [
        ("text/event-stream; charset=utf-8", {}, dict(STREAMED)),
        ("text/event-stream", {"cache-control": "private"}, dict(STREAMED) | {"cache-control": "private"}),
        ("application/json", {}, {}),
    ],
)
async def test_streams_ask_proxies_to_pass_them_on_as_they_come(kind: str, given: dict[str, str], added: dict[str, str]) -> None:
    async def answer(request: Request) -> Response:
        return Response("", headers=given, media_type=kind)

    app = ResponseHeaders(Starlette(routes=[Route("/", answer)]), pace_s=lambda: 0)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        headers = (await http.get("/")).headers
    assert {name: headers[name] for name, _ in STREAMED if name in headers} == added
