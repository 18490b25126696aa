"""The backend for structured output: what can match nothing is refused, and tool parsers keep their structural tags."""

import json
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.tokenizers import get_tokenizer
from vllm.v1.structured_output import StructuredOutputManager, backend_guidance
from vllm.v1.structured_output.backend_types import StructuredOutputOptions

from deployments.engine import guidance
from tests.support.paths import ROOT

LEGACY_TAG = {"structures": [{"begin": "<a>", "schema": {"type": "integer"}, "end": "</a>"}], "triggers": ["<a"]}
TAG = {
    "type": "structural_tag",
    "format": {
        "type": "tag",
        "begin": "<call>",
        "content": {"type": "json_schema", "json_schema": {"type": "integer"}},
        "end": "</call>",
    },
}


TOKENIZER: Any = get_tokenizer(str(ROOT / "models" / "nano"))


@pytest.fixture(autouse=True)
def _installed() -> None:
    guidance.install()


def check(**asked: Any) -> None:
    backend_guidance.validate_guidance_grammar(SamplingParams(structured_outputs=StructuredOutputsParams(**asked)))


@pytest.mark.parametrize(
    "asked",
    [
        {"regex": r"\d+"},
        {"regex": ""},
        {"choice": ["yes", "no"]},
        {"grammar": 'root ::= "a" | "b" root'},
        {"grammar": 'root ::= root "a" | "a"'},
        {"grammar": 'start: "a" | "b"'},
        {"json": {"type": "integer"}},
        {"json_object": True},
        {"structural_tag": json.dumps(TAG)},
        {"structural_tag": json.dumps(LEGACY_TAG)},
    ],
)
def test_what_can_be_followed_passes(asked: dict[str, Any]) -> None:
    check(**asked)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"regex": r"[^\s\S]"}, "no text can match"),
        ({"regex": "a(?=b)"}, "look-around"),
        ({"grammar": "root ::= root"}, "can never end"),
        ({"grammar": "root ::= other"}, "other"),
        ({"grammar": "start: start"}, "can never end"),
        ({"grammar": "root ::= ("}, "Grammar error: it cannot be read"),
        ({"json": {"$ref": "#"}}, "no text can match"),
    ],
)
def test_what_cannot_be_followed_is_refused(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(VLLMValidationError, match=words):
        check(**asked)


def backend() -> Any:
    config = SimpleNamespace(
        structured_outputs_config=SimpleNamespace(disable_any_whitespace=True, disable_additional_properties=False),
        model_config=SimpleNamespace(hf_config=SimpleNamespace(model_type="qwen2")),
        speculative_config=None,
    )
    return backend_guidance.GuidanceBackend(config, tokenizer=get_tokenizer(str(ROOT / "models/nano")), vocab_size=1024)  # type: ignore[arg-type]


def test_a_grammar_that_cannot_be_compiled_is_an_error_in_the_engine() -> None:
    with pytest.raises(ValueError, match="lookarounds"):
        backend().compile_grammar(StructuredOutputOptions.REGEX, r"a\bb")


def test_a_grammar_that_cannot_be_compiled_leaves_no_traceback_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    manager = StructuredOutputManager.__new__(StructuredOutputManager)
    manager.backend = backend()
    asked = SimpleNamespace(structured_output_key=(StructuredOutputOptions.REGEX, r"a\bb"))
    request: Any = SimpleNamespace(request_id="id-5", structured_output_request=asked, sampling_params=None)
    caplog.set_level(logging.WARNING, backend_guidance.__name__)  # other tests may have vLLM log less
    with pytest.raises(ValueError, match="lookarounds"):
        manager._create_grammar(request)
    matcher, failed = [caplog.handler.format(record) for record in caplog.records]
    assert "\n" not in matcher + failed
    assert "id-5" in failed
    assert "lookarounds" in failed


@pytest.mark.filterwarnings("ignore:max_rollback_tokens is deprecated")  # vLLM's own backend sets it
def test_a_structural_tag_of_a_tool_parser_is_followed() -> None:
    made = backend()
    grammar = made.compile_grammar(StructuredOutputOptions.STRUCTURAL_TAG, json.dumps(TAG))
    bitmask = made.allocate_token_bitmask(1)
    grammar.fill_bitmask(bitmask, 0)
    tokens = made.tokenizer.encode("<call>12</call>", add_special_tokens=False)
    assert (int(bitmask[0, tokens[0] // 32]) >> tokens[0] % 32) & 1
    assert grammar.accept_tokens("id", tokens)


@pytest.mark.parametrize(
    ("kind", "spec", "text"),
    [
        (StructuredOutputOptions.JSON, '{"enum": ["<|im_end|>"]}', '"<|im_end|>"'),
        (
            StructuredOutputOptions.JSON,
            '{"type":"object","properties":{"<|reflect|>":{"const":1}},"required":["<|reflect|>"]}',
            '{"<|reflect|>":1}',
        ),
        (StructuredOutputOptions.REGEX, r"a<\|continue\|>b", "a<|continue|>b"),
        (StructuredOutputOptions.GRAMMAR, 'start: "<|explore|>" | "b"', "<|explore|>"),
    ],
)
def test_texts_that_spell_special_tokens_are_written_as_text(kind: StructuredOutputOptions, spec: str, text: str) -> None:
    config = SimpleNamespace(
        structured_outputs_config=SimpleNamespace(disable_any_whitespace=True, disable_additional_properties=False)
    )
    backend = backend_guidance.GuidanceBackend(config, tokenizer=TOKENIZER, vocab_size=len(TOKENIZER))
    matcher = backend.compile_grammar(kind, spec).ll_matcher
    written: list[int] = []
    while not matcher.is_stopped():
        allowed = [token for token, bias in enumerate(matcher.compute_logit_bias()) if bias]
        ordinary = [token for token in allowed if token not in TOKENIZER.all_special_ids]
        assert ordinary, f"only special tokens after {TOKENIZER.decode(written)!r}"
        fits = [token for token in ordinary if text.startswith(TOKENIZER.decode([*written, token]))]
        written.append(max(fits, key=lambda token: len(TOKENIZER.decode([token]))))
        assert matcher.consume_token(written[-1])
    assert TOKENIZER.decode(written) == text
