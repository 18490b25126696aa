"""Bounds on requests: what is refused and how it is named, what passes, and that looking is quick."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.errors import OutOfBoundsError
from deployments.ingress.bounds import DEPTH, RESERVED, check
from deployments.reasoning.limits import ARGUMENT, REPEAT

CHOICES = 128
SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(a*)*"}}}


def refusal(body: Any, **headers: str) -> tuple[str | None, str] | None:
    """Return what of a request is refused, and the error's code."""
    written = body if isinstance(body, bytes) else json.dumps(body).encode()
    told = None
    try:
        check(written, {name.replace("_", "-"): value for name, value in headers.items()}, CHOICES)
    except OutOfBoundsError as error:
        told = error
    if told is None:
        return None
    assert told.status == 400
    assert len(str(told)) < 300, "names what was wrong and does not repeat it"
    return told.param, told.code


@pytest.mark.parametrize(
    "request_",
    [
        {"messages": [{"role": "user", "content": "hé 中 \U0001f600 \x00"}], "n": 128, "stop": ["a"] * 4, "seed": -(2**63)},
        {"messages": [{"role": "user", "content": '[{"' * 50_000}]},
        {"prompt": ["x"] * 1024},
        {"prompt": [[5, 6]] * 512, "n": 2},
        {"prompt": list(range(100_000))},
        {"prompt": "x" * 1_000_000, "request_id": "a-1/b:c", "model": "org/名"},
        {"top_p": 1e300, "logit_bias": {"5": 1}, "vllm_xargs": {"session_id": "x", "other": 1}, "kv_transfer_params": None},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}], "n": None},
        {"response_format": {"type": "json_object"}, "structured_outputs": None, "text": "x", "output_config": 5, "tools": "x"},
        {"n": "128", "messages": [{"role": "assistant", "tool_calls": []}, {"role": ["x"]}, {}], "background": False},
        b'\xef\xbb\xbf{"n": 1}',
        {"n": "many", "messages": 5, "stop": 7, "logit_bias": [], "vllm_xargs": [], "prompt": [None], "bad_words": [5]},
        [1, 2],
        None,
        5,
        "x",
        b"",
        b"{",
        b'{"n": 1, "n": 2, "top_p": 1e999}',
        b"\xef\xbb\xbf{}",
        b'{"a": "\\ud83d\\ude00 \\\\ud800"}',
    ],
)
def test_what_is_within_bounds_or_for_vllm_to_judge_passes(request_: Any) -> None:
    assert refusal(request_) is None


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"n": 129}, "n"),
        ({"n": 10**9}, "n"),
        ({"n": "129"}, "n"),
        ({"n": 129.0}, "n"),
        ({"best_of": " 1_29.0 "}, "best_of"),
        (b'{"n": 1.29e2}', "n"),
        ({"prompt": [[5]] * 100, "n": "11"}, "prompt"),
        ({"repetition_detection": {"max_pattern_size": "1025"}}, "repetition_detection.max_pattern_size"),
        (json.dumps({"n": 1}).encode("utf-16"), None),
        (json.dumps({"n": 1}).encode("utf-32-le"), None),
        ({"stop_sequences": ["x" * 1025]}, "stop_sequences"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
        ({"background": True}, "background"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "bogus", "content": "x"}]}, "messages.1.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "system", "content": None}]}, "messages.0.content"),
        ({"best_of": 10**6}, "best_of"),
        ({"prompt": ["x"] * 1025}, "prompt"),
        ({"prompt": [[5]] * 100, "n": 11}, "prompt"),
        ({"messages": [{}] * 2049}, "messages"),
        ({"input": [{}] * 2049}, "input"),
        ({"tools": [{}] * 129}, "tools"),
        ({"stop": ["x"] * 5000}, "stop"),
        ({"stop": "x" * 1025}, "stop"),
        ({"stop": ["x", "x" * 10**6]}, "stop"),
        ({"bad_words": ["x" * 257]}, "bad_words"),
        ({"bad_words": ["x"] * 129}, "bad_words"),
        ({"logit_bias": {str(i): 1 for i in range(100_000)}}, "logit_bias"),
        ({"allowed_token_ids": [5] * 200_001}, "allowed_token_ids"),
        ({"stop_token_ids": [5] * 1025}, "stop_token_ids"),
        ({"kv_transfer_params": {"prompt_token_ids": [1]}}, "kv_transfer_params"),
        ({"ec_transfer_params": {}}, "ec_transfer_params"),
        ({"vllm_xargs": {"coat": "x"}}, "vllm_xargs.coat"),
        ({"vllm_xargs": {"kv_transfer_params": "x"}}, "vllm_xargs.kv_transfer_params"),
        ({"repetition_detection": {"max_pattern_size": 10**9}}, "repetition_detection.max_pattern_size"),
        ({"request_id": "x" * 10**6}, "request_id"),
        ({"request_id": "a\nb"}, "request_id"),
        ({"request_id": "é"}, "request_id"),
        ({"session_id": "a b"}, "session_id"),
        ({"model": "x" * 10**6}, "model"),
        ({"cache_salt": "x" * 257}, "cache_salt"),
        ({"max_tokens": 10**400}, None),
        ({"top_k": 2**63}, None),
        ({"top_k": -(2**63) - 1}, None),
        (b'{"max_tokens": 1' + b"0" * 5000 + b"}", None),
        (b'{"temperature": NaN}', None),
        (b'{"logit_bias": {"5": -Infinity}}', None),
        (b'{"stop": "\\ud800"}', None),
        (b'{"\\uDFFF": 1}', None),
        (b'{"model": "\xff\xfe"}', None),
        (b"[" * 100_000, None),
        (b'{"a":' * 15_000 + b"1" + b"}" * 15_000, None),
        ({"a": json.loads("[" * DEPTH + "]" * DEPTH)}, None),
        (b"[" + b"[]," * 20_000 + b"1]", None),
    ],
    ids=range(54),
)
@pytest.mark.timeout(20)  # what explodes takes minutes
def test_what_is_out_of_bounds_is_refused_by_name_and_at_once(request_: Any, param: str | None) -> None:
    assert refusal(request_) == (param, "out_of_bounds")


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"structured_outputs": {"regex": "(a*)*"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"json": SCHEMA}}, "structured_outputs.json.pattern"),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, "structured_outputs.json.pattern"),
        ({"structured_outputs": {"choice": ["x"] * 1001}}, "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": "x" * 10**5}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"structural_tag": json.dumps({"a": SCHEMA})}}, "structured_outputs.structural_tag.pattern"),
        ({"structured_outputs": {"whitespace_pattern": "(a*)*"}}, "structured_outputs.whitespace_pattern"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}, "response_format.pattern"),
        ({"text": {"format": {"schema": SCHEMA}}}, "text.format.pattern"),
        ({"output_config": {"format": {"schema": SCHEMA}}}, "output_config.format.pattern"),
        ({"tools": [{"function": {"parameters": SCHEMA}}]}, "tools.pattern"),
    ],
)
def test_grammars_are_bounded_wherever_they_stand(request_: Any, param: str) -> None:
    assert refusal(request_) == (param, "grammar_too_complex")


LAX = {"type": "array", "uniqueItems": True}
CHAT = {"type": "function", "function": {"name": "f", "parameters": LAX}}


@pytest.mark.parametrize(
    ("request_", "refused"),
    [
        ({"tools": [CHAT], "tool_choice": "required"}, ("tools.0.function.parameters.uniqueItems", "schema_not_followed")),
        (
            {"tools": [CHAT], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            ("tools.0.function.parameters.uniqueItems", "schema_not_followed"),
        ),
        (
            {"tools": [{"type": "function", "name": "f", "parameters": LAX}], "tool_choice": {"type": "function", "name": "f"}},
            ("tools.0.parameters.uniqueItems", "schema_not_followed"),
        ),
        (
            {"tools": [{"name": "f", "input_schema": LAX}], "tool_choice": {"type": "any"}},
            ("tools.0.input_schema.uniqueItems", "schema_not_followed"),
        ),
        ({"tools": [CHAT], "tool_choice": "none"}, None),
        ({"tools": [CHAT], "tool_choice": {"type": "auto"}}, None),
        (
            {"tools": [{}], "tool_choice": "required", "response_format": {"type": "json_object"}},
            ("response_format", "out_of_bounds"),
        ),
        ({"tools": [{}], "tool_choice": "required", "response_format": {"type": "text"}}, None),
        (
            {"tools": [{}], "tool_choice": {"type": "any"}, "output_config": {"format": {"type": "json_schema"}}},
            ("output_config.format", "out_of_bounds"),
        ),
        ({"tools": [{}], "tool_choice": "required", "messages": [], "echo": True}, ("echo", "out_of_bounds")),
    ],
)
def test_calls_follow_their_schemas_and_no_other_format(request_: Any, refused: tuple[str, str] | None) -> None:
    assert refusal(request_) == refused


def test_a_reply_has_one_format() -> None:
    assert refusal({"structured_outputs": {"regex": "5"}, "response_format": {"type": "json_object"}}) == (
        "structured_outputs",
        "out_of_bounds",
    )
    assert refusal({"structured_outputs": {"regex": "5"}, "response_format": {"type": "text"}}) is None


def test_headers_have_bounds_too() -> None:
    assert refusal({}, x_request_id="a-1", x_session_id="b", x_vllm_priority="-5") is None
    assert refusal({}, x_request_id="a\x00") == ("x-request-id", "out_of_bounds")
    assert refusal({}, x_request_id="ÿ") == ("x-request-id", "out_of_bounds")
    assert refusal({}, x_session_id="x" * 257) == ("x-session-id", "out_of_bounds")
    for priority in ("1" + "0" * 400, "high", "", "²"):
        assert refusal({}, x_vllm_priority=priority) == ("x-vllm-priority", "out_of_bounds")


def test_the_engines_own_arguments_are_reserved() -> None:
    assert {ARGUMENT, REPEAT} <= RESERVED


KEYS = st.sampled_from(["json", "regex", "coat", "format"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
values = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["json", "regex", "coat", "format"]), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = (
    "n best_of prompt messages stop logit_bias vllm_xargs structured_outputs response_format text tools model request_id"
    " repetition_detection output_config bad_words kv_transfer_params"
).split()


@given(st.dictionaries(st.sampled_from(FIELDS), values, max_size=5))
def test_whatever_a_request_holds_there_is_a_verdict(request_: dict[str, Any]) -> None:
    refusal(request_)
