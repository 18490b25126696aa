"""Stage two, reinforcement on the exact answer with Restart-and-Explore: `python -m models.recipe.rl OUT [--rounds 40]`.

Starts from `OUT/imitated/` and writes `OUT/reinforced/`. In each round the model answers `STARTS` problems `SAMPLES` times each at
temperature 1, and one step of policy gradient follows. A reply's advantage is its reward minus the mean reward of the replies from
the same start (as in GRPO, arXiv 2402.03300, but without the division by the spread: arXiv 2503.20783). As in Satori (arXiv
2502.02508), half of the starts are in the middle of the model's own earlier replies, right and wrong ones, cut at an action and
followed by `<|reflect|>`. There the reward has a bonus for repairing a wrong reply and a penalty for spoiling a right one. Unlike
Satori, there is no reward model, no critic and only one round.
"""

import argparse
import random
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import Qwen2ForCausalLM

from models.recipe import dataset, rollout, tokenizer
from models.recipe.dataset import Example
from models.recipe.problems import Problem

STARTS, SAMPLES = 32, 8
TOKENS = 8192
BONUS = 0.5
KEPT = 512


@dataclass(frozen=True)
class Start:
    """Where a reply begins: a problem's prompt, the reply so far (token ids), and whether that is from a right reply."""

    problem: Problem
    prompt: list[int]
    begun: list[int]
    was_right: bool | None = None

    def reward(self, right: bool) -> float:
        """Return 1 for a right answer and 0 for a wrong one, with the bonus of restarts."""
        bonus = BONUS if right and self.was_right is False else -BONUS if not right and self.was_right else 0.0
        return right + bonus


class Restarts:
    """The model's own earlier replies, right and wrong ones, from which new replies start in the middle."""

    def __init__(self, words: Tokenizer) -> None:
        self._actions = {words.token_to_id(token) for token in tokenizer.SPECIAL[3:]}
        self._reflect = words.encode("<|reflect|>").ids
        self._kept: dict[bool, deque[Start]] = {True: deque(maxlen=KEPT), False: deque(maxlen=KEPT)}

    def keep(self, start: Start, reply: list[int], right: bool) -> None:
        """Keep a whole reply (the start's part and the rest)."""
        self._kept[right].append(Start(start.problem, start.prompt, reply, right))

    def draw(self, rng: random.Random, right: bool) -> Start | None:
        """Return a kept reply, cut before a random action other than the first, and followed by `<|reflect|>`; None without one."""
        if not self._kept[right]:
            return None
        kept = rng.choice(self._kept[right])
        cuts = [at for at, token in enumerate(kept.begun) if token in self._actions and at > 0]
        if not cuts:
            return None
        return Start(kept.problem, kept.prompt, [*kept.begun[: rng.choice(cuts)], *self._reflect], right)


def starts(rng: random.Random, words: Tokenizer, restarts: Restarts) -> list[Start]:
    """Return the starts of a round: half are fresh problems, a quarter each are restarts of right and of wrong replies, if any."""
    found = []
    for index in range(STARTS):
        start = None
        if index % 2:
            start = restarts.draw(rng, right=bool(index % 4 == 1))
        if start is None:
            problem = dataset.draw(rng)
            start = Start(problem, words.encode(dataset.prompt(rng, problem)).ids, [])
        found.append(start)
    return found


def loss_of(model: Qwen2ForCausalLM, ids: torch.Tensor, labels: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """Return the policy-gradient loss, summed over tokens, of replies (rows, length) with one advantage each."""
    logits = model(input_ids=ids).logits[:, :-1].float()
    wanted = labels[:, 1:]
    logged = -torch.nn.functional.cross_entropy(logits.transpose(1, 2), wanted, ignore_index=dataset.IGNORED, reduction="none")
    return -(logged * advantages[:, None]).sum()


def learn(model: Qwen2ForCausalLM, optimizer: torch.optim.Optimizer, replies: list[tuple[Example, float]]) -> None:
    """Make one step along the policy gradient of all replies."""
    total = sum(sum(example.learned) for example, _ in replies)
    for group in dataset.grouped(replies, lambda reply: len(reply[0].ids), TOKENS):
        ids, labels = dataset.padded([example for example, _ in group])
        advantages = torch.tensor([advantage for _, advantage in group])
        with torch.autocast(model.device.type, torch.bfloat16):
            loss = loss_of(model, ids.to(model.device), labels.to(model.device), advantages.to(model.device))
        (loss / total).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def play(
    sampler: rollout.Sampler, words: Tokenizer, rng: random.Random, restarts: Restarts
) -> tuple[list[tuple[Example, float]], float]:
    """Return the replies of one round with their advantages, and the share of right ones from fresh problems."""
    begun = [start for start in starts(rng, words, restarts) for _ in range(SAMPLES)]
    written = sampler.sample([start.prompt + start.begun for start in begun], temperature=1.0)
    end = words.token_to_id("<|im_end|>")
    replies, fresh = [], []
    for at in range(0, len(begun), SAMPLES):
        group = []
        for start, rest in zip(begun[at : at + SAMPLES], written[at : at + SAMPLES], strict=True):
            whole = start.begun + rest
            right = rollout.right(start.problem, words.decode(whole, skip_special_tokens=False))
            group.append((start, rest, start.reward(right)))
            if start.was_right is None:
                fresh.append(right)
                restarts.keep(start, whole, right)
        mean = sum(reward for *_, reward in group) / SAMPLES
        for start, rest, reward in group:
            if abs(reward - mean) > 1e-6:
                known = [*start.prompt, *start.begun]
                said = rest if len(rest) == rollout.LIMIT else [*rest, end]  # a reply that was cut off has no end of turn
                replies.append((Example([*known, *said], [False] * len(known) + [True] * len(said)), reward - mean))
    return replies, sum(fresh) / len(fresh)


def main() -> None:
    """Reinforce the imitated model."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--rounds", type=int, default=40)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--rate", type=float, default=1e-4)
    given = arguments.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(given.seed)
    words = Tokenizer.from_file(str(given.out / "imitated" / "tokenizer.json"))
    model = Qwen2ForCausalLM.from_pretrained(given.out / "imitated").to(device)
    sampler = rollout.Sampler(given.out / "imitated", words, given.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.rate, betas=(0.9, 0.98), weight_decay=0.0)
    rng, restarts, began = random.Random(given.seed), Restarts(words), time.monotonic()
    for number in range(given.rounds):
        replies, right = play(sampler, words, rng, restarts)
        if replies:
            learn(model, optimizer, replies)
            sampler.load(model)
        print(f"round {number + 1} right {right:.3f} learned from {len(replies)} {time.monotonic() - began:.0f} s", flush=True)
    model.save_pretrained(given.out / "reinforced")
    tokenizer.save(words, given.out / "reinforced")


if __name__ == "__main__":
    main()
