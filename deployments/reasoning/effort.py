"""How long a model is to think, as clients of OpenAI's and Anthropic's APIs ask: efforts and budgets as limits of a chain.

`reasoning_effort` (chat), `reasoning.effort` (Responses), `output_config.effort` and `thinking` (Anthropic's messages) and
`thinking_token_budget` (vLLM's) come down to these. What a request sets in `coat` itself comes before them.
"""

from typing import Any

from vllm.sampling_params import SamplingParams

from deployments.reasoning.limits import ARGUMENT

EFFORTS: dict[str, dict[str, int]] = {
    "none": {"max_reasoning_tokens": 0},
    "minimal": {"max_reasoning_tokens": 200, "max_reflections": 0, "max_explorations": 0},
    "low": {"max_reasoning_tokens": 400, "max_reflections": 1, "max_explorations": 1},
    "medium": {},
    "high": {"min_reflections": 2},
    "xhigh": {"min_reflections": 4},
    "max": {"min_reflections": 6},
}
"""Limits by effort, in tokens and segments. The page's three are low, medium and high."""


def apply(params: SamplingParams, effort: str | None, tokens: dict[str, Any]) -> None:
    """Turn an effort and vLLM's budget of thinking tokens into limits for the logits processor, whose token ids are `tokens`."""
    asked = dict(EFFORTS.get(effort or "", {}))
    if params.thinking_token_budget is not None:
        asked["max_reasoning_tokens"] = params.thinking_token_budget
        params.thinking_token_budget = None  # vLLM's own processor needs marks around a thought, which a chain does not have
    if not asked:
        return
    extra = params.extra_args or {}
    own = extra.get(ARGUMENT, {})
    most = own.get("max_reflections")
    if most is not None and asked.get("min_reflections", 0) > most:
        del asked["min_reflections"]
    params.extra_args = extra | {ARGUMENT: tokens | {"planted": []} | asked | own}
