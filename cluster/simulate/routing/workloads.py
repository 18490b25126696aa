"""Requests for the simulator of routes: who asks what, and which prompts begin alike.

Lengths of replies are log-normal, which is heavy-tailed. Of the variance of their logarithm, the share `KNOWN` can be told from the
prompt; the rest shows only while a reply is written. The next turn of a chat comes when the one before was answered and read.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from cluster.simulate.routing.replica import BLOCK, Request

KNOWN = 0.5
LONGEST_REPLY, LONGEST_PROMPT = 6000, 40_000


@dataclass
class Source:
    """Makes requests: `arrivals` is a heap of those that have not arrived."""

    rng: np.random.Generator
    arrivals: list[tuple[float, int, Request]] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def text(self, tokens: int) -> list[int]:
        """Return the ids of so many tokens' blocks of a text that nobody else has."""
        return [next(self.numbers) for _ in range(tokens // BLOCK)]

    def reply(self, median: float, sigma: float) -> tuple[int, float, float]:
        """Return a reply's length, and the mean and spread of its logarithm as they can be told before."""
        logarithm = math.log(median) + sigma * math.sqrt(KNOWN) * self.rng.standard_normal()
        spread = sigma * math.sqrt(1 - KNOWN)
        length = math.exp(logarithm + spread * self.rng.standard_normal())
        return int(min(max(length, 2), LONGEST_REPLY)), logarithm, spread

    def ask(self, at_s: float, prefix: list[int], own_tokens: int, median: float, sigma: float, group: str = "") -> Request:
        """Add a request: a prefix of whole blocks, and then tokens of its own."""
        reply, logarithm, spread = self.reply(median, sigma)
        prompt = len(prefix) * BLOCK + own_tokens
        blocks = [*prefix, *self.text(prompt + reply - len(prefix) * BLOCK)]
        number = next(self.numbers)
        request = Request(at_s, prompt, reply, blocks, logarithm, spread, group or str(number), number=number)
        heapq.heappush(self.arrivals, (at_s, number, request))
        return request

    def poisson(self, rate: float, duration_s: float) -> list[float]:
        """Return arrival times."""
        return sorted(self.rng.uniform(0, duration_s, self.rng.poisson(rate * duration_s)).tolist())


def chat(source: Source, at_s: float, system: list[int], turns: int, until_s: float) -> None:
    """Add a chat that begins then; each next turn has the whole chat before it in its prompt, and a question of its own."""
    rng = source.rng

    def turn(at_s: float, history: list[int], own: int, left: int) -> None:
        request = source.ask(at_s, history, own, 300, 0.8)

        def then(end_s: float) -> None:
            next_s = end_s + rng.exponential(8.0) + 1
            if left > 1 and next_s < until_s:
                turn(next_s, request.blocks, int(rng.exponential(120)) + 80, left - 1)

        request.then = then

    turn(at_s, system, int(rng.exponential(600)) + 80, turns)


def multi_turn(source: Source, duration_s: float, scale: float, median: int = 8) -> None:
    """Chats of about eight turns."""
    system = source.text(256)
    for at_s in source.poisson(1.6 * scale, duration_s):
        chat(source, at_s, system, 1 + int(source.rng.geometric(1 / median)), duration_s)


def few_shot(source: Source, duration_s: float, scale: float) -> None:
    """An evaluation: questions of 57 subjects in random order, each after its subject's examples (MMLU has 57, with 5 examples)."""
    examples = [source.text(int(tokens)) for tokens in source.rng.uniform(1500, 4000, 57)]
    for at_s in source.poisson(14 * scale, duration_s):
        source.ask(at_s, examples[source.rng.integers(57)], 100 + int(source.rng.exponential(60)), 150, 0.8)


def heavy_tails(source: Source, duration_s: float, scale: float) -> None:
    """Reasoning on short questions: most chains are short, and some very long."""
    for at_s in source.poisson(6.5 * scale, duration_s):
        source.ask(at_s, [], 60 + int(source.rng.exponential(90)), 420, 1.25)


def documents(source: Source, duration_s: float, scale: float) -> None:
    """Short answers on texts: most are short, and some very long."""
    for at_s in source.poisson(9 * scale, duration_s):
        tokens = min(int(source.rng.lognormal(math.log(900), 1.4)), LONGEST_PROMPT)
        source.ask(at_s, [], max(tokens, 20), 60, 0.9)


def votes(source: Source, duration_s: float, scale: float) -> None:
    """Votes of eight samples."""
    for number, at_s in enumerate(source.poisson(0.9 * scale, duration_s)):
        prompt = source.text(BLOCK * (3 + int(source.rng.exponential(6))))
        median = 450 * math.exp(0.6 * source.rng.standard_normal())
        for _ in range(8):
            source.ask(at_s, prompt, 10, median, 0.6, f"vote-{number}")


def shared_prompt(source: Source, duration_s: float, scale: float) -> None:
    """Everybody's prompt begins with the same 4,000 tokens."""
    system = source.text(4000)
    for at_s in source.poisson(22 * scale, duration_s):
        source.ask(at_s, system, 80 + int(source.rng.exponential(150)), 250, 0.9)


def hot_tenant(source: Source, duration_s: float, scale: float) -> None:
    """Forty tenants with prefixes of 3,000 tokens, one of which sends half of the requests."""
    prefixes = [source.text(3000) for _ in range(40)]
    for at_s in source.poisson(14 * scale, duration_s):
        tenant = 0 if source.rng.random() < 0.5 else int(source.rng.integers(1, 40))
        source.ask(at_s, prefixes[tenant], 80 + int(source.rng.exponential(150)), 250, 0.9)


@dataclass(frozen=True)
class Workload:
    """Requests over `duration_s`. Every `replaced_s` a replica is lost, and a new one comes `START_S` later."""

    fill: Callable[[Source, float, float], None]
    replaced_s: float = math.inf
    duration_s: float = 300.0

    def source(self, seed: int, replicas: int) -> Source:
        """Return its requests for so many replicas."""
        made = Source(np.random.default_rng(seed))
        self.fill(made, self.duration_s, replicas / 8)
        return made


WORKLOADS = {
    "multi-turn": Workload(multi_turn),
    "few-shot": Workload(few_shot),
    "heavy tails": Workload(heavy_tails),
    "documents": Workload(documents),
    "votes": Workload(votes),
    "shared prompt": Workload(shared_prompt),
    "hot tenant": Workload(hot_tenant),
    "come and go": Workload(multi_turn, replaced_s=40.0),
}
START_S = 30.0
