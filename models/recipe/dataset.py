"""Training examples: conversations that end in a trace, as token ids with the tokens to learn marked, batched by length."""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from tokenizers import Tokenizer

from models.recipe import forms, outside, problems, talks, traces
from models.recipe.problems import Problem
from models.recipe.talks import turn

Item = TypeVar("Item")
IGNORED = -100
WEIGHTS = {"one": 12, "two": 18, "three": 24, "comparison": 14, "equation": 18, "word": 9, "unknown": 5}
"""How often each kind is drawn in training, in percent."""
WAYS = {"templates": 26, "forms": 44, "follow-up": 16, "outside": 14}
"""How often each source of questions is drawn in the second half of imitation, in percent."""
FORMS = {"one": 24, "two": 24, "three": 20, "comparison": 14, "equation": 18}
"""How often each kind is asked in a form of the grammar, in percent."""
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


def templated(rng: random.Random) -> tuple[str, Problem]:
    """Return the text before a reply and its problem, in the words of `phrases`."""
    problem = draw(rng)
    return prompt(rng, problem), problem


def draw_way(rng: random.Random) -> tuple[str, Problem]:
    """Return the text before a reply and its problem, in any way of asking that is not held out."""
    way = rng.choices(list(WAYS), list(WAYS.values()))[0]
    if way == "follow-up":
        turns, problem = talks.draw(rng, evaluation=False)
        system = turn("system", rng.choice(SYSTEM)) if rng.random() < 0.15 else ""
        return talks.conversation(system, turns, problem.question), problem
    if way == "forms":
        problem = forms.asked(rng, rng.choices(list(FORMS), list(FORMS.values()))[0], evaluation=False)
    else:
        problem = outside.draw(rng, evaluation=False) if way == "outside" else draw(rng)
    return prompt(rng, problem), problem


def prompt(rng: random.Random, problem: Problem) -> str:
    """Return the text before the reply, sometimes with a system message or earlier turns."""
    text = f"<|im_start|>system\n{rng.choice(SYSTEM)}<|im_end|>\n" if rng.random() < 0.15 else ""
    if rng.random() < 0.12:
        for _ in range(rng.choice([1, 1, 2])):
            earlier = draw(rng)
            said = traces.SAY[earlier.language]["answer"].format(earlier.answer) if earlier.task else earlier.answer
            text += turn("user", problems.dressed(rng, earlier.question)) + turn("assistant", said)
    return text + turn("user", problems.dressed(rng, problem.question)) + "<|im_start|>assistant\n"


def encode(vocabulary: Tokenizer, before: list[str], replies: list[list[tuple[str, bool]]]) -> list[Example]:
    """Return an example for each prompt and reply. The mark of a reply's piece holds for the tokens that begin in that piece.

    Behind the end of its turn comes a line, as in the chat template: a run that ignores the end should go on with text.
    """
    end = "<|im_end|>\n"
    texts = [start + "".join(text for text, _ in reply) + end for start, reply in zip(before, replies, strict=True)]
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
    vocabulary: Tokenizer, rng: random.Random, tokens: int, ways: bool, pool: int = 2048
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (input ids, labels) without end: int64 of shape (rows, length), about `tokens` tokens, similar lengths together.

    With `ways`, problems are asked in all ways; else in the words of `phrases`.
    """
    while True:
        drawn = [draw_way(rng) if ways else templated(rng) for _ in range(pool)]
        replies = [traces.write(problem, rng, traces.Style.drawn(rng)).pieces for _, problem in drawn]
        yield from collate(encode(vocabulary, [before for before, _ in drawn], replies), rng, tokens)


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
