"""How well lengths of chains are predicted: `python -m cluster.simulate.lengths`.

Each of the chains in `chains.csv`, which nano wrote, and each reply of a synthetic workload is predicted from four fifths of the
others (`deployments.routing.lengths`), at several ages. Prints how many lay in the interval of 80 %, from the 10 % to the 90 %
quantile.
"""

import argparse
import csv
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cluster.simulate.workloads import LONGEST_REPLY, prompts, replies
from deployments.reasoning.effort import EFFORTS
from deployments.routing.lengths import Asked, Lengths

CHAINS = Path(__file__).with_name("chains.csv")
"""Replies of nano to questions of `cluster.evaluate`'s sets, at a temperature of 0.7 and several efforts, from one run.

`actions` are the first letters of each chain's actions, with the tokens before them."""
CONTEXT = 4096
AGES = (0, 32, 64, 128, 512)
FOLDS = 5


class Chain(NamedTuple):
    """A chain that has ended: what was asked for, its length and the tokens before each of its turns; whether it was cut off."""

    asked: Asked
    tokens: int
    turns: tuple[int, ...] = ()
    cut: bool = False


@dataclass
class Held:
    """How many chains of some age were predicted; how many had fewer tokens than their interval, more, and how wide these were."""

    chains: int = 0
    below: int = 0
    above: int = 0
    width: float = 0.0

    @property
    def inside(self) -> float:
        """The share of the chains that lay in their interval."""
        return 1 - (self.below + self.above) / self.chains if self.chains else 0.0


def recorded(path: Path = CHAINS) -> list[Chain]:
    """Return the chains of nano: replies that have actions."""
    with path.open(newline="") as file:
        return [_chain(row) for row in csv.DictReader(file) if row["actions"]]


def _chain(row: dict[str, str]) -> Chain:
    most = int(row["max_tokens"] or CONTEXT - int(row["question_tokens"]))
    budget = EFFORTS.get(row["effort"], {}).get("max_reasoning_tokens")
    turns = tuple(int(action[1:]) for action in row["actions"].split() if action[0] in "re")
    asked = Asked(int(row["question_tokens"]), most, row["effort"], budget)
    return Chain(asked, int(row["tokens"]), turns, row["finish_reason"] == "length")


def made(count: int, seed: int, reasoning: bool) -> list[Chain]:
    """Return replies as the synthetic workloads have them: heavy-tailed in two modes, or chats."""
    rng = np.random.default_rng(seed)
    rows = zip(prompts(rng, count).tolist(), replies(rng, count, reasoning).tolist(), strict=True)
    return [Chain(Asked(int(question), CONTEXT), int(length), cut=length == LONGEST_REPLY) for question, length in rows]


def calibration(chains: Sequence[Chain], seed: int, ages: Iterable[int] = AGES) -> dict[int, Held]:
    """Predict each chain from the other folds, at each of these ages that it reached. Chains that were cut off only teach."""
    order = np.random.default_rng(seed).permutation(len(chains))
    held = {age: Held() for age in ages}
    for fold in range(FOLDS):
        lengths = Lengths()
        for place, number in enumerate(order):
            if place % FOLDS != fold:
                chain = chains[number]
                lengths.observe(chain.asked, chain.tokens, chain.turns, cut=chain.cut)
        for number in order[fold::FOLDS]:
            _judge(chains[number], lengths, held)
    return held


def _judge(chain: Chain, lengths: Lengths, held: dict[int, Held]) -> None:
    for age, counts in held.items():
        left = chain.tokens - age
        if left > 0 and not chain.cut:
            told = lengths.forecast(chain.asked, age, sum(turn < age for turn in chain.turns))
            counts.chains += 1
            counts.below += left < told.low
            counts.above += left > told.high
            counts.width += told.high - told.low


def main(arguments: list[str] | None = None) -> None:
    """Print the calibration, and what a prediction takes."""
    parser = argparse.ArgumentParser(prog="python -m cluster.simulate.lengths", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--seed", type=int, default=1, help="of the synthetic replies, and of what is held out")
    seed = parser.parse_args(arguments).seed
    print(
        "| chains | tokens so far | predicted | in the interval % | below % | above % | mean width |\n|---|---|---|---|---|---|---|"
    )
    nano = recorded()
    for name, chains in (("nano", nano), ("reasoning", made(3000, seed, True)), ("chat", made(3000, seed, False))):
        for age, held in calibration(chains, seed).items():
            if held.chains >= 100:
                print(
                    f"| {name} | {age} | {held.chains} | {100 * held.inside:.1f} | {100 * held.below / held.chains:.1f}"
                    f" | {100 * held.above / held.chains:.1f} | {held.width / held.chains:.0f} |"
                )
    lengths, began = Lengths(), time.process_time()
    for chain in nano:
        lengths.observe(chain.asked, chain.tokens, chain.turns, cut=chain.cut)
    learned = time.process_time()
    for chain in nano:
        lengths.observe(chain.asked, chain.tokens, chain.turns, cut=chain.cut)
        lengths.forecast(chain.asked)
    both = time.process_time() - learned
    micros = 1e6 / len(nano)
    print(
        f"\nA chain is learned in {micros * (learned - began):.0f} µs, learned and another one predicted in {micros * both:.0f} µs."
    )


if __name__ == "__main__":
    main()
