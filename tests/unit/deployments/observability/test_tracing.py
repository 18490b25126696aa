"""Traces of requests, as a collector in this process gets them."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from deployments.observability.record import Record, Timeline, Visit
from deployments.observability.tracing import Tracer
from deployments.settings import TracingSettings
from tests.support.collector import Collector, attributes, collecting

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as server:
        yield server


def written(collector: Collector, record: Record, sample: float = 1.0, **headers: str) -> dict[str, Any]:
    """Return the spans of a record by name; of several with a name the last."""
    tracer = Tracer(TracingSettings(otlp_endpoint=collector.endpoint, sample=sample), "r1")
    tracer.write(record, "/v1/chat/completions", headers)
    tracer.close()
    return {span.name: span for span in collector.spans}


def moved() -> Record:
    """A request that began on engine 0 and, when that was lost, went on on engine 1."""
    now = time.monotonic() - 10
    visits = [Visit(now + 0.1, now + 2, engine=0, lost=True), Visit(now + 2, now + 4, engine=1)]
    timeline = Timeline("x", "alice", 2, now + 0.1, [1, 2, 3], visits, first_here=now + 1.0, queue_s=0.3, prefill_s=0.2)
    return Record(now, [timeline], sent=[now + 1.1, now + 4], status=200, streams=True, complete=True, ended=now + 4.1)


def test_a_request_is_one_trace_from_ingress_to_engine(collector: Collector) -> None:
    spans = written(collector, moved())
    assert len({span.trace_id for span in collector.spans}) == 1
    assert [span.name for span in collector.spans].count("replica") == 2
    assert set(spans) == {"POST /v1/chat/completions", "engine request", "replica", "route", "queue", "prefill", "decode"}
    parents = {span.span_id: span.name for span in collector.spans}
    assert parents[spans["prefill"].parent_span_id] == "replica"
    assert parents[spans["replica"].parent_span_id] == "engine request"
    assert parents[spans["engine request"].parent_span_id] == "POST /v1/chat/completions"
    length = {name: (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9 for name, span in spans.items()}
    assert length["queue"] == pytest.approx(0.3, abs=0.01)
    assert length["prefill"] == pytest.approx(0.2, abs=0.01)
    assert length["POST /v1/chat/completions"] == pytest.approx(4.1, abs=0.01)
    for span in collector.spans:
        assert spans["POST /v1/chat/completions"].start_time_unix_nano - 1e6 <= span.start_time_unix_nano <= span.end_time_unix_nano


def test_a_lost_replica_is_an_error_and_the_request_is_none(collector: Collector) -> None:
    written(collector, moved())
    lost, found = sorted((span for span in collector.spans if span.name == "replica"), key=lambda span: span.start_time_unix_nano)
    assert lost.status.code == 2
    assert [event.name for event in lost.events] == ["fail-over"]
    assert found.status.code == 0
    assert [attributes(span)["satori.engine"] for span in (lost, found)] == [0, 1]


def test_a_request_is_found_by_the_id_that_its_response_and_the_logs_carry(collector: Collector) -> None:
    spans = written(collector, moved(), **{"x-request-id": "mine"})
    assert attributes(spans["POST /v1/chat/completions"])["satori.request_id"] == "mine"
    assert attributes(spans["engine request"])["gen_ai.request.id"] == "x"


def test_a_callers_trace_goes_on(collector: Collector) -> None:
    spans = written(collector, moved(), traceparent=f"00-{TRACE}-b7ad6b7169203331-01")
    assert spans["decode"].trace_id.hex() == TRACE
    assert spans["POST /v1/chat/completions"].parent_span_id.hex() == "b7ad6b7169203331"


def test_what_fails_is_marked_and_what_is_not_sampled_is_not_sent(collector: Collector) -> None:
    failed = Record(time.monotonic() - 1, status=500, complete=True, error="internal_error", ended=time.monotonic())
    spans = written(collector, failed)
    assert spans["POST /v1/chat/completions"].status.code == 2
    collector.spans.clear()
    assert written(collector, moved(), sample=0.0) == {}
