"""LangChain: `with_structured_output` of its models for OpenAI's and Anthropic's APIs."""

from typing import Any

from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Sum(BaseModel):
    """The result of a sum."""

    answer: int


def chats(url: str, **more: Any) -> BaseChatModel:
    return ChatOpenAI(model="nano", base_url=f"{url}/v1", api_key="none", temperature=0, max_retries=0, **more)


def messages(url: str) -> BaseChatModel:
    return ChatAnthropic(model="nano", base_url=url, api_key="none", temperature=0, max_retries=0, max_tokens=1500)


WAYS = {
    "ChatOpenAI": lambda url, question: chats(url).with_structured_output(Sum).invoke(question).answer,
    "ChatOpenAI, a stream": lambda url, question: list(chats(url).with_structured_output(Sum).stream(question))[-1].answer,
    "ChatOpenAI, Responses": lambda url, question: (
        chats(url, use_responses_api=True).with_structured_output(Sum).invoke(question).answer
    ),
    "ChatOpenAI, JSON mode": lambda url, question: (
        chats(url).with_structured_output(Sum, method="json_mode").invoke(question).answer
    ),
    "ChatOpenAI, function calling": lambda url, question: (
        chats(url).with_structured_output(Sum, method="function_calling").invoke(question).answer
    ),
    "ChatAnthropic": lambda url, question: messages(url).with_structured_output(Sum, method="json_schema").invoke(question).answer,
    "ChatAnthropic, function calling": lambda url, question: messages(url).with_structured_output(Sum).invoke(question).answer,
}
