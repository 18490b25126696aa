"""An open request: its fields, its group, its times, and the two ways to find it."""

from dataclasses import fields
from typing import Any

import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreEvent, EngineCoreEventType, EngineCoreOutput, EngineCoreRequest

from deployments.engine_client.failover import next_attempt
from deployments.engine_client.request import OpenRequest, OpenRequests, asked_of
from deployments.observability.record import Record
from deployments.reasoning.effort import EFFORTS, apply
from deployments.routing.lengths import LONGEST, Asked

QUEUED, SCHEDULED = EngineCoreEventType.QUEUED, EngineCoreEventType.SCHEDULED


def opened(request_id: str = "a", record: Record | None = None) -> OpenRequest:
    asked = EngineCoreRequest(request_id, [1, 2], None, SamplingParams(), None, 0.0, None, None, None)
    return OpenRequest.open(asked, "alice", 5.0, record)


def test_a_request_has_at_most_ten_fields() -> None:
    """It had 21 once. What is measured belongs in its timeline, what is of one replica in its attempt."""
    assert len(fields(OpenRequest)) <= 10


def test_its_timeline_is_in_the_record_and_sees_its_tokens() -> None:
    record = Record(arrived=4.0)
    request = opened(record=record)
    assert request.record is record
    assert record.engine == [request.timeline]
    request.accept(EngineCoreOutput("a", [7, 8]))
    timeline = request.timeline
    assert (timeline.request_id, timeline.client, timeline.prompt_tokens, timeline.began) == ("a", "alice", 2, 5.0)
    assert (timeline.tokens, timeline.moved) == ([7, 8], False)


@pytest.mark.parametrize(
    ("request_id", "group", "first"),
    [("a", "a", True), ("0_a", "a", True), ("1_a", "a", False), ("10_a", "a", False), ("x_1_a", "x_1_a", True), ("_a", "_a", True)],
)
def test_samples_of_a_request_are_a_group(request_id: str, group: str, first: bool) -> None:
    request = opened(request_id)
    assert (request.group, request.first_sample) == (group, first)


def test_the_first_token_has_its_times_from_the_engine() -> None:
    request = opened()
    events = [EngineCoreEvent(QUEUED, 100.0), EngineCoreEvent(SCHEDULED, 101.0), EngineCoreEvent(SCHEDULED, 101.5)]
    request.started(events, step_s=103.0, now=9.0)
    timeline = request.timeline
    assert (timeline.queue_s, timeline.prefill_s) == (1.0, 2.0), "by the first time that it was scheduled"
    assert (timeline.first_step, timeline.first_here) == (103.0, 9.0)


def test_a_first_token_without_events_took_no_time_that_is_known() -> None:
    request = opened()
    request.started(None, step_s=103.0, now=9.0)
    assert (request.timeline.queue_s, request.timeline.prefill_s) == (0.0, 0.0)


def test_times_go_on_on_the_first_engines_clock() -> None:
    request = opened()
    assert [request.on_first_clock(100.0, 10.0), request.on_first_clock(101.0, 11.0)] == [100.0, 101.0]
    next_attempt(request)
    assert request.on_first_clock(7000.0, 13.0) == 103.0
    assert request.on_first_clock(7000.5, 14.0) == 103.5
    assert request.timeline.last_step == 103.5


def test_a_request_without_a_token_takes_over_the_next_engines_clock() -> None:
    request = opened()
    next_attempt(request)
    assert request.on_first_clock(7000.0, 13.0) == 7000.0


def test_requests_are_found_by_their_id_and_that_of_their_attempt() -> None:
    requests, one, two = OpenRequests(), opened("0_a"), opened("1_a")
    requests.add(one)
    requests.add(two)
    assert (list(requests.by_id), list(requests.by_wire_id)) == (["0_a", "1_a"], ["0_a", "1_a"])
    assert requests.siblings(one) == [one, two]
    assert one in requests
    assert opened("0_a") not in requests, "another one of this id"
    del requests.by_wire_id["0_a"]  # between two attempts
    assert one in requests
    requests.remove(one)
    assert one not in requests
    assert requests.siblings(two) == [two]
    requests.remove(two)
    assert (requests.by_id, requests.by_wire_id) == ({}, {})


def test_what_a_request_asks_for_tells_efforts_and_kinds_apart() -> None:
    def asked(effort: str = "medium", **params: Any) -> Asked:
        sampling = SamplingParams(max_tokens=900, **params)
        apply(sampling, effort, {})
        return asked_of(EngineCoreRequest("a", [1, 2], None, sampling, None, 0.0, None, None, None))

    assert asked() == Asked(2, 900, "0 - -")
    assert asked("low") == Asked(2, 900, "0 1 1", 400)
    assert len({asked(effort) for effort in EFFORTS}) == len(EFFORTS), "each effort is a kind of its own"
    assert asked(ignore_eos=True).min_tokens == 900
    assert asked(min_tokens=5).min_tokens == 5
    assert asked(stop=["x"]).effort == "0 - - stop"
    assert asked_of(opened().request) == Asked(2, 16, "0 - -")
    assert asked_of(EngineCoreRequest("a", None, None, None, None, 0.0, None, None, None)) == Asked(0, LONGEST)
