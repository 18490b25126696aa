"""Which error a response stands for."""

from typing import Any

import httpx
import pytest

from ui.errors import from_event, from_response


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (429, {"error": {"message": "queue is full"}}, "queue_full", "queue is full"),
        (401, {"error": "Unauthorized"}, "key", "Unauthorized"),
        (403, "Forbidden", "key", "Forbidden"),
        (503, {"ready": False, "reason": "no LLM replica is up"}, "loading", "no LLM replica is up"),
        (502, "<html>Bad gateway</html>", "loading", "<html>Bad gateway</html>"),
        (400, {"error": {"message": "This model's maximum context length is 4096 tokens."}}, "too_long", None),
        (400, {"message": "max_tokens must be at most max_model_len"}, "too_long", None),
        (400, {"detail": "temperature is negative"}, "other", "temperature is negative"),
        (500, {"error": {"message": "the maximum context engine died"}}, "other", None),
        (418, "", "other", "HTTP 418"),
    ],
)
def test_kinds(status: int, body: Any, kind: str, message: str | None) -> None:
    error = from_response(status, body, httpx.Headers())
    assert error.kind == kind
    if message:
        assert error.message == message


@pytest.mark.parametrize(("value", "seconds"), [("7", 7.0), ("1.5", 1.5), ("Wed, 21 Oct 2026 07:28:00 GMT", None), (None, None)])
def test_when_to_ask_again(value: str | None, seconds: float | None) -> None:
    assert from_response(429, {}, httpx.Headers({"Retry-After": value} if value else {})).retry_after_s == seconds


def test_error_events_of_a_stream() -> None:
    assert from_event({"message": "busy", "code": 429}).kind == "queue_full"
    assert from_event({"message": "dead", "code": "engine_dead"}).kind == "other"
