"""The anthropic library: messages with an output format and with tools, whole and as streams."""

from typing import Any

import anthropic
from pydantic import BaseModel


class Sum(BaseModel):
    """The result of a sum."""

    answer: int


def client(url: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)


def asked(question: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": "nano", "max_tokens": 1500, "messages": messages, "extra_body": {"temperature": 0}}


def messages(url: str, question: str) -> int:
    return client(url).messages.parse(**asked(question), output_format=Sum).parsed_output.answer


def stream(url: str, question: str) -> int:
    with client(url).messages.stream(**asked(question), output_format=Sum) as events:
        return events.get_final_message().parsed_output.answer


def tool(url: str, question: str, choice: Any) -> int:
    tools: Any = [{"name": "Sum", "description": "The result of a sum.", "input_schema": Sum.model_json_schema()}]
    with client(url).messages.stream(**asked(question), tools=tools, tool_choice=choice) as events:
        streamed = [part.input for part in events.get_final_message().content if part.type == "tool_use"]
    whole = client(url).messages.create(**asked(question), tools=tools, tool_choice=choice)
    assert whole.stop_reason == "tool_use"
    assert streamed == [part.input for part in whole.content if part.type == "tool_use"]
    [found] = streamed
    return Sum.model_validate(found).answer


WAYS = {
    "messages.parse": messages,
    "messages.stream": stream,
    "messages, a named tool": lambda url, question: tool(url, question, {"type": "tool", "name": "Sum"}),
    "messages, any tool": lambda url, question: tool(url, question, {"type": "any"}),
}
