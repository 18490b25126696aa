"""The questions that the page suggests are answered right, also by the smallest model."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.paths import ROOT
from ui.question import Question
from ui.texts import LANGUAGES, texts

NANO = ROOT / "models/nano"
ANSWERS = {"example.arithmetic": "182", "example.compare": "9.9", "example.equation": "6", "example.word": "83"}


@pytest.fixture(scope="module")
def nano() -> Iterator[Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them wait for each other on a busy machine
    yield AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("language", LANGUAGES)
def test_nano_answers_the_examples(nano: Any, language: str) -> None:
    words = texts(language)
    assert {key for key in words if key.startswith("example.")} == ANSWERS.keys()
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    found = {}
    for key in ANSWERS:
        messages = Question(id="q", messages=[{"role": "user", "content": words[key]}]).body()["messages"]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        reply = tokenizer.decode(nano.generate(**prompt, do_sample=False, max_new_tokens=400)[0])
        [found[key]] = re.findall(r"\\boxed\{([^}]*)\}", reply)
    assert found == ANSWERS
