"""From an API request's events to its metrics, on a small application of the test's own."""

import asyncio
import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from deployments.ingress.middleware.keepalive import COMMENT
from deployments.ingress.middleware.measuring import ERROR_BYTES, Measuring
from deployments.observability import metrics
from deployments.observability import record as record_module
from deployments.observability import writer as writer_module
from deployments.observability.record import Record, Timeline
from deployments.observability.writer import Writer
from deployments.settings import SloSettings
from tests.support.in_process import served
from tests.support.samples import Grown

metrics.keep(metrics.INGRESS)

App = Callable[[Scope, Receive, Send], Any]


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """A model of the test's own, whose series nobody else counts in."""
    return str(request.node.name)


def writer(model: str, tpot_s: float = 10) -> Writer:
    return Writer(model, SloSettings(ttft_s=10, tpot_s=tpot_s))


def timeline(tokens: int, client: str = "") -> Timeline:
    now = time.monotonic()
    return Timeline("a", client, 3, now, range(tokens), first_here=now, first_step=100.0, last_step=100.0)


async def ask(app: App, write: Any, tracer: Any = None, path: str = "/v1/chat/completions", method: str = "POST") -> None:
    """Send a request to an application that is measured: by a writer, or by what is called with the record."""
    writer = write if isinstance(write, Writer) else SimpleNamespace(write=write)
    transport = httpx.ASGITransport(Measuring(app, writer, tracer), raise_app_exceptions=False)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        await http.request(method, path)


def reply(*events: bytes, status: int = 200, kind: bytes = b"text/event-stream", pause: float = 0.001) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        current = record_module.current.get()
        assert current is not None
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        for place, event in enumerate(events):
            await asyncio.sleep(pause)
            await send({"type": "http.response.body", "body": event, "more_body": place < len(events) - 1})
        if status == 200:
            current.engine.append(timeline(3, "alice"))
            current.reads, current.answer_tokens, current.answered = True, 1, time.monotonic()

    return app


async def test_a_stream_is_timed_and_its_tokens_are_told_apart(model: str) -> None:
    grown = Grown()
    await ask(reply(b"role", b"one", COMMENT, b"two", b"end"), writer(model))
    for name in ("ttft", "ttfat", "tpot", "e2e", "queue", "overhead_ttft", "overhead_itl"):
        assert grown(f"satori_{name}_seconds_count", model=model) == 1, name
    assert grown("satori_itl_seconds_count", model=model) == 3, "comments are no tokens"
    assert grown("satori_ttft_seconds_sum", model=model) < grown("satori_e2e_seconds_sum", model=model)
    assert [grown("satori_tokens_total", model=model, kind=kind) for kind in ("prompt", "reasoning", "answer")] == [3, 2, 1]
    assert grown("satori_requests_total", model=model, outcome="ok") == 1
    assert grown("satori_slo_requests_total", model=model, met="yes") == 1
    assert grown("satori_key_tokens_total", key="alice", kind="output") == 3
    assert grown("satori_wasted_tokens_total", model=model, reason="disconnect") == 0


async def test_what_goes_out_together_is_one_token(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "TOGETHER_S", 3600.0)  # a machine may pause between the two
    grown = Grown()
    await ask(reply(b"role", b"one", b"usage", b"end", pause=0), writer(model))
    assert grown("satori_itl_seconds_count", model=model) == 0
    assert grown("satori_ttft_seconds_count", model=model) == 1


async def test_a_whole_reply_has_no_time_to_first_token(model: str) -> None:
    grown = Grown()
    await ask(reply(b"{}", kind=b"application/json"), writer(model))
    assert grown("satori_ttft_seconds_count", model=model) == 0
    assert grown("satori_e2e_seconds_count", model=model) == 1


async def test_a_record_that_has_ended_is_traced(model: str) -> None:
    written: list[Any] = []
    tracer = SimpleNamespace(write=lambda record, *about: written.append((record, *about)))
    await ask(reply(b"one"), writer(model), tracer)
    [(record, path, headers)] = written
    assert record.complete
    assert record.ended > record.arrived
    assert path == "/v1/chat/completions"
    assert headers["host"] == "test"


async def test_slow_requests_are_not_good(model: str) -> None:
    grown = Grown()
    await ask(reply(b"one", b"two"), writer(model, tpot_s=1e-6))
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
    body = json.dumps({"error": {"code": code}}).encode()
    await ask(reply(body, status=status, kind=b"application/json"), writer(model))
    assert grown("satori_refusals_total", code=label) == 1
    assert grown("satori_requests_total", model=model, outcome=outcome) == 1
    assert grown("satori_slo_requests_total", model=model, met="no") == bad


async def test_an_error_in_a_stream_is_a_failure(model: str) -> None:
    inner = reply(b"one", b"error")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await inner(scope, receive, send)
        record_module.failed("engine_lost")

    grown = Grown()
    await ask(app, writer(model))
    assert grown("satori_refusals_total", code="engine_lost") == 1
    assert grown("satori_requests_total", model=model, outcome="failed") == 1
    assert grown("satori_wasted_tokens_total", model=model, reason="error") == 3
    assert grown("satori_e2e_seconds_count", model=model) == 0


async def test_a_client_that_leaves_wastes_what_was_generated(model: str) -> None:
    began = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        current = record_module.current.get()
        assert current is not None
        current.engine.append(timeline(5))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        began.set()
        await asyncio.Event().wait()

    async def nowhere(message: Any) -> None: ...

    grown = Grown()
    scope = {"type": "http", "method": "POST", "path": "/v1/completions"}
    task = asyncio.create_task(Measuring(app, writer(model))(scope, None, nowhere))  # type: ignore[arg-type]
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert grown("satori_wasted_tokens_total", model=model, reason="disconnect") == 5
    assert grown("satori_requests_total", model=model, outcome="disconnected") == 1
    assert grown("satori_key_requests_total", key="(none)") == 1
    assert grown("satori_slo_requests_total", model=model, met="no") == 0


async def test_the_record_says_what_went_out() -> None:
    written: list[Record] = []
    began = time.monotonic()
    await ask(reply(b"role", b"one", COMMENT, b"end"), written.append)
    [record] = written
    assert (record.status, record.streams, record.complete, record.error) == (200, True, True, "")
    assert len(record.sent) == 3
    assert began <= record.arrived <= record.sent[0] <= record.sent[-1] <= record.ended
    assert record_module.current.get() is None, "and nobody else's"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"error": {"code": "queue_full"}}', "queue_full"),
        (b'{"error": {"code": 400}}', "400"),
        (b'{"error": "x"}', ""),
        (b'["error"]', ""),
        (b"no JSON", ""),
        (b"\xff", ""),
        (b'{"error": {"code": "' + b"x" * ERROR_BYTES + b'"}}', ""),
    ],
    ids=range(7),
)
async def test_the_code_of_a_refusal_is_read_where_there_is_one(body: bytes, error: str) -> None:
    written: list[Record] = []
    await ask(reply(body, status=429, kind=b"application/json"), written.append)
    [record] = written
    assert (record.status, record.error, record.sent) == (429, error, [])


@pytest.mark.parametrize(("path", "method"), [("/ui/queue", "POST"), ("/v1/models", "GET")])
async def test_only_requests_to_the_api_are_measured(path: str, method: str) -> None:
    written: list[Record] = []
    seen: list[Record | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(record_module.current.get())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    await ask(app, written.append, path=path, method=method)
    assert (written, seen) == ([], [None])


async def test_an_application_that_does_not_measure_answers_all_the_same() -> None:
    async with served(measuring__enabled=False, engine__disable_log_stats=True) as server:
        assert (await server.chat({"role": "user", "content": "1"})).status_code == 200
        assert Measuring not in [middleware.cls for middleware in server.app.user_middleware]


async def test_the_ingress_measures_what_it_answers(model: str) -> None:
    grown = Grown()
    async with served(served_model_name=model) as server:
        reply = await server.chat({"role": "user", "content": "1"}, model=model)
        assert reply.status_code == 200, reply.text
    assert grown("satori_requests_total", model=model, outcome="ok") == 1
