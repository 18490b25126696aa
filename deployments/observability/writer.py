"""Records of ended requests, written into the metrics."""

import itertools
from collections.abc import Callable

from deployments.errors import CODES
from deployments.observability import metrics
from deployments.observability.pauses import PAUSES
from deployments.observability.record import Record, Timeline
from deployments.settings import SloSettings

# An event that goes out this soon after another one belongs to it: a stream's first and last events come beside a token.
TOGETHER_S = 0.0001
NO_KEY = "(none)"  # no key can have this name


class Writer:
    """Writes records into the metrics of a model, whose series are looked up once.

    `cost` returns what a key's prompt and generated tokens cost; None without a price.
    """

    def __init__(self, model: str, slo: SloSettings, cost: Callable[[str, int, int], float | None] = lambda *_: None) -> None:
        self._model, self._slo, self._cost = model, slo, cost
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
        # Series start at zero, so that rates are right from the first request on, and panels have something to show.
        self._tokens = {kind: metrics.TOKENS.labels(model, kind) for kind in ("prompt", "reasoning", "answer")}
        self._outcomes = {how: metrics.REQUESTS.labels(model, how) for how in ("ok", "refused", "failed", "disconnected")}
        self._predicted = {where: metrics.LENGTHS_PREDICTED.labels(model, where) for where in ("below", "inside", "above")}
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
        paused = PAUSES.since(record.arrived)
        if record.engine:
            self._count_tokens(record)
            if not paused:
                self._time(record)
        if not paused or record.outcome != "ok":
            self._judge(record)

    def count(self, record: Record) -> None:
        """Count the tokens of a line of a batch and what its key pays. Its times say nothing: nobody waits for it."""
        if record.engine:
            self._count_tokens(record)

    def _count_tokens(self, record: Record) -> None:
        prompt = record.engine[0].prompt_tokens
        output = sum(len(timeline.tokens) for timeline in record.engine)
        answer = record.answer_tokens if record.reads else output
        self._tokens["prompt"].inc(prompt)
        self._tokens["reasoning"].inc(output - answer)
        self._tokens["answer"].inc(answer)
        if record.outcome == "ok" and not record.vote:  # of a vote, chains are stopped
            for timeline in record.engine:
                self._count_prediction(timeline)
        key = record.engine[0].client or NO_KEY
        metrics.KEY_REQUESTS.labels(key).inc()
        metrics.KEY_TOKENS.labels(key, "prompt").inc(prompt)
        metrics.KEY_TOKENS.labels(key, "output").inc(output)
        if (cost := self._cost(record.engine[0].client, prompt, output)) is not None:
            metrics.KEY_COST.labels(key).inc(cost)
        if record.outcome in ("disconnected", "failed", "refused"):
            self._wasted["disconnect" if record.outcome == "disconnected" else "error"].inc(output)

    def _count_prediction(self, timeline: Timeline) -> None:
        """Count where a length was beside what was predicted at its start; not of a reply that began elsewhere."""
        if (prospect := timeline.prospect) is not None and not prospect.before and (tokens := len(timeline.tokens)):
            low, high = prospect.start.low, prospect.start.high
            self._predicted["below" if tokens < low else "above" if tokens > high else "inside"].inc()

    def _time(self, record: Record) -> None:
        if record.outcome != "ok":
            return
        self._e2e.observe(record.ended - record.arrived)
        first = record.engine[0]
        if first.first_here and not first.moved:
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
            if not first.moved:
                self._overhead_itl.observe(max(0.0, (sum(gaps) - (first.last_step - first.first_step)) / (count - 1)))
        if first.first_here and not first.moved:
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
