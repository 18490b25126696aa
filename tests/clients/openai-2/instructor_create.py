"""Instructor: a response model in each of its modes."""

from typing import Any

import instructor
import openai
from pydantic import BaseModel


class Sum(BaseModel):
    """The result of a sum."""

    answer: int


def asked(url: str, question: str, mode: Any) -> int:
    client = instructor.from_openai(openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0), mode=mode)
    messages: Any = [{"role": "user", "content": question}]
    return client.create(model="nano", messages=messages, temperature=0, response_model=Sum, max_retries=0).answer


WAYS = {
    name: lambda url, question, mode=name: asked(url, question, instructor.Mode[mode])
    for name in ("TOOLS", "TOOLS_STRICT", "JSON_SCHEMA")
}
