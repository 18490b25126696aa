"""lm-evaluation-harness: a task of its own, with generations over chats and completions, and with likelihoods of choices."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

CHAT = "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def boxed(text: str) -> int:
    return int(re.findall(r"\\boxed\{(-?\d+)\}", text)[-1])


def responses(url: str, questions: list[str], kind: str, route: str, prompt: str, **task: Any) -> list[str]:
    """Return what the model generates for each question."""
    folder = Path(tempfile.mkdtemp())
    (folder / "sums.jsonl").write_text("".join(json.dumps({"text": prompt.format(question=one)}) + "\n" for one in questions))
    config = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "sums.jsonl")}, "cache_dir": str(folder)},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "",
        "generation_kwargs": {"until": ["<|im_end|>"], "max_gen_toks": 800, "temperature": 0},
        "metric_list": [{"metric": "bypass"}],
    }
    arguments = {"model": "nano", "base_url": f"{url}{route}", "num_concurrent": len(questions), "max_retries": 1}
    found = lm_eval.simple_evaluate(
        model=kind,
        model_args=arguments | task,
        tasks=[config],
        task_manager=TaskManager(include_defaults=False),
        apply_chat_template="chat" in kind,
        bootstrap_iters=0,
    )
    samples = sorted(found["samples"]["sums"], key=lambda sample: sample["doc_id"])
    return [sample["resps"][0][0] for sample in samples]


ALL = {
    "local-chat-completions": lambda url, questions: [
        boxed(text) for text in responses(url, questions, "local-chat-completions", "/v1/chat/completions", "{question}")
    ],
    "local-completions, a remote tokenizer": lambda url, questions: [
        boxed(text) for text in responses(url, questions, "local-completions", "/v1/completions", CHAT, tokenizer_backend="remote")
    ],
}
