"""LlamaIndex: a structured LLM over an OpenAI-like API."""

from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Sum(BaseModel):
    """The result of a sum."""

    answer: int


def model(url: str, **more: Any) -> OpenAILike:
    more = {"is_chat_model": True, "temperature": 0, "max_retries": 0} | more
    return OpenAILike(model="nano", api_base=f"{url}/v1", api_key="none", **more)


def structured(url: str, question: str) -> int:
    found = model(url, should_use_structured_outputs=True).as_structured_llm(Sum).chat([ChatMessage(content=question)])
    return found.raw.answer


def predicted(url: str, question: str) -> int:
    found = model(url, should_use_structured_outputs=True).structured_predict(Sum, PromptTemplate("{question}"), question=question)
    return found.answer


def called(url: str, question: str) -> int:
    found = model(url, is_function_calling_model=True).structured_predict(Sum, PromptTemplate("{question}"), question=question)
    return found.answer


WAYS = {"as_structured_llm": structured, "structured_predict": predicted, "function calling": called}
