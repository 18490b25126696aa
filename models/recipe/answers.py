"""Sampling from the model in training and judging what it says: accuracy by kind, and repair of planted mistakes."""

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import Qwen2ForCausalLM

from models.recipe import problems, traces
from models.recipe.arithmetic import Slip
from models.recipe.examples import turn
from models.recipe.problems import Problem

LIMIT = 640
"""Most tokens of a reply; the longest trace with two mistakes has about 500."""


@torch.inference_mode()  # type: ignore[untyped-decorator]
def sample(
    model: Qwen2ForCausalLM, vocabulary: Tokenizer, prompts: Sequence[Sequence[int]], temperature: float = 0.0, limit: int = LIMIT
) -> list[list[int]]:
    """Return the reply to each prompt as token ids without the end of turn; greedy at temperature 0."""
    end, pad = vocabulary.token_to_id("<|im_end|>"), vocabulary.token_to_id("<|endoftext|>")
    longest = max(map(len, prompts))
    device = model.device
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts])
    mask = (torch.arange(longest) >= torch.tensor([longest - len(p) for p in prompts])[:, None]).long()
    choice: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {"do_sample": False}
    )
    out = model.generate(
        ids.to(device), attention_mask=mask.to(device), max_new_tokens=limit, eos_token_id=end, pad_token_id=pad, **choice
    )
    replies = []
    for row in out[:, longest:].tolist():
        stop = row.index(end) if end in row else len(row)
        replies.append(row[:stop])
    return replies


def boxed(text: str) -> str | None:
    """Return what the last box of a reply holds."""
    found = re.findall(r"\\boxed\{([^{}]*)\}", text)
    return found[-1] if found else None


def right(problem: Problem, text: str) -> bool:
    """Tell whether a reply gives the answer exactly; a question to turn down must have no box and no action."""
    if problem.task is None:
        return text.strip() == problem.answer
    return boxed(text) == problem.answer


def planted(problem: Problem, rng: random.Random) -> str | None:
    """Return the beginning of a reply whose first step is wrong; None where no mistake could be made."""
    assert problem.task is not None
    say = traces.SAY[problem.language]
    good = traces.step(problem.task, Slip(None), say)
    for _ in range(5):
        wrong = traces.step(problem.task, Slip(rng), say)
        if wrong.after != good.after:
            return traces.CONTINUE + traces.opening(problem) + wrong.text
    return None


def ask(problem: Problem, rng: random.Random) -> str:
    """Return the prompt of a single question."""
    return turn("user", problems.dressed(rng, problem.question)) + "<|im_start|>assistant\n"


def evaluate(model: Qwen2ForCausalLM, vocabulary: Tokenizer, each: int, seed: int = 7) -> dict[str, float]:
    """Return greedy accuracy by kind on `each` held-out problems, and the share of planted mistakes that were repaired."""
    rng = random.Random(seed)
    drawn = [problems.draw(rng, kind, evaluation=True) for kind in problems.KINDS for _ in range(each)]
    drawn += [problems.draw_unknown(rng) for _ in range(each)]
    jobs = [(problem.kind, problem, "") for problem in drawn]
    for problem in drawn:
        if problem.task and (start := planted(problem, rng)):
            jobs.append(("repair", problem, start))
    prompts = [vocabulary.encode(ask(problem, rng) + start).ids for _, problem, start in jobs]
    order = sorted(range(len(jobs)), key=lambda i: len(prompts[i]))
    hits: dict[str, list[bool]] = defaultdict(list)
    for at in range(0, len(order), 256):
        part = order[at : at + 256]
        for i, reply in zip(part, sample(model, vocabulary, [prompts[i] for i in part]), strict=True):
            kind, problem, _ = jobs[i]
            hits[kind].append(right(problem, vocabulary.decode(reply, skip_special_tokens=False)))
    return {kind: sum(found) / len(found) for kind, found in hits.items()}
