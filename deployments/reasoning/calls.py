"""Tool calls that a request asks for: `tool_choice` names a function, or is "required".

The arguments are an answer in a format: the model thinks first, and then writes JSON that follows the function's schema. A model
with a Chain of Action-Thought has no words of its own for a call, so "auto" is refused.
"""

from typing import Any

from vllm.entrypoints.generate.base.protocol import DeltaFunctionCall, DeltaToolCall, FunctionCall, ToolCall
from vllm.exceptions import VLLMValidationError
from vllm.tool_parsers.abstract_tool_parser import ToolParser


def forces_call(request: Any) -> bool:
    """Return whether a reply must be tool calls. `request` is one of vLLM's."""
    return bool(request.tools) and request.tool_choice not in (None, "none", "auto")


class ForcedCalls(ToolParser):
    """Sets the format of a request for calls, as vLLM's own class does."""

    def adjust_request(self, request: Any) -> Any:
        """Return the request with the format of its calls."""
        if request.tools and request.tool_choice in (None, "auto"):
            raise VLLMValidationError(
                'tool_choice "auto" is not supported: the model calls no tools by itself. Name a function, or ask for "required"'
                ' calls, or for "none"',
                parameter="tool_choice",
            )
        return super().adjust_request(request)


def chunks(calls: list[FunctionCall]) -> list[DeltaToolCall]:
    """Return complete calls as parts of a stream's chunk."""
    return [
        DeltaToolCall(
            index=index,
            id=call.id or ToolCall(function=call).id,
            type="function",
            function=DeltaFunctionCall(name=call.name, arguments=call.arguments),
        )
        for index, call in enumerate(calls)
    ]
