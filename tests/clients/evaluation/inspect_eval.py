"""Inspect: evaluations with and without a tool, and with a response schema."""

import json
import re
import tempfile
from collections.abc import Callable
from typing import Any

import inspect_ai
from inspect_ai import Task
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, ResponseSchema, get_model
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import Tool, tool
from inspect_ai.util import json_schema
from pydantic import BaseModel


class Sum(BaseModel):
    """The result of a sum."""

    answer: int


@tool
def note() -> Tool:
    async def execute(answer: int) -> int:
        """Note the result of a sum.

        Args:
            answer: The result.
        """
        return answer

    return execute


def evaluated(url: str, questions: list[str], read: Callable[[str], int], *solvers: Any, **config: Any) -> list[int]:
    model = get_model("openai-api/here/nano", base_url=f"{url}/v1", api_key="none", config=GenerateConfig(temperature=0, **config))
    task = Task(dataset=[Sample(input=question) for question in questions], solver=[*solvers, generate()])
    [log] = inspect_ai.eval(task, model=model, display="none", log_dir=tempfile.mkdtemp(), score=False)
    assert log.status == "success", log.error
    return [read(sample.output.completion) for sample in log.samples or ()]


def boxed(text: str) -> int:
    return int(re.findall(r"\\boxed\{(-?\d+)\}", text)[-1])


def typed(text: str) -> int:
    return int(json.loads(text)["answer"])


SCHEMA = ResponseSchema(name="sum", json_schema=json_schema(Sum))
ALL = {
    "eval": lambda url, questions: evaluated(url, questions, boxed),
    "eval, a tool": lambda url, questions: evaluated(url, questions, boxed, use_tools(note())),
    "eval, a response schema": lambda url, questions: evaluated(url, questions, typed, response_schema=SCHEMA),
}
