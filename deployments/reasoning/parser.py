"""The reasoning parser `coat` for vLLM: a reply's thought goes to `reasoning`, its closing statement to `content`.

Registered under that name when this module is imported. The chat endpoint reads more from it: segments, tokens and the boxed answer
(see `deployments.reasoning.serving`).
"""

from collections import deque
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.reasoning import ReasoningParser, ReasoningParserManager

from deployments.errors import SatoriError
from deployments.reasoning.coat import ACTIONS, Delta, Reader, TokenSplitter, boxed


@lru_cache(maxsize=8)
def action_ids(tokenizer: Any) -> dict[int, str]:
    """Return the names of the actions by token id. Raises SatoriError when the tokenizer lacks one."""
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in ACTIONS if token not in vocabulary]:
        raise SatoriError(f"the model's tokenizer has no {' '.join(missing)}: the model does not write a Chain of Action-Thought")
    return {vocabulary[token]: name for token, name in ACTIONS.items()}


class Transcript:
    """One reply as read so far: the text of its segments and of its answer, and its token `ids`, which may be ahead of the text."""

    def __init__(self, tokenizer: Any, actions: dict[int, str]) -> None:
        self._tokenizer = tokenizer
        self._actions = actions
        self._deltas: list[Delta] = []
        self.answered = False
        self.ids: list[int] = []

    def add(self, delta: Delta) -> None:
        """Add a piece of text."""
        self._deltas.append(delta)
        self.answered |= delta.content

    @property
    def content(self) -> str:
        """The text of the answer."""
        return "".join(delta.text for delta in self._deltas if delta.content)

    @property
    def answer(self) -> str | None:
        """The content of the answer's box; None without one."""
        return boxed(self.content)

    @property
    def reasoning_tokens(self) -> int:
        """The number of tokens of the thought, including its actions."""
        return sum(self._token_counts())

    def segments(self) -> list[dict[str, Any]]:
        """Return the segments of the thought: `action`, `text`, and `tokens` (without those of the answer)."""
        texts: dict[int, list[str]] = {}
        actions: dict[int, str | None] = {}
        for delta in self._deltas:
            if not delta.content:
                texts.setdefault(delta.number, []).append(delta.text)
                actions[delta.number] = delta.action
        counts = self._token_counts()
        counts += [0] * (len(texts) - len(counts))  # only if text looked like an action and was none
        return [
            {"action": actions[index], "text": "".join(parts), "tokens": count}
            for (index, parts), count in zip(texts.items(), counts, strict=False)
        ]

    def summary(self) -> dict[str, Any]:
        """Return what a client gets under `coat` when the reply is complete."""
        return {"segments": self.segments(), "answer": self.answer}

    def _token_counts(self) -> list[int]:
        """Return the number of tokens of each segment that an action opened, without those of the answer."""
        counter = TokenSplitter(self._actions)
        counter.feed(self.ids)
        counts = [count for action, count in counter.counts if action is not None]
        if counts and (content := self.content):
            counts[-1] -= self._answer_tokens(self.ids[len(self.ids) - counts[-1] :], len(content))
        return counts

    def _answer_tokens(self, last: list[int], characters: int) -> int:
        """Return how many tokens at the end of the last segment hold the answer; the end of the turn is one of them."""
        low, high = 0, len(last)
        while low < high:
            middle = (low + high + 1) // 2
            if len(self._tokenizer.decode(last[middle:], skip_special_tokens=True)) >= characters:
                low = middle
            else:
                high = middle - 1
        return len(last) - low


@ReasoningParserManager.register_module("coat")
class CoatReasoningParser(ReasoningParser):
    """Parses one reply. A chunk that goes out has text of one segment only; further text waits for the next chunk.

    `off` makes it return everything as content, unchanged. `engine_based_streaming` tells vLLM not to pass all the text so far with
    every token.
    """

    engine_based_streaming = True
    off = False

    def __init__(self, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(tokenizer, *args, **kwargs)
        self._reader = Reader()
        self._waiting: deque[Delta] = deque()
        self._line = (-1, True)  # the segment shown last, and whether its text ended with a line break
        self._actions = action_ids(tokenizer)
        self.transcript = Transcript(tokenizer, self._actions)

    def adjust_request(self, request: Any) -> Any:
        """Return the request, changed so that the actions appear in the text."""
        request.skip_special_tokens = False
        return request

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Return whether all further text is content: only if `off`."""
        return self.off

    def is_reasoning_end_streaming(self, input_ids: Sequence[int], delta_ids: Iterable[int]) -> bool:
        """Return whether all further text is content: only if `off`, because an action may follow an answer."""
        return self.off

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """Return the ids after the end of reasoning, for tool parsers: none unless `off`, because reasoning has no such end."""
        return input_ids if self.off else []

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        """Return how many of a reply's tokens are reasoning."""
        if self.off:
            return 0
        if token_ids and token_ids[0] in self._actions and not self.transcript.answered:
            return len(token_ids)  # called with every token of a stream that wants its usage in every chunk
        self.transcript.ids = list(token_ids)
        return self.transcript.reasoning_tokens

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """Return the reasoning and the content of a complete reply, None for each that it lacks."""
        if self.off:
            return None, model_output
        reader = Reader()
        deltas = reader.feed(model_output) + reader.finish()
        for delta in deltas:
            self.transcript.add(delta)
        reasoning = "".join(self._shown(delta) for delta in deltas if not delta.content)
        return reasoning or None, self.transcript.content or None

    def extract_reasoning_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
    ) -> DeltaMessage | None:
        """Return the next chunk for the client; None if nothing is certain yet."""
        self.feed(delta_text)
        delta = self.next()
        if delta is None:
            return None
        return DeltaMessage(content=delta.text) if delta.content else DeltaMessage(reasoning=delta.text)

    def finish_streaming(self) -> DeltaMessage | None:
        """Return all that is left; called by vLLM after the last token."""
        reasoning, content = self.rest()
        return DeltaMessage(reasoning=reasoning, content=content) if reasoning or content else None

    def feed(self, text: str) -> None:
        """Parse more of the reply."""
        self._add(self._reader.feed(text))

    def next(self) -> Delta | None:
        """Return the next piece for the client: of one segment, or of the answer."""
        return self._waiting.popleft() if self._waiting else None

    def rest(self) -> tuple[str | None, str | None]:
        """End the parsing; return the reasoning and the content that were not returned yet."""
        self._add(self._reader.finish())
        parts = ["".join(delta.text for delta in self._waiting if delta.content == content) for content in (False, True)]
        self._waiting.clear()
        return parts[0] or None, parts[1] or None

    def _add(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            self.transcript.add(delta)
            if not delta.content and (shown := self._shown(delta)) != delta.text:
                delta = delta._replace(text=shown)
            last = self._waiting[-1] if self._waiting else None
            if last and (last.content, last.number) == (delta.content, delta.number):
                self._waiting[-1] = last._replace(text=last.text + delta.text)
            else:
                self._waiting.append(delta)

    def _shown(self, delta: Delta) -> str:
        """Return a piece of reasoning as clients see it: a segment starts on a new line, in place of its action."""
        text = delta.text
        if delta.number != self._line[0]:
            text = "\n" * (not self._line[1]) + text
        if text:
            self._line = (delta.number, text.endswith("\n"))
        return text
