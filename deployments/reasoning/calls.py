"""Tool calls: those that a request asks for (`tool_choice` "required", or a function's name), and those left to the model ("auto").

Calls that are asked for are an answer in a format: the model thinks first, and then writes JSON that follows the function's schema.

Where it is left to the model, its reply is a chain as always. Where its turn would end, another one begins, in which it calls, in
the words of Qwen's chat templates (https://qwen.readthedocs.io, function calling), or begins any other text. That text says that
it calls nothing, and is cut at once: what the reply has to say stands in its chain. So the choice is the model's own, its calls can
always be read, and a model that knows of no tools answers as without them. Beside a JSON format, any other text is that answer.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from openai.types.responses import FunctionTool
from vllm.entrypoints.generate.base.protocol import DeltaFunctionCall, DeltaToolCall, FunctionCall, ToolCall
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.sampling_params import StructuredOutputsParams

OPENING, CLOSING = "<tool_call>", "</tool_call>"
TEXT, FORMAT = "text", "format"
"""What a reply may have instead of calls."""
MOST = 128
"""Calls in one reply."""
_HEADS = {choice: f"%llguidance {{}}\nstart: {choice} | calls\n" for choice in (TEXT, FORMAT)}
_SHORTEST = r"/[^<](.|\n){0,15}/"
"""A text that is no call: long enough for any ordinary token, so that none is preferred for being short."""

Follow = Callable[[Any], Any]
"""Returns the schema that calls follow, for the one that a function has."""


def forces_call(request: Any) -> bool:
    """Return whether a reply must be tool calls. `request` is one of vLLM's."""
    return bool(request.tools) and request.tool_choice not in (None, "none", "auto")


def offer(request: Any, follow: Follow) -> None:
    """Let the model choose whether it calls, where a request of vLLM's leaves it to the model.

    A format other than JSON (a regex, a choice, a grammar) holds alone: then nothing is called.
    """
    tools = functions(request)
    if not tools or request.tool_choice not in (None, "auto"):
        return
    asked = request.extract_structured_outputs()
    answer = None
    if asked is not None and not asked.all_constraints_none():
        if asked.json is None and not asked.json_object:
            return
        answer = json.loads(asked.json) if isinstance(asked.json, str) else asked.json or {"type": "object"}
    several = request.parallel_tool_calls is not False
    request.tool_choice = "auto"
    request.structured_outputs = StructuredOutputsParams(grammar=grammar(tools, follow, answer, several=several))
    if isinstance(request, ResponsesRequest):
        request.text = None
    else:
        request.response_format = None


def functions(request: Any) -> list[tuple[str, Any]]:
    """Return the functions of a request, one of vLLM's: the name and the schema of each."""
    tools = [tool if isinstance(tool, FunctionTool) else getattr(tool, "function", None) for tool in request.tools or ()]
    return [(tool.name, tool.parameters) for tool in tools if tool is not None]


def grammar(tools: Sequence[tuple[str, Any]], follow: Follow, answer: Any = None, *, several: bool = True) -> str:
    """Return a grammar of Lark's notation for calls of some functions, or else a text, or a JSON value with the schema `answer`."""
    names = " | ".join(f"call_{number}" for number in range(len(tools)))
    lines = [
        _HEADS[TEXT if answer is None else FORMAT] + (f'calls: call ("\\n" call){{0,{MOST - 1}}}' if several else "calls: call"),
        f"call: {names}",
        f"text: {_SHORTEST}" if answer is None else f"format: {_json(follow(answer))}",
    ]
    for number, (name, schema) in enumerate(tools):
        schema = follow(schema) if schema else {"type": "object"}
        lines.append(f"call_{number}: {_quoted(_before(name))} {_json(schema)} {_quoted('}' + chr(10) + CLOSING)}")
    return "\n".join(lines)


def choice(asked: StructuredOutputsParams | None) -> str | None:
    """Return what a reply may have instead of calls that are left to the model; None where none are."""
    text = asked.grammar if asked is not None else None
    return next((name for name, head in _HEADS.items() if text is not None and text.startswith(head)), None)


def read(text: str) -> list[FunctionCall]:
    """Return the calls in a text that follows such a grammar; one that is cut off is none."""
    found, at = [], 0
    while text.startswith(OPENING, at):
        begin = at + len(OPENING) + 1
        try:
            call, at = json.JSONDecoder().raw_decode(text, begin)
        except ValueError:
            break
        written = text[begin + len(_before(call["name"])) - len(OPENING) - 1 : at - 1]
        found.append(FunctionCall(name=call["name"], arguments=written))
        at += len(CLOSING) + 2  # with the line breaks before and behind it
    return found


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


def _before(name: str) -> str:
    """Return what a call has before its arguments."""
    return f'{OPENING}\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '


def _json(schema: Any) -> str:
    if not isinstance(schema, dict):  # true
        schema = {}
    return f"%json {json.dumps(schema | {'x-guidance': {'whitespace_flexible': False}})}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
