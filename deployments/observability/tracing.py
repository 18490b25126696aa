"""OpenTelemetry traces, one per request, off unless `tracing.otlp_endpoint` is set.

A trace is made from the request's record when the request has ended. So nothing is traced while tokens flow, and the end of a
request costs only the queueing of its record. A thread makes the spans and sends them. It makes them directly as OTLP messages:
by way of the SDK's spans it would take ten times as long. Queue, batches, sampling, transport and the variables `OTEL_*` are the
SDK's.

The spans: the API request; in it, each engine request (`n` makes several); in that, each attempt on a replica, where a lost one
ends with an error; in the first attempt, the engine's phases. Their lengths come from the engine's clock. They are placed so that
the prefill ends when the first token arrives here: later than in the engine, by the token's way.
"""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext, SpanKind, TraceFlags, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from deployments.observability.record import Record, Timeline, Visit
from deployments.settings import TracingSettings

SAMPLED = TraceFlags(TraceFlags.SAMPLED)


@dataclass(frozen=True, slots=True)
class Ended:
    """An ended request that is traced; to the SDK's queue it is a span. `parent` is the id of the caller's span, 0 without one."""

    record: Record
    path: str
    request_id: str
    context: SpanContext
    parent: int


class Tracer:
    """Sends spans to an OTLP collector, in a thread of its own. `replica` is the id of the ingress replica."""

    def __init__(self, settings: TracingSettings, replica: str) -> None:
        self._sampler = ParentBased(TraceIdRatioBased(settings.sample))
        self._propagator = TraceContextTextMapPropagator()
        resource = {"service.name": "satori-serve", "service.instance.id": replica}
        self._queue = BatchSpanProcessor(_Exporter(f"{settings.otlp_endpoint}/v1/traces", resource))

    def write(self, record: Record, path: str, headers: Mapping[str, str]) -> None:
        """Queue an ended request for its spans to be made; one with a `traceparent` continues the caller's trace."""
        caller, parent = None, INVALID_SPAN_CONTEXT
        if "traceparent" in headers:
            caller = self._propagator.extract(dict(headers))
            parent = get_current_span(caller).get_span_context()
        trace_id = parent.trace_id or random.getrandbits(128) or 1
        if not self._sampler.should_sample(caller, trace_id, path, SpanKind.SERVER).decision.is_sampled():  # type: ignore[no-untyped-call]
            return
        context = SpanContext(trace_id, random.getrandbits(64) or 1, False, SAMPLED)
        request_id = headers.get("x-request-id", "")  # Serve adds one to a request without it
        self._queue.on_end(Ended(record, path, request_id, context, parent.span_id))  # type: ignore[arg-type]

    def close(self) -> None:
        """Send what is left."""
        self._queue.shutdown()  # type: ignore[no-untyped-call]


class _Exporter(OTLPSpanExporter):
    """The SDK's exporter, for ended requests in place of spans."""

    def __init__(self, endpoint: str, resource: dict[str, str]) -> None:
        super().__init__(endpoint)
        self._resource = Resource(attributes=_attributes(resource))

    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        """Send the spans of ended requests."""
        scope = ScopeSpans(scope=InstrumentationScope(name="satori"), spans=[span for ended in spans for span in _spans(ended)])
        message = ExportTraceServiceRequest(resource_spans=[ResourceSpans(resource=self._resource, scope_spans=[scope])])
        sent = self._client.export(message.SerializeToString())
        return SpanExportResult.SUCCESS if sent.success else SpanExportResult.FAILURE


def _spans(ended: Ended) -> Iterator[Span]:
    """Return the spans of a request."""
    record, made = ended.record, _SpanMaker(ended.context.trace_id.to_bytes(16, "big"), ended.record.ended)
    root = made.span(
        f"POST {ended.path}",
        ended.parent.to_bytes(8, "big") if ended.parent else b"",
        record.arrived,
        record.ended,
        {
            "http.request.method": "POST",
            "url.path": ended.path,
            "http.response.status_code": record.status,
            "satori.outcome": record.outcome,
            "error.type": record.error,
            "satori.request_id": ended.request_id,
        },
        span_id=ended.context.span_id.to_bytes(8, "big"),
        kind=Span.SPAN_KIND_SERVER,
    )
    if record.outcome == "failed":
        root.status.CopyFrom(Status(code=Status.STATUS_CODE_ERROR, message=record.error))
    if record.sent:
        root.events.append(made.event("first event", record.sent[0]))
    if record.answered is not None:
        root.events.append(made.event("answer", record.answered))
    yield root
    for timeline in record.engine:
        yield from made.request(timeline, root.span_id)


class _SpanMaker:
    """Makes the spans of one trace. Times are given by the monotonic clock; a span ends with the request at the latest."""

    def __init__(self, trace_id: bytes, ended: float) -> None:
        self._trace_id = trace_id
        self._ended = ended
        self._wall = time.time() - time.monotonic()

    def request(self, timeline: Timeline, parent_id: bytes) -> Iterator[Span]:
        attributes: dict[str, str | int] = {
            "gen_ai.request.id": timeline.request_id,
            "gen_ai.usage.input_tokens": timeline.prompt_tokens,
            "gen_ai.usage.output_tokens": len(timeline.tokens),
        }
        span = self.span("engine request", parent_id, timeline.began, self._ended, attributes)
        yield span
        for number, visit in enumerate(timeline.visits):
            yield from self._visit(timeline, visit, number, span.span_id)

    def _visit(self, timeline: Timeline, visit: Visit, number: int, parent_id: bytes) -> Iterator[Span]:
        until = min(visit.ended or self._ended, self._ended)
        attributes = {"satori.attempt": number, "satori.engine": visit.engine}
        span = self.span("replica", parent_id, visit.began, until, attributes)
        if visit.lost:
            span.status.CopyFrom(Status(code=Status.STATUS_CODE_ERROR, message="the replica was lost"))
            span.events.append(self.event("fail-over", until))
        yield span
        if number == 0 and timeline.first_here:
            prefill = timeline.first_here - timeline.prefill_s
            queued = prefill - timeline.queue_s
            phases = (("route", visit.began, queued), ("queue", queued, prefill), ("prefill", prefill, timeline.first_here))
            for name, began, end in (*phases, ("decode", timeline.first_here, until)):
                yield self.span(name, span.span_id, began, end, {})

    def span(
        self,
        name: str,
        parent_id: bytes,
        began: float,
        ended: float,
        attributes: Mapping[str, str | int],
        span_id: bytes = b"",
        kind: Span.SpanKind.ValueType = Span.SPAN_KIND_INTERNAL,
    ) -> Span:
        """Return a span; one that would end before it began has no length."""
        return Span(
            trace_id=self._trace_id,
            span_id=span_id or random.randbytes(8),
            parent_span_id=parent_id,
            name=name,
            kind=kind,
            start_time_unix_nano=self._nanoseconds(began),
            end_time_unix_nano=self._nanoseconds(max(began, ended)),
            attributes=_attributes(attributes),
        )

    def event(self, name: str, moment: float) -> Span.Event:
        return Span.Event(name=name, time_unix_nano=self._nanoseconds(moment))

    def _nanoseconds(self, moment: float) -> int:
        return int((self._wall + moment) * 1e9)


def _attributes(attributes: Mapping[str, str | int]) -> list[KeyValue]:
    return [
        KeyValue(key=key, value=AnyValue(string_value=value) if isinstance(value, str) else AnyValue(int_value=value))
        for key, value in attributes.items()
    ]
