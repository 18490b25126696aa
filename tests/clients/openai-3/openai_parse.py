"""The openai library: chats and Responses in a format and with tools, whole and as streams."""

from typing import Any

import openai
from pydantic import BaseModel


class Sum(BaseModel):
    """The result of a sum."""

    answer: int


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def chat(url: str, question: str) -> int:
    messages: Any = [{"role": "user", "content": question}]
    done = client(url).chat.completions.parse(model="nano", messages=messages, temperature=0, response_format=Sum)
    return done.choices[0].message.parsed.answer


def chat_stream(url: str, question: str) -> int:
    messages: Any = [{"role": "user", "content": question}]
    with client(url).chat.completions.stream(model="nano", messages=messages, temperature=0, response_format=Sum) as stream:
        for _ in stream:
            pass
        return stream.get_final_completion().choices[0].message.parsed.answer


def responses(url: str, question: str) -> int:
    return client(url).responses.parse(model="nano", input=question, temperature=0, text_format=Sum).output_parsed.answer


def responses_stream(url: str, question: str) -> int:
    with client(url).responses.stream(model="nano", input=question, temperature=0, text_format=Sum) as stream:
        for _ in stream:
            pass
        return stream.get_final_response().output_parsed.answer


def tool(url: str, question: str) -> int:
    messages: Any = [{"role": "user", "content": question}]
    tools = [openai.pydantic_function_tool(Sum)]
    done = client(url).chat.completions.parse(model="nano", messages=messages, temperature=0, tools=tools, tool_choice="required")
    assert done.choices[0].finish_reason == "tool_calls"
    [call] = done.choices[0].message.tool_calls
    return call.function.parsed_arguments.answer


def named_tool_stream(url: str, question: str) -> int:
    asked: Any = {"messages": [{"role": "user", "content": question}], "tools": [openai.pydantic_function_tool(Sum)]}
    choice: Any = {"type": "function", "function": {"name": "Sum"}}
    with client(url).chat.completions.stream(model="nano", temperature=0, tool_choice=choice, **asked) as stream:
        for _ in stream:
            pass
        [call] = stream.get_final_completion().choices[0].message.tool_calls
    return call.function.parsed_arguments.answer


def responses_tool(url: str, question: str) -> int:
    tools: Any = [{"type": "function", "name": "Sum", "parameters": Sum.model_json_schema()}]
    asked: Any = {"model": "nano", "input": question, "temperature": 0, "tools": tools, "tool_choice": "required"}
    whole = [item for item in client(url).responses.create(**asked).output if item.type == "function_call"]
    with client(url).responses.stream(**asked) as stream:
        for _ in stream:
            pass
        streamed = [item for item in stream.get_final_response().output if item.type == "function_call"]
    [first], [second] = whole, streamed
    assert first.arguments == second.arguments
    return Sum.model_validate_json(first.arguments).answer


WAYS = {
    "chat.completions.parse": chat,
    "chat.completions.stream": chat_stream,
    "responses.parse": responses,
    "responses.stream": responses_stream,
    "chat.completions.parse, tools": tool,
    "chat.completions.stream, a named tool": named_tool_stream,
    "responses, tools": responses_tool,
}
