"""OpenTelemetry traces, one a request, off unless `tracing.otlp_endpoint` is set: made of the request's record when it has ended.

So nothing is traced while tokens flow, and what a request's end costs is to queue its record: a thread makes the spans and sends
them. It makes them as OTLP messages, without the SDK's spans between, which take ten times as long; queue, batches, sampling,
transport and the variables `OTEL_*` are the SDK's.

The spans: the API request; in it each engine request (`n` makes several); in that each attempt on a replica, where a lost one ends
with an error; and in the attempt that began, the engine's phases. These are as long as by the engine's clock, and placed before the
moment at which the first token was here, which is later by the token's way.
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

from deployments.failover import Attempt, OpenRequest
from deployments.measuring import Record
from deployments.settings import TracingSettings

SAMPLED = TraceFlags(TraceFlags.SAMPLED)


@dataclass(frozen=True, slots=True)
class Ended:
    """A request that has ended and is traced; to the SDK's queue it is a span. `parent` is the caller's span, 0 without one."""

    record: Record
    path: str
    request_id: str
    context: SpanContext
    parent: int


class Tracer:
    """Sends spans to an OTLP collector, in a thread of its own. `replica` is the ingress's."""

    def __init__(self, settings: TracingSettings, replica: str) -> None:
        self._sampler = ParentBased(TraceIdRatioBased(settings.sample))
        self._propagator = TraceContextTextMapPropagator()
        resource = {"service.name": "satori-serve", "service.instance.id": replica}
        self._queue = BatchSpanProcessor(_Exporter(f"{settings.otlp_endpoint}/v1/traces", resource))

    def write(self, record: Record, path: str, headers: Mapping[str, str]) -> None:
        """Have the spans of a request made that has ended; one that came with a `traceparent` goes on in that trace."""
        outer, parent = None, INVALID_SPAN_CONTEXT
        if "traceparent" in headers:
            outer = self._propagator.extract(dict(headers))
            parent = get_current_span(outer).get_span_context()
        trace_id = parent.trace_id or random.getrandbits(128) or 1
        if not self._sampler.should_sample(outer, trace_id, path, SpanKind.SERVER).decision.is_sampled():  # type: ignore[no-untyped-call]
            return
        context = SpanContext(trace_id, random.getrandbits(64) or 1, False, SAMPLED)
        request_id = headers.get("x-request-id", "")  # Serve gives each request one that came without
        self._queue.on_end(Ended(record, path, request_id, context, parent.span_id))  # type: ignore[arg-type]

    def close(self) -> None:
        """Send what is left."""
        self._queue.shutdown()  # type: ignore[no-untyped-call]


class _Exporter(OTLPSpanExporter):
    """The SDK's exporter, of requests in place of spans."""

    def __init__(self, endpoint: str, resource: dict[str, str]) -> None:
        super().__init__(endpoint)
        self._resource = Resource(attributes=_attributes(resource))

    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        """Send the spans of requests."""
        scope = ScopeSpans(scope=InstrumentationScope(name="satori"), spans=[span for ended in spans for span in _spans(ended)])
        message = ExportTraceServiceRequest(resource_spans=[ResourceSpans(resource=self._resource, scope_spans=[scope])])
        sent = self._client.export(message.SerializeToString())
        return SpanExportResult.SUCCESS if sent.success else SpanExportResult.FAILURE


def _spans(ended: Ended) -> Iterator[Span]:
    """Return the spans of a request."""
    record, made = ended.record, _Maker(ended.context.trace_id.to_bytes(16, "big"), ended.record.ended)
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
    for opened in record.engine:
        yield from made.request(opened, root.span_id)


class _Maker:
    """Makes the spans of one trace. Times come by the monotonic clock; spans end when the request does, at the latest."""

    def __init__(self, trace_id: bytes, ended: float) -> None:
        self._trace_id = trace_id
        self._ended = ended
        self._wall = time.time() - time.monotonic()

    def request(self, opened: OpenRequest, outer: bytes) -> Iterator[Span]:
        known = {
            "gen_ai.request.id": opened.request.request_id,
            "gen_ai.usage.input_tokens": len(opened.request.prompt_token_ids or ()),
            "gen_ai.usage.output_tokens": len(opened.tokens),
        }
        span = self.span("engine request", outer, opened.began, self._ended, known)
        yield span
        for number, attempt in enumerate(opened.attempts):
            yield from self._attempt(opened, attempt, number, span.span_id)

    def _attempt(self, opened: OpenRequest, attempt: Attempt, number: int, outer: bytes) -> Iterator[Span]:
        until = min(attempt.ended or self._ended, self._ended)
        known = {"satori.attempt": number, "satori.engine": attempt.engine}
        span = self.span("replica", outer, attempt.began, until, known)
        if attempt.lost:
            span.status.CopyFrom(Status(code=Status.STATUS_CODE_ERROR, message="the replica was lost"))
            span.events.append(self.event("fail-over", until))
        yield span
        if number == 0 and opened.first_here:
            prefill = opened.first_here - opened.prefill_s
            queued = prefill - opened.queue_s
            phases = (("route", attempt.began, queued), ("queue", queued, prefill), ("prefill", prefill, opened.first_here))
            for name, began, end in (*phases, ("decode", opened.first_here, until)):
                yield self.span(name, span.span_id, began, end, {})

    def span(
        self,
        name: str,
        outer: bytes,
        began: float,
        ended: float,
        known: Mapping[str, str | int],
        span_id: bytes = b"",
        kind: Span.SpanKind.ValueType = Span.SPAN_KIND_INTERNAL,
    ) -> Span:
        """Return a span; one that would end before it began has no length."""
        return Span(
            trace_id=self._trace_id,
            span_id=span_id or random.randbytes(8),
            parent_span_id=outer,
            name=name,
            kind=kind,
            start_time_unix_nano=self._nanoseconds(began),
            end_time_unix_nano=self._nanoseconds(max(began, ended)),
            attributes=_attributes(known),
        )

    def event(self, name: str, moment: float) -> Span.Event:
        return Span.Event(name=name, time_unix_nano=self._nanoseconds(moment))

    def _nanoseconds(self, moment: float) -> int:
        return int((self._wall + moment) * 1e9)


def _attributes(known: Mapping[str, str | int]) -> list[KeyValue]:
    return [
        KeyValue(key=key, value=AnyValue(string_value=value) if isinstance(value, str) else AnyValue(int_value=value))
        for key, value in known.items()
    ]
