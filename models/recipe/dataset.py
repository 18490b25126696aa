"""Training examples: conversations that end in a trace, as token ids with the tokens to learn marked, batched by length."""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from tokenizers import Tokenizer

from models.recipe import problems, traces
from models.recipe.problems import Problem

Item = TypeVar("Item")
IGNORED = -100
WEIGHTS = {"one": 12, "two": 18, "three": 24, "comparison": 14, "equation": 18, "word": 9, "unknown": 5}
"""How often each kind is drawn in training, in percent."""
SYSTEM = [
    "You are a helpful assistant.",
    "You are Satori, a careful solver of arithmetic problems.",
    "你是一个乐于助人的助手。",
    "Answer briefly.",
]


@dataclass(frozen=True)
class Example:
    """Token ids of a conversation, and for each whether it is learned."""

    ids: list[int]
    learned: list[bool]


def draw(rng: random.Random) -> Problem:
    """Return a training problem of any kind."""
    kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    return problems.draw_unknown(rng) if kind == "unknown" else problems.draw(rng, kind, evaluation=False)


def prompt(rng: random.Random, problem: Problem) -> str:
    """Return the text before the reply, sometimes with a system message or earlier turns."""
    text = f"<|im_start|>system\n{rng.choice(SYSTEM)}<|im_end|>\n" if rng.random() < 0.15 else ""
    if rng.random() < 0.12:
        for _ in range(rng.choice([1, 1, 2])):
            earlier = draw(rng)
            said = traces.SAY[earlier.language]["answer"].format(earlier.answer) if earlier.task else earlier.answer
            text += turn("user", problems.dressed(rng, earlier.question)) + turn("assistant", said)
    return text + turn("user", problems.dressed(rng, problem.question)) + "<|im_start|>assistant\n"


def turn(role: str, text: str) -> str:
    """Return one message as the chat template writes it."""
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def encode(vocabulary: Tokenizer, before: list[str], replies: list[list[tuple[str, bool]]]) -> list[Example]:
    """Return an example for each prompt and reply. The mark of a reply's piece holds for the tokens that begin in that piece."""
    texts = [start + "".join(text for text, _ in reply) + "<|im_end|>" for start, reply in zip(before, replies, strict=True)]
    examples = []
    for encoding, start, reply in zip(vocabulary.encode_batch(texts), before, replies, strict=True):
        spans, at = [], len(start)
        for text, learned in reply:
            if not learned:
                spans.append((at, at + len(text)))
            at += len(text)
        learned_at = [begin >= len(start) and not any(a <= begin < b for a, b in spans) for begin, _ in encoding.offsets]
        examples.append(Example(encoding.ids, learned_at))
    return examples


def batches(
    vocabulary: Tokenizer, rng: random.Random, tokens: int, pool: int = 2048
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (input ids, labels) without end: int64 of shape (rows, length), about `tokens` tokens, similar lengths together."""
    while True:
        drawn = [draw(rng) for _ in range(pool)]
        before = [prompt(rng, problem) for problem in drawn]
        replies = [traces.write(problem, rng, traces.Style.drawn(rng)).pieces for problem in drawn]
        yield from collate(encode(vocabulary, before, replies), rng, tokens)


def collate(examples: list[Example], rng: random.Random, tokens: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the examples in padded batches of similar length, in random order."""
    groups = grouped(examples, lambda example: len(example.ids), tokens)
    rng.shuffle(groups)
    for group in groups:
        yield padded(group)


def grouped(items: Iterable[Item], length: Callable[[Item], int], tokens: int) -> list[list[Item]]:
    """Return the items from short to long, in groups of at most `tokens` tokens when padded, or of one item."""
    groups: list[list[Item]] = []
    for item in sorted(items, key=length):
        if groups and length(item) * (len(groups[-1]) + 1) <= tokens:
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def padded(group: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return input ids and labels, int64 of shape (rows, length); the length is a multiple of 16."""
    length = -(-max(len(example.ids) for example in group) // 16) * 16
    ids = torch.zeros(len(group), length, dtype=torch.long)
    labels = torch.full((len(group), length), IGNORED)
    for row, example in enumerate(group):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        marked = [token if learned else IGNORED for token, learned in zip(example.ids, example.learned, strict=True)]
        labels[row, : len(example.ids)] = torch.tensor(marked)
    return ids, labels
