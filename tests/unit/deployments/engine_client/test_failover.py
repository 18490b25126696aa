"""What a moved request asks of its new replica, and which errors tell that it has lost its old one."""

import asyncio

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve.exceptions import BackPressureError, RequestCancelledError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.outputs import LogprobsLists

from deployments.engine_client import failover
from deployments.engine_client.failover import STATELESS, goes_on_from_prompt, killed_two, lost_replica, may_have_died, next_attempt
from deployments.engine_client.request import OpenRequest
from deployments.errors import EngineLostError, EngineUnavailableError, PoisonError


def opened(tokens: list[int], **params: object) -> OpenRequest:
    """Return a request for which these tokens were delivered."""
    asked = EngineCoreRequest("a", [1, 2], None, SamplingParams(max_tokens=9, **params), None, 0.0, None, None, None)
    made = OpenRequest.open(asked, "alice", 0.0)
    made.tokens += tokens
    return made


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "logit_bias": {3: 1.0}, "allowed_token_ids": [3, 4]},
        {"n": 3, "logprobs": 2, "stop": ["x"], "stop_token_ids": [7], "min_tokens": 2, "repetition_penalty": 1.2},
        {"extra_args": {"coat": {"max_reflections": 1}}},
        {"watermarking": False},
    ],
)
def test_stateless_parameters_go_on_from_the_prompt(params: dict[str, object]) -> None:
    request = opened([3, 4, 5], **params)
    moved = next_attempt(request)
    assert moved.prompt_token_ids == [1, 2, 3, 4, 5]
    assert (moved.sampling_params.max_tokens, moved.sampling_params.min_tokens) == (6, 0)
    assert (moved.request_id, request.attempt.repeated) == ("a#1", 0)


@pytest.mark.parametrize(
    "params",
    [
        {"seed": 1},
        {"presence_penalty": 0.1},
        {"frequency_penalty": 0.1},
        {"bad_words": ["x"]},
        {"structured_outputs": StructuredOutputsParams(regex="a+")},
        {"thinking_token_budget": 5},
        {"watermarking": True},
        {"extra_args": {"somebody's": 1}},
    ],
)
def test_other_parameters_do_it_all_again(params: dict[str, object]) -> None:
    request = opened([3, 4, 5], **params)
    moved = next_attempt(request)
    assert moved.prompt_token_ids == [1, 2]
    assert moved.sampling_params.max_tokens == 9
    assert moved.sampling_params.extra_args["satori_repeat"] == {"tokens": [3, 4, 5]}
    assert request.attempt.repeated == 3


def test_a_seeded_request_goes_on_from_the_prompt_where_its_noise_depends_on_the_position() -> None:
    request = opened([3, 4, 5], seed=1, temperature=1.0)
    moved = next_attempt(request, seeded_by_position=True)
    assert (moved.prompt_token_ids, moved.sampling_params.seed, request.attempt.repeated) == ([1, 2, 3, 4, 5], 1, 0)
    penalized = opened([3, 4, 5], seed=1, presence_penalty=0.1)
    assert next_attempt(penalized, seeded_by_position=True).prompt_token_ids == [1, 2]


def test_every_parameter_is_known_to_be_one_or_the_other() -> None:
    """A parameter that a new vLLM adds must be looked at; until then a request that sets it does it all again."""
    assert goes_on_from_prompt(opened([]).request)
    stateful = {"presence_penalty", "frequency_penalty", "seed", "bad_words", "_bad_words_token_ids", "structured_outputs"}
    stateful |= {"thinking_token_budget", "repetition_detection", "watermarking", "_watermarking_skipped", "trace_decode_token_ids"}
    unused = {"prompt_logprob_token_ids", "prompt_logprob_start", "routed_experts_prompt_start"}
    assert set(SamplingParams.__struct_fields__) == STATELESS | stateful | unused


def test_the_limits_of_a_chain_go_on_and_prompt_logprobs_do_not_come_twice() -> None:
    limits = {"max_reflections": 1}
    request = opened([3], extra_args={"coat": limits}, prompt_logprobs=1)
    moved = next_attempt(request)
    assert moved.sampling_params.extra_args == {"coat": {"max_reflections": 1, "before": [3]}}
    assert moved.sampling_params.prompt_logprobs is None
    assert request.request.sampling_params.extra_args == {"coat": limits}
    assert request.request.sampling_params.prompt_logprobs == 1


def test_a_second_move_counts_from_the_start() -> None:
    request = opened([3])
    next_attempt(request)
    assert request.accept(EngineCoreOutput("a#1", [4]))
    moved = next_attempt(request)
    assert (moved.request_id, moved.prompt_token_ids, moved.sampling_params.max_tokens) == ("a#2", [1, 2, 3, 4], 7)


def test_repeated_tokens_are_delivered_once() -> None:
    request = opened([3, 4], seed=1)
    next_attempt(request)
    new = [request.accept(EngineCoreOutput("a#1", [token])) for token in (3, 4, 5)]
    assert new == [False, False, True]
    assert request.tokens == [3, 4, 5]


def test_an_output_of_repeated_and_new_tokens_delivers_the_new_ones() -> None:
    """Speculation gives several tokens in a step."""
    request = opened([3, 4, 5], seed=1, logprobs=0)
    next_attempt(request)
    rows = LogprobsLists(np.array([[4], [5], [6], [7]]), np.array([[-0.4], [-0.5], [-0.6], [-0.7]]), np.array([1, 2, 3, 4]))
    output = EngineCoreOutput("a#1", [4, 5, 6, 7], new_logprobs=rows, finish_reason=FinishReason.LENGTH)
    assert [request.accept(EngineCoreOutput("a#1", [3])), request.accept(output)] == [False, True]
    assert (output.new_token_ids, request.tokens, request.attempt.repeated) == ([6, 7], [3, 4, 5, 6, 7], 0)
    assert [array.tolist() for array in output.new_logprobs[:3]] == [[[6], [7]], [[-0.6], [-0.7]], [3, 4]]


def test_a_first_token_proves_a_request_innocent() -> None:
    request = opened([])
    request.deaths = [1.0]
    request.accept(EngineCoreOutput("a", [4]))
    assert request.deaths == []


@pytest.mark.parametrize(
    ("deaths", "refused"),
    [([], False), ([5], False), ([5, 5.5], False), ([5, 7], True), ([5, 5.5, 5.6], True), ([5, 5.5, 9], True)],
)
def test_two_replicas_that_die_together_count_as_one(deaths: list[float], refused: bool) -> None:
    assert failover.COINCIDENCE_S == 1.0
    assert killed_two(deaths) == refused


@pytest.mark.parametrize(
    ("error", "lost", "died"),
    [
        (ActorDiedError(), True, True),
        (ActorUnavailableError("away", b"x" * 16), True, True),
        (EngineLostError("the engine is dead"), True, True),
        (EngineUnavailableError("the engine stops"), True, False),
        (RequestCancelledError("a"), True, False),
        (BackPressureError(1, 1), True, True),
        (asyncio.CancelledError(), True, False),
        (RayTaskError("generate", "a traceback", ValueError("of the request")), False, None),
        (ValueError("of the request"), False, None),
        (PoisonError("2 replicas died with this request"), False, None),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_which_errors_tell_of_a_lost_replica(error: BaseException, lost: bool, died: bool | None) -> None:
    """Whether it died is asked only of a replica that is lost."""
    assert lost_replica(error) == lost
    assert died is None or may_have_died(error) == died


async def test_a_cancellation_of_our_own_tells_of_no_lost_replica() -> None:
    seen: list[bool] = []

    async def call() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            seen.append(lost_replica(error))
            raise

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert seen == [False]


@pytest.mark.parametrize(
    "output",
    [
        EngineCoreOutput("a#1", [9]),
        EngineCoreOutput("a#1", [3, 9, 5]),
        EngineCoreOutput("a#1", [3], finish_reason=FinishReason.STOP),
    ],
)
def test_a_repetition_that_differs_is_refused(output: EngineCoreOutput) -> None:
    request = opened([3, 4], seed=1)
    next_attempt(request)
    with pytest.raises(ValueError, match="differently"):
        request.accept(output)
