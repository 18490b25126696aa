"""Pydantic AI: an agent with a typed output, over chats, Responses and Anthropic messages."""

from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
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


def messages(url: str) -> AnthropicModel:
    return AnthropicModel("nano", provider=AnthropicProvider(base_url=url, api_key="none"))


WAYS = {
    "NativeOutput": lambda url, question: asked(chat(url), NativeOutput(Sum), question),
    "the default: ToolOutput": lambda url, question: asked(chat(url), Sum, question),
    "Responses, NativeOutput": lambda url, question: asked(
        OpenAIResponsesModel("nano", provider=provider(url)), NativeOutput(Sum), question
    ),
    "Responses, ToolOutput": lambda url, question: asked(OpenAIResponsesModel("nano", provider=provider(url)), Sum, question),
    "Anthropic, ToolOutput": lambda url, question: asked(messages(url), Sum, question),
}
