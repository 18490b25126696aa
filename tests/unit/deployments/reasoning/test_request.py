"""The extension `coat` of chats and Responses: what it may say, and what reaches the engine."""

import pytest
from pydantic import ValidationError
from vllm.sampling_params import RequestOutputKind

from deployments.reasoning.limits import ARGUMENT
from deployments.reasoning.request import CoatChatRequest, CoatResponsesRequest


def request(**more):
    return CoatChatRequest(messages=[{"role": "user", "content": "What is 47 × 6 - 100?"}], **more)


@pytest.mark.parametrize(
    ("coat", "words"),
    [
        ({"max_reflections": -1}, ["max_reflections", "greater than or equal to 0"]),
        ({"reflections": 1}, ["reflections", "not permitted"]),
        ({"min_reflections": 3, "max_reflections": 1}, ["min_reflections (3)", "max_reflections (1)"]),
        ({"vote": {"samples": 1}}, ["samples", "greater than or equal to 2"]),
        ({"vote": {"temperature": 0}}, ["temperature", "greater than 0"]),
    ],
)
def test_bad_options_are_named(coat, words):
    with pytest.raises(ValidationError) as caught:
        request(coat=coat)
    assert all(word in str(caught.value) for word in words)


def test_a_vote_has_one_choice():
    with pytest.raises(ValueError, match="n is 2"):
        request(n=2, coat={"vote": {}})


@pytest.mark.parametrize(
    "options",
    [
        {"stream": False},
        {"stream": True, "n": 2},
        {"stream": True, "coat": {"eta": True, "vote": {}}},
        {"stream": True, "coat": {"eta": True, "parse": False}},
    ],
)
def test_how_long_a_reply_takes_is_told_in_a_stream_of_one_chain(options):
    with pytest.raises(ValidationError, match="eta is told"):
        request(**{"coat": {"eta": True}} | options)
    assert request(stream=True, coat={"eta": True}).tells_eta
    assert not request(stream=True, coat={}).tells_eta


def test_limits_reach_the_engine():
    asked = request(coat={"max_explorations": 0, "min_reflections": 2})
    asked._tokens = {"reflect": 4}
    params = asked.to_sampling_params(100, {})
    assert params.extra_args == {ARGUMENT: {"reflect": 4, "max_explorations": 0, "min_reflections": 2}}
    assert request(coat={"parse": True}).to_sampling_params(100, {}).extra_args is None


def test_a_vote_asks_for_its_samples():
    asked = {"coat": {"vote": {"samples": 5, "temperature": 1.5}}, "temperature": 0}
    for made in (request(**asked), CoatResponsesRequest(input="What is 47 × 6 - 100?", **asked)):
        params = made.to_sampling_params(100, {})
        assert (params.n, params.temperature, params.output_kind) == (5, 1.5, RequestOutputKind.DELTA)
