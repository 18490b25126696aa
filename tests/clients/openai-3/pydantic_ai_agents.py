"""Pydantic AI: an agent with a typed output, over chats and Responses."""

from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


class Sum(BaseModel):
    """The result of a sum."""

    answer: int


def asked(model: Any, output: Any, question: str) -> int:
    return Agent(model, output_type=output, model_settings={"temperature": 0.0}, retries=0).run_sync(question).output.answer


def provider(url: str) -> OpenAIProvider:
    return OpenAIProvider(base_url=f"{url}/v1", api_key="none")


def chat(url: str) -> OpenAIChatModel:
    return OpenAIChatModel("nano", provider=provider(url))


WAYS = {
    "ToolOutput": lambda url, question: asked(chat(url), ToolOutput(Sum), question),
    "NativeOutput": lambda url, question: asked(chat(url), NativeOutput(Sum), question),
    "Responses, NativeOutput": lambda url, question: asked(
        OpenAIResponsesModel("nano", provider=provider(url)), NativeOutput(Sum), question
    ),
}
