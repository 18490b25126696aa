"""Samples from the model in training and judges its replies: accuracy by kind, and repair of planted mistakes."""

import os
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer
from transformers import Qwen2ForCausalLM

from models.recipe import forms, outside, problems, talks, tokenizer, traces
from models.recipe.arithmetic import Slip
from models.recipe.problems import Problem
from models.recipe.talks import turn

LIMIT = 640
"""Most tokens in a reply; the longest trace with two mistakes has about 500."""


class Sampler:
    """Samples with vLLM in this process: the replies are as they are served, and come many times as fast as from transformers."""

    def __init__(self, directory: Path, words: Tokenizer, seed: int) -> None:
        """Start vLLM with the model in `directory`."""
        os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
        os.environ |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
        from vllm import LLM

        self._engine = LLM(
            str(directory),
            dtype="float32",
            max_model_len=tokenizer.CONTEXT,
            max_num_seqs=256,
            gpu_memory_utilization=0.5,
            enable_prefix_caching=False,  # the weights change
            enforce_eager=True,
            distributed_executor_backend="uni",
            seed=seed,
        )
        self._end = words.token_to_id("<|im_end|>")

    def load(self, model: Qwen2ForCausalLM) -> None:
        """Load the weights of `model`."""
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": list(model.state_dict().items())})

    def sample(self, prompts: Sequence[Sequence[int]], temperature: float = 0.0, limit: int = LIMIT) -> list[list[int]]:
        """Return the reply to each prompt as token ids without the end of turn; greedy at temperature 0."""
        from vllm import SamplingParams

        how = SamplingParams(temperature=temperature, max_tokens=limit, stop_token_ids=[self._end], detokenize=False)
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        written = [list(output.outputs[0].token_ids) for output in self._engine.generate(asked, how, use_tqdm=False)]
        return [ids[:-1] if ids and ids[-1] == self._end else ids for ids in written]


def boxed(text: str) -> str | None:
    """Return what the last box of a reply holds."""
    found = re.findall(r"\\boxed\{([^{}]*)\}", text)
    return found[-1] if found else None


def right(problem: Problem, text: str) -> bool:
    """Return whether a reply gives the exact answer; to a question to turn down, the refusal must be the whole reply."""
    if problem.task is None:
        return text.strip() == problem.answer
    return boxed(text) == problem.answer


def planted(problem: Problem, rng: random.Random) -> str | None:
    """Return the beginning of a reply whose first step is wrong, or None where no mistake could be made."""
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


def evaluate(sampler: Sampler, words: Tokenizer, each: int, seed: int = 7) -> dict[str, float]:
    """Return greedy accuracy by kind on `each` held-out problems, and the share of planted mistakes that were repaired.

    Also of problems in held-out forms of asking (`each` of every kind), of follow-ups in held-out words and of questions to turn
    down from held-out templates (twice `each`).
    """
    rng = random.Random(seed)
    drawn = [problems.draw(rng, kind, evaluation=True) for kind in problems.KINDS for _ in range(each)]
    drawn += [problems.draw_unknown(rng) for _ in range(each)]
    jobs = [(problem.kind, problem, "") for problem in drawn]
    for problem in drawn:
        if problem.task and (start := planted(problem, rng)):
            jobs.append(("repair", problem, start))
    asked = [(kind, problem, ask(problem, rng) + start) for kind, problem, start in jobs]
    for kind in forms.KINDS:
        for _ in range(each):
            problem = forms.asked(rng, kind, evaluation=True)
            asked.append(("forms", problem, talks.conversation("", [], problem.question)))
    for _ in range(2 * each):
        turns, problem = talks.draw(rng, evaluation=True)
        asked.append(("follow-up", problem, talks.conversation("", turns, problem.question)))
        problem = outside.draw(rng, evaluation=True)
        asked.append(("outside", problem, talks.conversation("", [], problem.question)))
    replies = sampler.sample([words.encode(text).ids for _, _, text in asked])
    hits: dict[str, list[bool]] = defaultdict(list)
    for (kind, problem, _), reply in zip(asked, replies, strict=True):
        hits[kind].append(right(problem, words.decode(reply, skip_special_tokens=False)))
    return {kind: sum(found) / len(found) for kind, found in hits.items()}
