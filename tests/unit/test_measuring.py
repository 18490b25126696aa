"""From an API request's events to its metrics, on a small application of the test's own."""

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY
from starlette.types import Receive, Scope, Send

from deployments import measuring, metrics
from deployments.failover import OpenRequest
from deployments.keepalive import COMMENT
from deployments.measuring import Measuring, Writer
from deployments.settings import SloSettings
from tests.in_process import served

metrics.keep(metrics.INGRESS)


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


class Grown:
    """How much samples have grown since this was made."""

    def __init__(self) -> None:
        self._before = {(s.name, tuple(sorted(s.labels.items()))): s.value for f in REGISTRY.collect() for s in f.samples}

    def __call__(self, name: str, **labels: str) -> float:
        return value(name, **labels) - self._before.get((name, tuple(sorted(labels.items()))), 0.0)


@pytest.fixture
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model of the test's own, whose series nobody else counts in."""
    name = request.node.name
    monkeypatch.setattr(Measuring, "writer", Writer(name, SloSettings(ttft_s=10, tpot_s=10)))
    return name


def engine_request(tokens: int, client: str = "") -> OpenRequest:
    made = OpenRequest(SimpleNamespace(prompt_token_ids=[1, 2, 3]), client=client)  # type: ignore[arg-type]
    made.tokens = list(range(tokens))
    made.started(None, 100.0, measuring.time.monotonic())
    made.last_step = 100.0
    return made


async def ask(app: Callable[[Scope, Receive, Send], Any], path: str = "/v1/chat/completions") -> None:
    transport = httpx.ASGITransport(Measuring(app), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        await http.post(path)


def reply(*events: bytes, status: int = 200, kind: bytes = b"text/event-stream", pause: float = 0.001) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        record = measuring.current.get()
        assert record is not None
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        for place, event in enumerate(events):
            await asyncio.sleep(pause)
            await send({"type": "http.response.body", "body": event, "more_body": place < len(events) - 1})
        if status == 200:
            record.engine.append(engine_request(3, "alice"))
            record.reads, record.answer_tokens, record.answered = True, 1, measuring.time.monotonic()

    return app


async def test_a_stream_is_timed_and_its_tokens_are_told_apart(model: str) -> None:
    grown = Grown()
    await ask(reply(b"role", b"one", COMMENT, b"two", b"end"))
    for name in ("ttft", "ttfat", "tpot", "e2e", "queue", "overhead_ttft", "overhead_itl"):
        assert grown(f"satori_{name}_seconds_count", model=model) == 1, name
    assert grown("satori_itl_seconds_count", model=model) == 3, "comments are no tokens"
    assert grown("satori_ttft_seconds_sum", model=model) < grown("satori_e2e_seconds_sum", model=model)
    assert [grown("satori_tokens_total", model=model, kind=kind) for kind in ("prompt", "reasoning", "answer")] == [3, 2, 1]
    assert grown("satori_requests_total", model=model, outcome="ok") == 1
    assert grown("satori_slo_requests_total", model=model, met="yes") == 1
    assert grown("satori_key_tokens_total", key="alice", kind="output") == 3
    assert grown("satori_wasted_tokens_total", model=model, reason="disconnect") == 0


async def test_what_goes_out_together_is_one_token(model: str) -> None:
    grown = Grown()
    await ask(reply(b"role", b"one", b"usage", b"end", pause=0))
    assert grown("satori_itl_seconds_count", model=model) == 0
    assert grown("satori_ttft_seconds_count", model=model) == 1


async def test_a_whole_reply_has_no_time_to_first_token(model: str) -> None:
    grown = Grown()
    await ask(reply(b"{}", kind=b"application/json"))
    assert grown("satori_ttft_seconds_count", model=model) == 0
    assert grown("satori_e2e_seconds_count", model=model) == 1


async def test_a_record_that_has_ended_is_traced(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Any] = []
    monkeypatch.setattr(Measuring, "tracer", SimpleNamespace(write=lambda record, *about: written.append((record, *about))))
    await ask(reply(b"one"))
    [(record, path, headers)] = written
    assert record.complete
    assert record.ended > record.arrived
    assert path == "/v1/chat/completions"
    assert headers["host"] == "test"


async def test_slow_requests_are_not_good(model: str) -> None:
    assert Measuring.writer is not None
    Measuring.writer._slo = SloSettings(ttft_s=10, tpot_s=1e-6)
    grown = Grown()
    await ask(reply(b"one", b"two"))
    assert grown("satori_slo_requests_total", model=model, met="no") == 1


@pytest.mark.parametrize(
    ("status", "code", "label", "outcome", "bad"),
    [
        (401, "invalid_api_key", "invalid_api_key", "refused", 0),
        (400, 400, "400", "refused", 0),
        (404, "whatever a client wrote", "404", "refused", 0),
        (429, "overloaded", "overloaded", "refused", 1),
        (503, "engine_unavailable", "engine_unavailable", "refused", 1),
        (500, "internal_error", "internal_error", "failed", 1),
    ],
)
async def test_refusals_count_by_code(model: str, status: int, code: str | int, label: str, outcome: str, bad: int) -> None:
    grown = Grown()
    await ask(reply(json.dumps({"error": {"code": code}}).encode(), status=status, kind=b"application/json"))
    assert grown("satori_refusals_total", code=label) == 1
    assert grown("satori_requests_total", model=model, outcome=outcome) == 1
    assert grown("satori_slo_requests_total", model=model, met="no") == bad


async def test_an_error_in_a_stream_is_a_failure(model: str) -> None:
    inner = reply(b"one", b"error")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await inner(scope, receive, send)
        measuring.failed("engine_lost")

    grown = Grown()
    await ask(app)
    assert grown("satori_refusals_total", code="engine_lost") == 1
    assert grown("satori_requests_total", model=model, outcome="failed") == 1
    assert grown("satori_wasted_tokens_total", model=model, reason="error") == 3
    assert grown("satori_e2e_seconds_count", model=model) == 0


async def test_a_client_that_leaves_wastes_what_was_generated(model: str) -> None:
    began = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        record = measuring.current.get()
        assert record is not None
        record.engine.append(engine_request(5))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        began.set()
        await asyncio.Event().wait()

    async def nowhere(message: Any) -> None: ...

    grown = Grown()
    scope = {"type": "http", "method": "POST", "path": "/v1/completions"}
    task = asyncio.create_task(Measuring(app)(scope, None, nowhere))  # type: ignore[arg-type]
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert grown("satori_wasted_tokens_total", model=model, reason="disconnect") == 5
    assert grown("satori_requests_total", model=model, outcome="disconnected") == 1
    assert grown("satori_key_requests_total", key="(none)") == 1
    assert grown("satori_slo_requests_total", model=model, met="no") == 0


async def test_an_application_that_does_not_measure_answers_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Measuring, "writer", None)
    async with served(measuring__enabled=False, engine__disable_log_stats=True) as server:
        assert (await server.chat({"role": "user", "content": "1"})).status_code == 200
    assert Measuring.writer is None
