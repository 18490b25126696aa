"""Chunks of a stream, made with less work.

vLLM (0.32.0) checks all models of its API for fields that they do not have, to note those of requests in a debug log. A chunk is
three models which the server itself fills in, with every token: the check is two fifths of what making them costs.
"""

from pydantic import BaseModel
from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponseStreamChoice, ChatCompletionStreamResponse
from vllm.entrypoints.openai.completion.protocol import CompletionResponseStreamChoice, CompletionStreamResponse

CHECK = "__log_extra_fields__"
PARTS: tuple[type[BaseModel], ...] = (
    DeltaMessage,
    ChatCompletionResponseStreamChoice,
    ChatCompletionStreamResponse,
    CompletionResponseStreamChoice,
    CompletionStreamResponse,
)
"""Inner ones first: what holds others takes over how these are validated."""


def make_without_check() -> None:
    """Take the check for unknown fields from chunks, in this process. What is in a chunk, and how it is written, stays."""
    for part in PARTS:
        if part.__pydantic_decorators__.model_validators.pop(CHECK, None) is not None:
            part.model_rebuild(force=True)
