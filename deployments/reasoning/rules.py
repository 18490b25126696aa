"""All rules of a request for its next token, as its `extra_args` name them."""

from collections.abc import Callable, Sequence
from typing import Any

from deployments.reasoning import thought
from deployments.reasoning.limits import ARGUMENT, REPEAT, Chain, Repetition
from deployments.reasoning.pointer import Vocabulary
from deployments.reasoning.thought import Thought

Rule = Chain | Repetition | Thought


def rules_of(
    arguments: dict[str, Any] | None, output: list[int], end: Sequence[int] = (), vocabulary: Callable[[], Vocabulary] | None = None
) -> list[Rule]:
    """Return the rules in a request's `extra_args`, in the order in which they apply. `end` are the tokens that end its turn.

    A client's own arguments of these names are no rules: they are never mappings, because vLLM's API takes none.
    """
    given = arguments or {}
    rules: list[Rule] = []
    chain = Chain(given[ARGUMENT], output) if isinstance(given.get(ARGUMENT), dict) else None
    if isinstance(given.get(thought.ARGUMENT), dict):
        rules.append(Thought(given[thought.ARGUMENT], output, chain, end, vocabulary() if vocabulary else None))
    elif chain is not None:
        rules.append(chain)
    if isinstance(given.get(REPEAT), dict):
        rules.append(Repetition(given[REPEAT]["tokens"], output))
    return rules
