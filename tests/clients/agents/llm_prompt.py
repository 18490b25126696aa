"""Simon Willison's llm: prompts, schemas and tools, whole and as streams."""

import json
import os
import re
import tempfile
from typing import Any

os.environ["LLM_USER_PATH"] = tempfile.mkdtemp()  # it keeps keys and logs there

from llm.default_plugins.openai_models import Chat
from pydantic import BaseModel


class Sum(BaseModel):
    """The result of a sum."""

    answer: int


def note(answer: int) -> int:
    """Note the result of a sum."""
    return answer


def model(url: str) -> Any:
    """Return what `llm` makes of an entry in its file of models, `extra-openai-models.yaml`."""
    made = Chat("nano", model_name="nano", api_base=f"{url}/v1", supports_schema=True, supports_tools=True)
    made.key = "none"
    return made


def boxed(text: str) -> int:
    return int(re.findall(r"\\boxed\{(-?\d+)\}", text)[-1])


def schema(url: str, question: str, stream: bool) -> int:
    return int(json.loads(model(url).prompt(question, temperature=0, stream=stream, schema=Sum).text())["answer"])


WAYS = {
    "a prompt": lambda url, question: boxed(model(url).prompt(question, temperature=0, stream=False).text()),
    "a prompt, a stream": lambda url, question: boxed("".join(model(url).prompt(question, temperature=0))),
    "a schema": lambda url, question: schema(url, question, False),
    "a schema, a stream": lambda url, question: schema(url, question, True),
    "a tool": lambda url, question: boxed(
        model(url).chain(question, tools=[note], options={"temperature": 0}, stream=False).text()
    ),
    "a tool, a stream": lambda url, question: boxed("".join(model(url).chain(question, tools=[note], options={"temperature": 0}))),
}
