"""OpenTelemetry traces, one a request, off unless `tracing.otlp_endpoint` is set: made of the request's record when it has ended.

So nothing is traced while tokens flow. The spans: the API request; in it each engine request (`n` makes several); in that each
attempt on a replica, where a lost one ends with an error; and in the attempt that began, the engine's phases. These are as long as
by the engine's clock, and placed before the moment at which the first token was here, which is later by the token's way.
"""

import time
from collections.abc import Mapping
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from deployments.failover import Attempt, OpenRequest
from deployments.measuring import Record
from deployments.settings import TracingSettings


class Tracer:
    """Sends spans to an OTLP collector, in a thread of its own. `replica` is the ingress's."""

    def __init__(self, settings: TracingSettings, replica: str) -> None:
        resource = Resource.create({"service.name": "satori-serve", "service.instance.id": replica})
        self._provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(settings.sample)))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{settings.otlp_endpoint}/v1/traces")))
        self._tracer = self._provider.get_tracer("satori")

    def write(self, record: Record, path: str, headers: Mapping[str, str]) -> None:
        """Make the spans of a request that has ended; one that came with a `traceparent` goes on in that trace."""
        outer = TraceContextTextMapPropagator().extract(dict(headers))
        known = {"http.request.method": "POST", "url.path": path, "http.response.status_code": record.status}
        known |= {"satori.outcome": record.outcome, "error.type": record.error}
        known |= {"satori.request_id": headers.get("x-request-id", "")}  # Serve gives each request one that came without
        root, within = self._span(f"POST {path}", outer, record.arrived, record.ended, known, SpanKind.SERVER)
        if record.outcome == "failed":
            root.set_status(Status(StatusCode.ERROR, record.error))
        if record.sent:
            root.add_event("first event", timestamp=_wall(record.sent[0]))
        if record.answered is not None:
            root.add_event("answer", timestamp=_wall(record.answered))
        for opened in record.engine:
            self._request(opened, within, record.ended)
        root.end(_wall(record.ended))

    def _request(self, opened: OpenRequest, outer: Context, ended: float) -> None:
        known = {
            "gen_ai.request.id": opened.request.request_id,
            "gen_ai.usage.input_tokens": len(opened.request.prompt_token_ids or ()),
            "gen_ai.usage.output_tokens": len(opened.tokens),
        }
        span, within = self._span("engine request", outer, opened.began, ended, known)
        for number, attempt in enumerate(opened.attempts):
            self._attempt(opened, attempt, number, within, ended)
        span.end(_wall(ended))

    def _attempt(self, opened: OpenRequest, attempt: Attempt, number: int, outer: Context, ended: float) -> None:
        until = min(attempt.ended or ended, ended)
        span, within = self._span(
            "replica", outer, attempt.began, until, {"satori.attempt": number, "satori.engine": attempt.engine}
        )
        if attempt.lost:
            span.set_status(Status(StatusCode.ERROR, "the replica was lost"))
            span.add_event("fail-over", timestamp=_wall(until))
        if number == 0 and opened.first_here:
            prefill = opened.first_here - opened.prefill_s
            queued = prefill - opened.queue_s
            phases = (("route", attempt.began, queued), ("queue", queued, prefill), ("prefill", prefill, opened.first_here))
            for name, began, end in (*phases, ("decode", opened.first_here, until)):
                self._span(name, within, began, max(began, end), {})[0].end(_wall(max(began, end)))
        span.end(_wall(until))

    def _span(
        self, name: str, outer: Context, began: float, ended: float, known: dict[str, Any], kind: SpanKind = SpanKind.INTERNAL
    ) -> tuple[Any, Context]:
        span = self._tracer.start_span(name, outer, kind, known, start_time=_wall(min(began, ended)))
        return span, set_span_in_context(span, outer)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _wall(moment: float) -> int:
    """Return a time of the monotonic clock in nanoseconds of the wall clock's."""
    return int((time.time() - time.monotonic() + moment) * 1e9)
