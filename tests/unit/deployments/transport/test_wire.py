"""Our part of vLLM's messages beside vLLM's own."""

import time
from typing import Any

import msgspec
import numpy as np
import pytest
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1 import engine
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.metrics.stats import PrefixCacheStats, SchedulerStats
from vllm.v1.outputs import LogprobsLists
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from deployments.transport import wire

OURS_AND_THEIRS = [
    (wire.Request, engine.EngineCoreRequest),
    (wire.Event, engine.EngineCoreEvent),
    (wire.Output, engine.EngineCoreOutput),
    (wire.Step, engine.EngineCoreOutputs),
]


@pytest.mark.parametrize(("ours", "theirs"), OURS_AND_THEIRS)
def test_fields_are_vllms(ours: type[msgspec.Struct], theirs: type[msgspec.Struct]) -> None:
    assert ours.__struct_fields__ == theirs.__struct_fields__
    assert ours.__struct_config__.array_like == theirs.__struct_config__.array_like
    assert ours.__struct_config__.omit_defaults == theirs.__struct_config__.omit_defaults


def test_numbers_and_words_are_vllms() -> None:
    reasons, events, kinds = engine.FinishReason, engine.EngineCoreEventType, engine.EngineCoreRequestType
    assert (wire.STOP, wire.LENGTH, wire.ABORT) == (reasons.STOP, reasons.LENGTH, reasons.ABORT)
    assert (wire.QUEUED, wire.SCHEDULED) == (events.QUEUED, events.SCHEDULED)
    assert (kinds.ADD.value, kinds.ABORT.value, kinds.UTILITY.value) == (wire.ADD, wire.CANCEL, wire.UTILITY)
    assert wire.DEAD == EngineCoreProc.ENGINE_CORE_DEAD


def frames(message: Any) -> list[bytes]:
    return [bytes(part) for part in MsgpackEncoder().encode(message)]


def test_a_request_passes_as_it_was_but_for_its_priority() -> None:
    asked = SamplingParams(max_tokens=7, stop=["x"], logit_bias={3: 1.5}, structured_outputs=StructuredOutputsParams(regex="a+"))
    asked.extra_args = {"satori": {"limits": [1, None, 2.5]}}
    sent = engine.EngineCoreRequest("r", [1, 2], None, asked, None, 3.25, None, "salt", None, external_req_id="outside")
    main, *rest = frames(sent)
    request = msgspec.msgpack.decode(main, type=wire.Request)
    request.priority = 9
    got = MsgpackDecoder(engine.EngineCoreRequest).decode([msgspec.msgpack.encode(request), *rest])
    assert got.priority == 9
    got.priority = 0
    assert got == sent


def test_a_step_passes_as_it_was() -> None:
    wide = np.arange(400, dtype=np.float32).reshape(2, 200)
    logprobs = LogprobsLists(np.arange(4, dtype=np.int32).reshape(2, 2), wide, np.array([1, 2], dtype=np.int32))
    event = engine.EngineCoreEvent.new_event(engine.EngineCoreEventType.QUEUED)
    outputs = [
        engine.EngineCoreOutput("a", [5, 6], new_logprobs=logprobs, events=[event]),
        engine.EngineCoreOutput("b", [7], finish_reason=engine.FinishReason.STOP, stop_reason="x"),
    ]
    stats = SchedulerStats(num_running_reqs=2, kv_cache_usage=0.5, prefix_cache_stats=PrefixCacheStats(requests=1, queries=3))
    sent = engine.EngineCoreOutputs(outputs=outputs, scheduler_stats=stats, finished_requests={"b"}, timestamp=time.monotonic())
    main, *rest = frames(sent)
    assert rest, "the larger array has a frame of its own"
    step = msgspec.msgpack.decode(main, type=wire.Step)
    assert [output.finish_reason for output in step.outputs] == [None, wire.STOP]
    assert step.scheduler_stats is not None
    assert step.scheduler_stats["num_running_reqs"] == 2
    got = MsgpackDecoder(engine.EngineCoreOutputs).decode([msgspec.msgpack.encode(step), *rest])
    assert (got.scheduler_stats, got.finished_requests, got.timestamp) == (stats, {"b"}, sent.timestamp)
    assert (got.outputs[1], got.outputs[0].events) == (outputs[1], [event])
    assert got.outputs[0].new_logprobs is not None
    assert all(np.array_equal(there, here) for there, here in zip(got.outputs[0].new_logprobs[:3], logprobs[:3], strict=True))


def test_what_has_nothing_for_counters_need_not_be_sent() -> None:
    assert not wire.counts(msgspec.to_builtins(SchedulerStats(num_running_reqs=9, kv_cache_usage=1)))
    assert wire.counts(msgspec.to_builtins(SchedulerStats(prefix_cache_stats=PrefixCacheStats(requests=1))))
