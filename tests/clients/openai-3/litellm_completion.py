"""LiteLLM: completions with a response format, whole and as streams."""

import os
from typing import Any

from pydantic import BaseModel

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would fetch a list of prices

import litellm


class Sum(BaseModel):
    """The result of a sum."""

    answer: int


def completion(url: str, question: str, **more: Any) -> Any:
    return litellm.completion(
        model="hosted_vllm/nano",
        api_base=f"{url}/v1",
        api_key="none",
        messages=[{"role": "user", "content": question}],
        response_format=Sum,
        temperature=0,
        **more,
    )


def whole(url: str, question: str) -> int:
    return Sum.model_validate_json(completion(url, question).choices[0].message.content).answer


def stream(url: str, question: str) -> int:
    chunks = completion(url, question, stream=True)
    return Sum.model_validate_json("".join(chunk.choices[0].delta.content or "" for chunk in chunks)).answer


WAYS = {"completion": whole, "completion, a stream": stream}
