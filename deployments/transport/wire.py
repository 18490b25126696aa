"""vLLM's messages between a frontend and an engine core (0.32.0), as far as an LLM replica between the two reads them.

With these types a replica receives requests and passes on outputs without vLLM, whose import takes 8 s and half a gigabyte. Fields
that the replica does not read pass through unchanged: a field of type `Any` is decoded into plain lists, maps and
`msgspec.msgpack.Ext`, and encoded again in the same way. Fields are identified by their position:
`tests/unit/deployments/transport/test_wire.py` compares them with vLLM's.
"""

from typing import Any

import msgspec

STOP, LENGTH, ABORT = 0, 1, 2
"""Reasons why a request has finished: vLLM's `FinishReason`."""
QUEUED, SCHEDULED = 1, 2
"""Events of a request: vLLM's `EngineCoreEventType`."""
ADD, CANCEL, UTILITY = b"\x00", b"\x01", b"\x03"
"""What a frontend sends, named by the first frame: vLLM's `EngineCoreRequestType`."""
DEAD = b"ENGINE_CORE_DEAD"
"""The only frame of an engine's last message."""


class Request(msgspec.Struct, array_like=True, omit_defaults=True):
    """vLLM's `EngineCoreRequest`: a request to an engine."""

    request_id: str
    prompt_token_ids: list[int] | None
    mm_features: Any
    sampling_params: Any
    pooling_params: Any
    arrival_time: float
    lora_request: Any
    cache_salt: Any
    data_parallel_rank: Any
    prompt_embeds: Any = None
    prompt_is_token_ids: Any = None
    client_index: int = 0
    current_wave: int = 0
    priority: int = 0
    trace_headers: Any = None
    resumable: bool = False
    external_req_id: Any = None
    reasoning_ended: Any = None
    reasoning_parser_kwargs: Any = None
    abort_immediately: bool = False
    session_id: Any = None
    kv_hints: Any = None


class Event(msgspec.Struct):
    """vLLM's `EngineCoreEvent`."""

    type: int
    timestamp: float


class Output(msgspec.Struct, array_like=True, omit_defaults=True):
    """vLLM's `EngineCoreOutput`: the output of a step for one request."""

    request_id: str
    new_token_ids: list[int]
    new_logprobs: Any = None
    new_prompt_logprobs_tensors: Any = None
    pooling_output: Any = None
    finish_reason: int | None = None
    stop_reason: Any = None
    events: list[Event] | None = None
    kv_transfer_params: Any = None
    ec_transfer_params: Any = None
    trace_headers: Any = None
    prefill_stats: Any = None
    routed_experts: Any = None
    num_nans_in_logits: int = 0
    mm_cache_miss_hashes: Any = None
    new_sampling_mask: Any = None
    spec_decode_metrics: Any = None
    prompt_token_id_logprobs: Any = None


class Step(msgspec.Struct, array_like=True, omit_defaults=True):
    """vLLM's `EngineCoreOutputs`: all outputs of a step. Its statistics are vLLM's `SchedulerStats` as a map."""

    engine_index: int = 0
    outputs: list[Output] = []
    scheduler_stats: dict[str, Any] | None = None
    timestamp: float = 0.0
    utility_output: Any = None
    finished_requests: Any = None
    wave_complete: Any = None
    start_wave: Any = None
    weight_version: Any = None


def counts(stats: dict[str, Any]) -> bool:
    """Return whether a step's statistics have anything for counters, rather than only for gauges."""
    cache = stats["prefix_cache_stats"]
    return bool(
        cache["requests"]
        or cache["preempted_requests"]
        or stats["connector_prefix_cache_stats"]
        or stats["kv_cache_eviction_events"]
        or stats["spec_decoding_stats"]
        or stats["kv_connector_stats"]
        or stats["ec_connector_stats"]
        or stats["perf_stats"]
    )
