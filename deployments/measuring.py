"""What a request is measured by: one record from its arrival to its end, written into the metrics all at once when it has ended.

The middleware makes the record and sees the response go out; the engine client adds the engine requests that it became, the chat
parser what it read. While tokens flow, each costs a time stamp. Durations of the engine are by the engine's own clock and those
of the ingress by its own: only durations are compared.
"""

import itertools
import json
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments import metrics
from deployments.errors import CODES
from deployments.keepalive import COMMENT
from deployments.settings import SloSettings

if TYPE_CHECKING:
    from deployments.failover import OpenRequest
    from deployments.tracing import Tracer

# What goes out this soon after something else belongs to it: a stream's first and last events come with a token, not for one.
TOGETHER_S = 0.0001
ERROR_BYTES = 65536
NO_KEY = "(none)"  # no key can be named so


@dataclass(slots=True)
class Record:
    """One API request. Times are of the monotonic clock; `sent` are those of a stream's events."""

    arrived: float
    engine: list["OpenRequest"] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)
    status: int = 0
    streams: bool = False
    complete: bool = False
    error: str = ""
    reads: bool = False
    vote: bool = False
    answered: float | None = None
    answer_tokens: int = 0
    ended: float = 0.0

    @property
    def outcome(self) -> str:
        """How it ended, as `satori_requests_total` tells it."""
        if self.status >= 500 and self.status != 503:
            return "failed"
        if self.status >= 400:
            return "refused"
        if self.error:
            return "failed"
        return "ok" if self.complete else "disconnected"


current: ContextVar[Record | None] = ContextVar("current", default=None)


def failed(code: str, record: Record | None = None) -> None:
    """Note why a request, by default the current one, ends with an error, where its response may have begun already."""
    if (record := record or current.get()) is not None:
        record.error = code


class Writer:
    """Writes records into the metrics of a model, whose series are looked up once."""

    def __init__(self, model: str, slo: SloSettings) -> None:
        self._model, self._slo = model, slo
        self._ttft, self._ttfat, self._itl, self._tpot, self._e2e, self._queue, self._overhead_ttft, self._overhead_itl = (
            metric.labels(model)
            for metric in (
                metrics.TTFT,
                metrics.TTFAT,
                metrics.ITL,
                metrics.TPOT,
                metrics.E2E,
                metrics.QUEUE,
                metrics.OVERHEAD_TTFT,
                metrics.OVERHEAD_ITL,
            )
        )
        # From the start at zero, so that rates are right from the first one on, and panels have something to show.
        self._tokens = {kind: metrics.TOKENS.labels(model, kind) for kind in ("prompt", "reasoning", "answer")}
        self._outcomes = {how: metrics.REQUESTS.labels(model, how) for how in ("ok", "refused", "failed", "disconnected")}
        self._slo_met = {met: metrics.SLO_REQUESTS.labels(model, "yes" if met else "no") for met in (True, False)}
        self._wasted = {reason: metrics.WASTED_TOKENS.labels(model, reason) for reason in ("disconnect", "error")}
        for code in CODES:
            metrics.REFUSALS.labels(code)
        for boxed in ("yes", "no"):
            metrics.ANSWERS.labels(model, boxed)
        for decided in ("early", "complete"):
            metrics.VOTES.labels(model, decided)
        metrics.VOTE_TOKENS_SAVED.labels(model)
        metrics.SLO_LIMIT.labels("ttft").set(slo.ttft_s)
        metrics.SLO_LIMIT.labels("tpot").set(slo.tpot_s)

    def write(self, record: Record) -> None:
        """Count a request that has ended."""
        self._outcomes[record.outcome].inc()
        if record.error or record.status >= 400:
            metrics.REFUSALS.labels(record.error if record.error in CODES else str(record.status)).inc()
        if record.engine:
            self._count_tokens(record)
            self._time(record)
        self._judge(record)

    def _count_tokens(self, record: Record) -> None:
        prompt = len(record.engine[0].request.prompt_token_ids or ())
        output = sum(len(opened.tokens) for opened in record.engine)
        answer = record.answer_tokens if record.reads else output
        self._tokens["prompt"].inc(prompt)
        self._tokens["reasoning"].inc(output - answer)
        self._tokens["answer"].inc(answer)
        key = record.engine[0].client or NO_KEY
        metrics.KEY_REQUESTS.labels(key).inc()
        metrics.KEY_TOKENS.labels(key, "prompt").inc(prompt)
        metrics.KEY_TOKENS.labels(key, "output").inc(output)
        if record.outcome in ("disconnected", "failed", "refused"):
            self._wasted["disconnect" if record.outcome == "disconnected" else "error"].inc(output)

    def _time(self, record: Record) -> None:
        if record.outcome != "ok":
            return
        self._e2e.observe(record.ended - record.arrived)
        first = record.engine[0]
        if first.first_here and not first.attempt:
            self._queue.observe(max(0.0, first.first_here - record.arrived - first.prefill_s))
        if not record.sent or record.vote:
            return
        ttft = record.sent[0] - record.arrived
        self._ttft.observe(ttft)
        if record.answered is not None:
            self._ttfat.observe(record.answered - record.arrived)
        if len(record.engine) > 1:
            return  # several replies in one stream
        if (gaps := _gaps(record.sent)) and (count := len(first.tokens)) > 1:
            metrics.observe_all(self._itl, gaps)
            self._tpot.observe((record.ended - record.sent[0]) / (count - 1))
            if not first.attempt:
                self._overhead_itl.observe(max(0.0, (sum(gaps) - (first.last_step - first.first_step)) / (count - 1)))
        if first.first_here and not first.attempt:
            self._overhead_ttft.observe(max(0.0, ttft - first.queue_s - first.prefill_s))

    def _judge(self, record: Record) -> None:
        """Count a request for goodput."""
        if record.outcome == "ok":
            if record.engine and record.engine[0].first_here:
                began = record.sent[0] if record.sent and not record.vote else record.engine[0].first_here
                tokens = max(len(opened.tokens) for opened in record.engine)
                slow = began - record.arrived > self._slo.ttft_s or record.ended - began > self._slo.tpot_s * max(1, tokens - 1)
                self._slo_met[not slow].inc()
        elif record.outcome == "failed" or record.status == 503 or record.error in ("queue_full", "overloaded"):
            self._slo_met[False].inc()


def _gaps(times: list[float]) -> list[float]:
    return [gap for before, after in itertools.pairwise(times) if (gap := after - before) > TOGETHER_S]


class Measuring:
    """ASGI middleware that keeps the record of each API request."""

    writer: ClassVar[Writer | None] = None
    tracer: ClassVar["Tracer | None"] = None

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"].startswith("/ui") or self.writer is None:
            await self._app(scope, receive, send)
            return
        record = Record(time.monotonic())
        token = current.set(record)
        try:
            await self._app(scope, receive, _watched(record, send))
        finally:
            current.reset(token)
            record.ended = time.monotonic()
            self.writer.write(record)
            if self.tracer is not None:
                self.tracer.write(record, scope["path"], Headers(scope=scope))


def _watched(record: Record, send: Send) -> Send:
    """Return a `send` that notes what goes out. Not a coroutine of its own: this is done for every token."""
    now, sent = time.monotonic, record.sent

    def watching(message: Message) -> Any:
        if message["type"] == "http.response.body":
            if record.streams:
                if message.get("body") is not COMMENT:
                    sent.append(now())
            elif record.status >= 400 and not record.error:
                record.error = _code(message.get("body", b""))
            if not message.get("more_body"):
                record.complete = True
        elif message["type"] == "http.response.start":
            record.status = message["status"]
            record.streams = Headers(raw=message["headers"]).get("content-type", "").startswith("text/event-stream")
        return send(message)

    return watching


def _code(body: bytes) -> str:
    """Return the code in an error's body, "" where there is none."""
    if len(body) > ERROR_BYTES:
        return ""
    try:
        code = json.loads(body)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return ""
    return str(code)
