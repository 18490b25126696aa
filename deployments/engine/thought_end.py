"""Where the grammar of a request begins, for vLLM's engine: behind the separator at a thought's end.

vLLM's engine (0.32.0) asks a reasoning parser when a thought has ended. Requests that think first send their separator with them
(`reasoning_parser_kwargs`); the grammar of all others begins with their first token.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from vllm.reasoning import ReasoningParser, ReasoningParserManager

NAME = "satori_thought"


@ReasoningParserManager.register_module(NAME)
class ThoughtEnd(ReasoningParser):
    """Finds the separator in the tokens of a reply. It reads no text."""

    def __init__(self, tokenizer: Any, *args: Any, separator: Sequence[int] = (), **kwargs: Any) -> None:
        super().__init__(tokenizer, *args, **kwargs)
        self._separator = list(separator)

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Return whether there is no thought to wait for."""
        return not self._separator

    def is_reasoning_end_streaming(self, input_ids: Sequence[int], delta_ids: Iterable[int]) -> bool:
        """Return whether the separator ends within the last tokens, `delta_ids`."""
        separator, new = self._separator, len(list(delta_ids))
        length = len(separator)
        tail = list(input_ids[max(0, len(input_ids) - new - length + 1) :])
        return any(tail[end - length : end] == separator for end in range(length, len(tail) + 1))

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """Return the tokens: the engine asks for nothing else."""
        return input_ids

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """Return the text as content: the engine asks for nothing else."""
        return None, model_output

    def extract_reasoning_streaming(self, *args: Any, **kwargs: Any) -> None:
        """Return nothing: the engine reads no text."""
