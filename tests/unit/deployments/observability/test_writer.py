"""From the records of ended requests to metrics."""

from typing import Any

import pytest

from deployments.observability import metrics, writer
from deployments.observability.pauses import Pauses
from deployments.observability.record import Record, Timeline, Visit
from deployments.observability.writer import TOGETHER_S, Writer
from deployments.routing.lengths import Asked, Lengths
from deployments.routing.prospect import Prospect
from deployments.settings import SloSettings
from tests.support.samples import Grown, value

metrics.keep(metrics.INGRESS)

ENGINE_TIMES = ("satori_queue_seconds", "satori_overhead_ttft_seconds", "satori_overhead_itl_seconds")


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """A model of the test's own, whose series nobody else counts in."""
    return str(request.node.name)


def timeline(tokens: int = 3, client: str = "", **times: Any) -> Timeline:
    """Return a request that came at 100 s, was queued for 0.5 s, read for 1 s and got a token a second."""
    engine = {"first_here": 102.0, "queue_s": 0.5, "prefill_s": 1.0, "first_step": 7000.0, "last_step": 7000.0 + tokens - 1}
    return Timeline("a", client, 4, 100.25, range(tokens), [Visit(100.25, 104.0, 0)], **engine | times)


def streamed(*engine: Timeline, **fields: Any) -> Record:
    """Return a stream of three tokens, whole and well."""
    known: dict[str, Any] = {"sent": [102.25, 103.25, 104.5], "status": 200, "streams": True, "complete": True, "ended": 105.0}
    return Record(100.0, list(engine or (timeline(),)), **known | fields)


def write(model: str, *records: Record, ttft_s: float = 10, tpot_s: float = 10) -> Grown:
    """Write records; return what has grown by them."""
    written, grown = Writer(model, SloSettings(ttft_s=ttft_s, tpot_s=tpot_s)), Grown()
    for record in records:
        written.write(record)
    return grown


def test_a_line_of_a_batch_counts_with_its_tokens_and_its_key_alone(model: str) -> None:
    priced, grown = (
        Writer(model, SloSettings(), lambda key, prompt, output: prompt + output / 10 if key == model else None),
        Grown(),
    )
    priced.count(Record(100.0, [timeline(client=model)], status=200, complete=True, ended=105.0))
    priced.count(Record(100.0, status=429, complete=True, ended=101.0))
    assert grown("satori_tokens_total", model=model, kind="prompt") == 4
    assert grown("satori_tokens_total", model=model, kind="answer") == 3
    assert grown("satori_key_requests_total", key=model) == 1
    assert grown("satori_key_tokens_total", key=model, kind="output") == 3
    assert grown("satori_key_cost_total", key=model) == pytest.approx(4.3)
    assert grown("satori_e2e_seconds_count", model=model) == 0
    assert grown("satori_requests_total", model=model, outcome="ok") == 0


def test_the_times_of_a_stream(model: str) -> None:
    grown = write(model, streamed(answered=103.25))
    times = {
        "ttft": 2.25,
        "ttfat": 3.25,
        "tpot": (105.0 - 102.25) / 2,
        "e2e": 5.0,
        "itl": 2.25,
        "queue": 1.0,
        "overhead_ttft": 0.75,
        "overhead_itl": (2.25 - 2.0) / 2,
    }
    assert {name: grown(f"satori_{name}_seconds_sum", model=model) for name in times} == pytest.approx(times)
    counts = {name: grown(f"satori_{name}_seconds_count", model=model) for name in times}
    assert counts == {name: 2 if name == "itl" else 1 for name in times}


def test_a_request_that_a_pause_fell_into_is_counted_but_its_times_are_not(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = Pauses(clock=lambda: 104.0)
    monkeypatch.setattr(writer, "PAUSES", pauses)
    pauses.note(60.0, 0.0)
    failed = streamed(error="engine_lost", complete=False)
    grown = write(model, streamed(), failed, ttft_s=0.1)
    assert grown("satori_requests_total", model=model, outcome="ok") == 1
    assert grown("satori_tokens_total", model=model, kind="answer") == 6
    assert grown("satori_e2e_seconds_count", model=model) == grown("satori_ttft_seconds_count", model=model) == 0
    assert [grown("satori_slo_requests_total", model=model, met=met) for met in ("yes", "no")] == [0, 1], "a failure is one"


def test_what_goes_out_together_is_one_token(model: str) -> None:
    grown = write(model, streamed(sent=[102.0, 102.0 + TOGETHER_S / 2, 103.0, 103.0]))
    assert grown("satori_itl_seconds_count", model=model) == 1
    assert grown("satori_itl_seconds_sum", model=model) == pytest.approx(1.0, abs=2 * TOGETHER_S)


def test_a_whole_reply_has_no_times_of_tokens(model: str) -> None:
    grown = write(model, streamed(sent=[], streams=False))
    assert [grown(f"satori_{name}_seconds_count", model=model) for name in ("e2e", "queue", "ttft", "itl", "tpot")] == [
        1,
        1,
        0,
        0,
        0,
    ]


def test_a_vote_has_no_times_of_tokens(model: str) -> None:
    grown = write(model, streamed(timeline(), timeline(), vote=True))
    assert [grown(f"satori_{name}_seconds_count", model=model) for name in ("e2e", "ttft", "itl", "tpot")] == [1, 0, 0, 0]


def test_several_replies_in_a_stream_have_no_gaps(model: str) -> None:
    grown = write(model, streamed(timeline(), timeline()))
    assert [grown(f"satori_{name}_seconds_count", model=model) for name in ("ttft", "itl", "tpot")] == [1, 0, 0]


def test_engine_times_of_a_moved_request_are_not_comparable(model: str) -> None:
    moved = timeline()
    moved.visits.append(Visit(102.0, 104.0, 1))
    grown = write(model, streamed(moved))
    assert [grown(f"{name}_count", model=model) for name in ENGINE_TIMES] == [0, 0, 0]
    assert [grown(f"satori_{name}_seconds_count", model=model) for name in ("ttft", "itl", "tpot")] == [1, 2, 1]


def test_tokens_count_by_kind_and_by_key(model: str) -> None:
    grown = write(model, streamed(timeline(3, "carol"), timeline(5, "carol"), reads=True, answer_tokens=2), streamed(timeline(7)))
    assert [grown("satori_tokens_total", model=model, kind=kind) for kind in ("prompt", "reasoning", "answer")] == [8, 6, 2 + 7]
    assert [grown("satori_key_requests_total", key=key) for key in ("carol", "(none)")] == [1, 1]
    assert [grown("satori_key_tokens_total", key="carol", kind=kind) for kind in ("prompt", "output")] == [4, 8]


@pytest.mark.parametrize(
    ("fields", "outcome", "reason"),
    [
        ({"complete": False}, "disconnected", "disconnect"),
        ({"error": "engine_lost"}, "failed", "error"),
        ({"status": 503, "error": "engine_unavailable"}, "refused", "error"),
    ],
)
def test_tokens_that_nobody_got_are_wasted(model: str, fields: dict[str, Any], outcome: str, reason: str) -> None:
    grown = write(model, streamed(**fields))
    assert grown("satori_requests_total", model=model, outcome=outcome) == 1
    wasted = {name: grown("satori_wasted_tokens_total", model=model, reason=name) for name in ("disconnect", "error")}
    assert wasted == {"disconnect": 0, "error": 0} | {reason: 3}
    assert grown("satori_e2e_seconds_count", model=model) == 0


@pytest.mark.parametrize(
    ("status", "error", "code", "met", "missed"),
    [
        (401, "invalid_api_key", "invalid_api_key", 0, 0),
        (404, "what a client wrote", "404", 0, 0),
        (429, "rate_limit_exceeded", "rate_limit_exceeded", 0, 0),
        (429, "queue_full", "queue_full", 0, 1),
        (429, "overloaded", "overloaded", 0, 1),
        (503, "", "503", 0, 1),
        (500, "internal_error", "internal_error", 0, 1),
    ],
)
def test_refusals_count_by_code_and_some_against_the_slo(
    model: str, status: int, error: str, code: str, met: int, missed: int
) -> None:
    grown = write(model, Record(100.0, status=status, error=error, complete=True, ended=100.1))
    assert grown("satori_refusals_total", code=code) == 1
    assert [grown("satori_slo_requests_total", model=model, met=how) for how in ("yes", "no")] == [met, missed]


@pytest.mark.parametrize(
    ("ttft_s", "tpot_s", "met"), [(2.25, 2.75 / 2, "yes"), (2.2, 10, "no"), (10, 1.3, "no")], ids=["good", "late", "slow"]
)
def test_a_request_is_good_within_both_limits(model: str, ttft_s: float, tpot_s: float, met: str) -> None:
    grown = write(model, streamed(), ttft_s=ttft_s, tpot_s=tpot_s)
    assert [grown("satori_slo_requests_total", model=model, met=how) for how in ("yes", "no")] == [met == "yes", met == "no"]
    assert [value("satori_slo_limit_seconds", objective=name) for name in ("ttft", "tpot")] == [ttft_s, tpot_s]


def test_a_client_that_leaves_is_neither_good_nor_bad(model: str) -> None:
    grown = write(model, streamed(complete=False))
    assert [grown("satori_slo_requests_total", model=model, met=how) for how in ("yes", "no")] == [0, 0]


def test_what_requests_cost_is_summed_by_key(model: str) -> None:
    grown = Grown()
    priced = Writer(model, SloSettings(), lambda key, prompt, output: prompt + output / 10 if key == model else None)
    for client in (model, "", model):
        priced.write(streamed(timeline(client=client)))
    assert grown("satori_key_cost_total", key=model) == pytest.approx(2 * (4 + 0.3))
    assert grown("satori_key_tokens_total", key=model, kind="prompt") == 8


def test_lengths_are_counted_beside_what_was_predicted(model: str) -> None:
    lengths = Lengths()
    for tokens in range(100, 200):
        lengths.observe(Asked(4), tokens)

    def reply(tokens: int, before: int = 0) -> Timeline:
        written = [1] * before
        told = timeline(prospect=Prospect(lengths, Asked(4), written))
        written += [1] * (tokens - before)
        told.tokens = written
        return told

    elsewhere = reply(500, before=1)
    stopped = streamed(reply(5), vote=True)
    left = streamed(reply(5), complete=False)
    grown = write(model, *(streamed(reply(tokens)) for tokens in (50, 120, 150, 300)), streamed(elsewhere), stopped, left)
    counts = {where: grown("satori_lengths_predicted_total", model=model, length=where) for where in ("below", "inside", "above")}
    assert counts == {"below": 1, "inside": 2, "above": 1}
