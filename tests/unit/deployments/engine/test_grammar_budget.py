"""The budget for following a grammar: who spends it ends with an error, the others notice nothing."""

import time

import pytest
from vllm.v1.structured_output.backend_xgrammar import XgrammarGrammar

from deployments.engine import grammar_budget
from deployments.engine.grammar_budget import A_TOKEN_S, FREE_S
from tests.support.clock import Clock


class Grammar:
    """A grammar that takes `seconds` for whatever it does."""

    def __init__(self, clock: Clock, seconds: float, accepts: bool = True) -> None:
        self._clock, self._seconds, self._accepts = clock, seconds, accepts

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        self._clock.now_s += self._seconds
        return self._accepts

    def fill_bitmask(self, bitmask: object, index: int) -> None:
        self._clock.now_s += self._seconds
        if bitmask is None:
            raise ValueError("no mask")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


@pytest.fixture
def budgeted() -> type[Grammar]:
    class Budgeted(Grammar):
        accept_tokens = Grammar.accept_tokens
        fill_bitmask = Grammar.fill_bitmask

    grammar_budget.install(Budgeted)
    grammar_budget.install(Budgeted)  # as with two logits processors in one process
    return Budgeted


def lived(grammar: Grammar, most: int = 1000) -> int:
    """Return for how many tokens a grammar goes on."""
    for count in range(most):
        grammar.fill_bitmask(object(), 0)
        if not grammar.accept_tokens("a", [1]):
            return count
    return most


def test_an_expensive_grammar_ends_and_a_cheap_one_goes_on(budgeted: type[Grammar], clock: Clock) -> None:
    assert lived(budgeted(clock, A_TOKEN_S / 3)) == 1000
    assert lived(budgeted(clock, FREE_S)) == 0
    share = 5 * A_TOKEN_S  # a call, of which there are two a token: ten times a token's budget
    assert lived(budgeted(clock, share)) == pytest.approx(FREE_S / (2 * share - A_TOKEN_S), abs=1)


def test_each_request_has_its_own_budget_and_the_grammar_the_say(budgeted: type[Grammar], clock: Clock) -> None:
    dear, cheap, never = budgeted(clock, FREE_S), budgeted(clock, 0), budgeted(clock, 0, accepts=False)
    assert not all(dear.accept_tokens("a", [1]) for _ in range(2))
    assert cheap.accept_tokens("b", [1])
    assert not never.accept_tokens("c", [1])


def test_time_counts_where_a_call_fails(budgeted: type[Grammar], clock: Clock) -> None:
    grammar = budgeted(clock, 0.6 * FREE_S)
    with pytest.raises(ValueError, match="no mask"):
        grammar.fill_bitmask(None, 0)
    assert not grammar.accept_tokens("a", [1])


def test_vllms_grammar_has_what_is_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("accept_tokens", "fill_bitmask"):
        monkeypatch.setattr(XgrammarGrammar, name, getattr(XgrammarGrammar, name))  # put back afterwards
    for name in ("satori_spent", "satori_tokens"):
        monkeypatch.setattr(XgrammarGrammar, name, 0, raising=False)
        monkeypatch.delattr(XgrammarGrammar, name)
    before = XgrammarGrammar.accept_tokens
    grammar_budget.install()
    assert XgrammarGrammar.accept_tokens is not before
    assert XgrammarGrammar.accept_tokens.__wrapped__ is before
