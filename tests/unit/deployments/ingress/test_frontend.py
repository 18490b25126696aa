"""vLLM's frontend with bounds: a full queue is refused with 429, and a wrong request before its stream begins."""

from collections.abc import AsyncIterator
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config import SchedulerConfig
from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM

from deployments.engine.config import TASKS
from deployments.errors import EngineUnavailableError
from deployments.ingress.endpoints import check_responses_early
from deployments.ingress.frontend import BoundedLLM
from deployments.observability import record as record_module
from deployments.observability.record import Record
from deployments.reasoning.formatted import Formats
from deployments.reasoning.reading import Vocabulary


def frontend(unfinished: int, queued_tokens: int, **bounds: int) -> BoundedLLM:
    made = BoundedLLM.__new__(BoundedLLM)
    made.scheduler_config = SchedulerConfig(max_model_len=4096, is_encoder_decoder=False, **bounds)
    made.admission_stats = None
    made.logger_manager = None
    made.get_num_unfinished_requests = lambda: unfinished  # type: ignore[method-assign]
    made.get_num_queued_tokens = lambda: queued_tokens  # type: ignore[method-assign]
    return made


@pytest.mark.parametrize(
    ("unfinished", "queued_tokens", "n", "told"),
    [
        (7, 99, 1, None),
        (7, 99, 2, "engine.max_num_queued_reqs=8"),
        (8, 0, 1, "engine.max_num_queued_reqs=8"),
        (0, 100, 1, "engine.max_num_queued_tokens=100"),
    ],
)
def test_what_is_over_a_bound_is_refused(unfinished: int, queued_tokens: int, n: int, told: str | None) -> None:
    bounded = frontend(unfinished, queued_tokens, max_num_queued_reqs=8, max_num_queued_tokens=100)
    record = Record(0.0)
    token = record_module.current.set(record)
    try:
        if told is None:
            bounded.check_admission(n)
            return
        with pytest.raises(GracefulHTTPError, match=told) as caught:
            bounded.check_admission(n)
        assert caught.value.http_status == HTTPStatus.TOO_MANY_REQUESTS
    finally:
        record_module.current.reset(token)
        assert record.error == ("queue_full" if told else "")


class Checks:
    """Stands for vLLM's input processor: it knows which requests an engine cannot run, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def _validate_model_inputs(self, encoder: Any, decoder: Any) -> None:
        self.asked.append(decoder)
        if not decoder["prompt_token_ids"]:
            raise VLLMValidationError("the prompt is empty", parameter="prompt")

    def _validate_params(self, params: Any, tasks: Any) -> None:
        assert tasks == TASKS
        self.asked.append(params)


def checking() -> tuple[BoundedLLM, Checks]:
    made, checks = BoundedLLM.__new__(BoundedLLM), Checks()
    made.input_processor = checks  # type: ignore[assignment]
    return made, checks


PARAMS = SamplingParams()
GOOD, BAD = ({"type": "token", "prompt_token_ids": ids} for ids in ([5], []))


async def test_a_request_is_checked_before_its_first_token_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[Any] = []

    async def theirs(self: AsyncLLM, prompt: Any, params: Any, *args: Any, **options: Any) -> AsyncIterator[str]:
        passed.append((prompt, params, args, options))
        yield "a token"

    monkeypatch.setattr(AsyncLLM, "generate", theirs)
    engine, checks = checking()
    with pytest.raises(VLLMValidationError, match="the prompt is empty"):
        engine.generate(BAD, PARAMS, "id")
    outputs = engine.generate(GOOD, PARAMS, "id", priority=3)
    assert checks.asked == [BAD, GOOD, PARAMS]
    assert passed == [], "nothing is done before a token is asked for"
    assert [output async for output in outputs] == ["a token"]
    assert passed == [(GOOD, PARAMS, ("id",), {"priority": 3})]


FORMATS = Formats(Vocabulary({}, {}, lambda ids: ""), [7, 8], [7], 0.5)
THINKING = {"reasoning_parser_kwargs": {}, "reasoning_ended": False}


def formatted(**others: Any) -> SamplingParams:
    return SamplingParams(structured_outputs=StructuredOutputsParams(json={}), **others)


async def test_a_thought_comes_before_an_answer_in_a_format(monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[Any] = []
    monkeypatch.setattr(AsyncLLM, "generate", lambda self, prompt, params, *args, **options: passed.append(options))
    engine, _ = checking()
    engine.formats = FORMATS
    thinking, not_told_apart, raw, free = formatted(), formatted(), formatted(), SamplingParams()
    engine.generate(GOOD, thinking, "id", **THINKING)
    engine.generate(GOOD, not_told_apart, "id")
    engine.generate(GOOD, raw, "id", **(THINKING | {"reasoning_ended": True}))
    engine.generate(GOOD, free, "id", **THINKING)
    assert thinking.extra_args == {"satori_thought": {"separator": [7, 8], "special": [7], "copy": 0.5, "is_json": True}}
    assert [params.extra_args for params in (not_told_apart, raw, free)] == [None, None, None]
    assert passed == [
        {"reasoning_parser_kwargs": {"separator": [7, 8]}, "reasoning_ended": False},
        {"reasoning_ended": True},
        {"reasoning_parser_kwargs": {}, "reasoning_ended": True},
        THINKING,
    ]


@pytest.mark.parametrize(
    ("name", "value", "also_unthought"),
    [
        ("min_tokens", 3, True),
        ("bad_words", ["x"], True),
        ("allowed_token_ids", [1, 2], True),
        ("stop", ["}"], False),
        ("stop_token_ids", [3], False),
        ("ignore_eos", True, False),
        ("include_stop_str_in_output", True, False),
    ],
)
def test_what_does_not_go_with_a_format_is_refused_with_both_names(name: str, value: Any, also_unthought: bool) -> None:
    engine, _ = checking()
    engine.formats = FORMATS
    engine.check(GOOD, SamplingParams(**{name: value}), **THINKING)
    with pytest.raises(VLLMValidationError, match=f"{name} cannot be combined with structured output .response_format") as caught:
        engine.check(GOOD, formatted(**{name: value}), **THINKING)
    assert caught.value.parameter == name
    if also_unthought:
        with pytest.raises(VLLMValidationError, match=name):
            engine.check(GOOD, formatted(**{name: value}))
    else:
        engine.check(GOOD, formatted(**{name: value}))


def test_what_is_not_rendered_is_vllms_to_check() -> None:
    engine, checks = checking()
    engine.check("some text", PARAMS)
    assert checks.asked == []


def test_a_response_is_checked_before_its_stream_begins() -> None:
    engine, checks = checking()
    responses = SimpleNamespace(_generate_with_builtin_tools=lambda **given: given)
    check_responses_early(engine, responses)
    with pytest.raises(VLLMValidationError, match="the prompt is empty"):
        responses._generate_with_builtin_tools(engine_input=BAD, sampling_params=PARAMS, request_id="id")
    given = {"engine_input": GOOD, "sampling_params": PARAMS, "request_id": "id"}
    assert responses._generate_with_builtin_tools(**given) == given
    assert checks.asked == [BAD, GOOD, PARAMS]


def test_a_server_of_responses_that_is_not_as_we_know_it_is_told() -> None:
    with pytest.raises(AttributeError, match="_generate_with_builtin_tools"):
        check_responses_early(checking()[0], SimpleNamespace())


def test_a_request_that_has_ended_with_an_error_is_answered_with_it() -> None:
    engine = BoundedLLM.__new__(BoundedLLM)
    put: list[GracefulHTTPError] = []
    states = {"a": SimpleNamespace(queue=SimpleNamespace(put=put.append)), "b": SimpleNamespace(queue=None)}
    engine.output_processor = SimpleNamespace(request_states=states)  # type: ignore[assignment]
    for request_id in ("a", "b", "gone"):
        engine.refuse(request_id, EngineUnavailableError("no LLM replica"))
    [error] = put
    assert (str(error), error.http_status) == ("engine_unavailable: no LLM replica", HTTPStatus.SERVICE_UNAVAILABLE)
