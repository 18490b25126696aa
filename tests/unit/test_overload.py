"""Refusals of a full queue: status 429, and when to try again."""

from http import HTTPStatus

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from vllm.config import SchedulerConfig
from vllm.exceptions import GracefulHTTPError

from deployments.overload import BoundedLLM, RetryAfter


def frontend(unfinished: int, queued_tokens: int, **bounds: int) -> BoundedLLM:
    made = BoundedLLM.__new__(BoundedLLM)
    made.scheduler_config = SchedulerConfig(max_model_len=4096, is_encoder_decoder=False, **bounds)
    made.admission_stats = None
    made.logger_manager = None
    made.get_num_unfinished_requests = lambda: unfinished  # type: ignore[method-assign]
    made.get_num_queued_tokens = lambda: queued_tokens  # type: ignore[method-assign]
    return made


@pytest.mark.parametrize(
    ("unfinished", "queued_tokens", "n", "told"),
    [
        (7, 99, 1, None),
        (7, 99, 2, "engine.max_num_queued_reqs=8"),
        (8, 0, 1, "engine.max_num_queued_reqs=8"),
        (0, 100, 1, "engine.max_num_queued_tokens=100"),
    ],
)
def test_what_is_over_a_bound_is_refused(unfinished: int, queued_tokens: int, n: int, told: str | None) -> None:
    bounded = frontend(unfinished, queued_tokens, max_num_queued_reqs=8, max_num_queued_tokens=100)
    if told is None:
        bounded.check_admission(n)
        return
    with pytest.raises(GracefulHTTPError, match=told) as caught:
        bounded.check_admission(n)
    assert caught.value.http_status == HTTPStatus.TOO_MANY_REQUESTS


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
async def test_refusals_tell_when_to_try_again(
    monkeypatch: pytest.MonkeyPatch, status: int, given: str | None, pace_s: float, told: str | None
) -> None:
    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse("", status, {"retry-after": given} if given else None)

    monkeypatch.setattr(RetryAfter, "pace_s", lambda _: pace_s)
    app = RetryAfter(Starlette(routes=[Route("/", answer)]))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        assert (await http.get("/")).headers.get("retry-after") == told
