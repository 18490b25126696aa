"""A budget for following a grammar, inside the engine: a request whose grammar costs too much ends with an error.

The engine follows grammars between its steps, for all requests in turn, so a grammar that takes a second per token stalls them all.
Not all such grammars can be recognised by their text (`deployments.ingress.grammar_limits` refuses those that can), so the time of
each request is measured.
"""

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from deployments.patching import patch

FREE_S = 1.0
"""Seconds that a request may spend in addition to those for its tokens: some masks are only made at their first use."""
A_TOKEN_S = 0.02


def spent_too_much(seconds: float, tokens: int) -> bool:
    """Return whether following a grammar took a request too many seconds for this number of tokens."""
    return seconds > FREE_S + A_TOKEN_S * tokens


def install(*grammars: Any) -> None:
    """Put a budget on vLLM's grammars (0.32.0: these classes, by default guidance's and xgrammar's). Does nothing the second time.

    A grammar that does not accept its tokens ends its request with an error; so does one that has spent its budget, and one in
    which the backend has failed: vLLM would end that answer where it is, as if it were complete.
    """
    from vllm.v1.structured_output.backend_guidance import GuidanceGrammar
    from vllm.v1.structured_output.backend_xgrammar import XgrammarGrammar

    for grammar in grammars or (GuidanceGrammar, XgrammarGrammar):
        _install(grammar)


def _install(grammar: Any) -> None:
    if hasattr(grammar, "satori_spent"):
        return
    grammar.satori_spent, grammar.satori_tokens = 0.0, 0
    accept_tokens = _timed(grammar.accept_tokens)

    @wraps(grammar.accept_tokens)
    def accept_within_budget(self: Any, request_id: str, tokens: list[int]) -> bool:
        self.satori_tokens += len(tokens)
        accepted = bool(accept_tokens(self, request_id, tokens)) and not _failed(self)
        return accepted and not spent_too_much(self.satori_spent, self.satori_tokens)

    why, until = "nothing in vLLM 0.32.0 bounds the time that following a grammar takes", "vLLM bounds it"
    patch(grammar, "accept_tokens", accept_within_budget, why=why, until=until)
    patch(grammar, "fill_bitmask", _timed(grammar.fill_bitmask), why=why, until=until)


def _failed(grammar: Any) -> bool:
    matcher = getattr(grammar, "ll_matcher", None)
    return matcher is not None and bool(matcher.is_error())


def _timed(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def timed(self: Any, *args: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(self, *args)
        finally:
            self.satori_spent += time.perf_counter() - began

    return timed
