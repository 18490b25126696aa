"""A budget for following a grammar, inside the engine: a request whose grammar costs too much ends with an error.

The engine follows grammars between its steps, for all requests in turn; one that takes a second a token stalls them all. Which
grammars do cannot be told from their text (see `deployments.grammar_limits` for those that can), so each request's time is taken.
"""

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

FREE_S = 1.0
"""What a request may spend apart from its tokens: some masks are only made when they are needed first."""
A_TOKEN_S = 0.02


def spent_too_much(seconds: float, tokens: int) -> bool:
    """Return whether a request that has followed its grammar over so many tokens took too long for it."""
    return seconds > FREE_S + A_TOKEN_S * tokens


def install(grammar: Any = None) -> None:
    """Put a budget on vLLM's grammars (0.32.0: the class `grammar`, by default xgrammar's). Does nothing the second time.

    A grammar that does not accept its tokens ends its request with an error; so does one that has spent its budget.
    """
    from vllm.v1.structured_output.backend_xgrammar import XgrammarGrammar

    grammar = grammar or XgrammarGrammar
    if hasattr(grammar, "satori_spent"):
        return
    grammar.satori_spent, grammar.satori_tokens = 0.0, 0
    accept_tokens = _timed(grammar.accept_tokens)

    @wraps(grammar.accept_tokens)
    def accept_within_budget(self: Any, request_id: str, tokens: list[int]) -> bool:
        self.satori_tokens += len(tokens)
        return bool(accept_tokens(self, request_id, tokens)) and not spent_too_much(self.satori_spent, self.satori_tokens)

    grammar.accept_tokens = accept_within_budget
    grammar.fill_bitmask = _timed(grammar.fill_bitmask)


def _timed(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def timed(self: Any, *args: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(self, *args)
        finally:
            self.satori_spent += time.perf_counter() - began

    return timed
