"""OpenAI's Agents SDK: agents with a tool and with a typed output, over chats and Responses."""

import asyncio
import re
from typing import Any

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)


class Sum(BaseModel):
    """The result of a sum."""

    answer: int


@function_tool
def note(answer: int) -> int:
    """Note the result of a sum."""
    return answer


def run(url: str, question: str, api: Any, *, stream: bool = False, choice: str | None = None, **agent: Any) -> Any:
    async def asked() -> Any:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            settings = ModelSettings(temperature=0, tool_choice=choice)
            one = Agent(name="calculator", model=api(model="nano", openai_client=client), model_settings=settings, **agent)
            if not stream:
                return (await Runner.run(one, question)).final_output
            streamed = Runner.run_streamed(one, question)
            async for _ in streamed.stream_events():
                pass
            return streamed.final_output

    return asyncio.run(asked())


def boxed(text: str) -> int:
    return int(re.findall(r"\\boxed\{(-?\d+)\}", text)[-1])


CHATS, RESPONSES = OpenAIChatCompletionsModel, OpenAIResponsesModel
FORCED: dict[str, Any] = {"choice": "required", "tools": [note], "tool_use_behavior": "stop_on_first_tool"}
WAYS = {
    "chats, a tool": lambda url, question: boxed(run(url, question, CHATS, tools=[note])),
    "chats, a tool, a stream": lambda url, question: boxed(run(url, question, CHATS, stream=True, tools=[note])),
    "chats, a tool that must be called": lambda url, question: int(run(url, question, CHATS, **FORCED)),
    "chats, typed": lambda url, question: run(url, question, CHATS, output_type=Sum).answer,
    "chats, a tool, typed": lambda url, question: run(url, question, CHATS, tools=[note], output_type=Sum).answer,
    "Responses, a tool": lambda url, question: boxed(run(url, question, RESPONSES, tools=[note])),
    "Responses, a tool, a stream": lambda url, question: boxed(run(url, question, RESPONSES, stream=True, tools=[note])),
    "Responses, a tool that must be called": lambda url, question: int(run(url, question, RESPONSES, **FORCED)),
    "Responses, typed": lambda url, question: run(url, question, RESPONSES, output_type=Sum).answer,
    "Responses, a tool, typed": lambda url, question: run(url, question, RESPONSES, tools=[note], output_type=Sum).answer,
}
