"""Chunks without vLLM's check: it was there, it is gone, and what is written is the same."""

import pytest
from vllm.entrypoints.generate.base.protocol import DeltaFunctionCall, DeltaMessage, DeltaToolCall
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponseStreamChoice, ChatCompletionStreamResponse
from vllm.entrypoints.openai.completion.protocol import CompletionResponseStreamChoice, CompletionStreamResponse
from vllm.entrypoints.serve.engine.protocol import OpenAIBaseModel, UsageInfo

from deployments.chunks import CHECK, PARTS, make_without_check
from deployments.options import CoatChatRequest


def chat(**delta):
    choice = ChatCompletionResponseStreamChoice(index=0, delta=DeltaMessage(**delta), logprobs=None, finish_reason=None)
    return ChatCompletionStreamResponse(id="a", created=1, choices=[choice], model="nano")


def completion(text):
    choice = CompletionResponseStreamChoice(index=0, text=text)
    return CompletionStreamResponse(id="a", created=1, choices=[choice], model="nano", usage=UsageInfo(completion_tokens=3))


def written():
    chunks = [
        chat(role="assistant", content=""),
        chat(content="42 \u2192 <b>"),
        chat(reasoning="6\u00d77", reasoning_content="6\u00d77", coat={"action": "reflect", "index": 2}),
        chat(tool_calls=[DeltaToolCall(index=0, function=DeltaFunctionCall(name="add", arguments="{}"))]),
        completion("42"),
    ]
    return [chunk.model_dump_json(exclude_unset=True) for chunk in chunks]


def checks(model):
    return CHECK in model.__pydantic_decorators__.model_validators


def test_chunks_are_written_as_before():
    before = written()
    make_without_check()
    assert written() == before
    assert not any(map(checks, PARTS))


def test_requests_are_checked_as_before():
    make_without_check()
    assert checks(OpenAIBaseModel)
    assert checks(CoatChatRequest)


def test_a_chunk_is_still_validated():
    make_without_check()
    with pytest.raises(ValueError, match="reasoning"):
        DeltaMessage(reasoning=42)
