"""A reply as it is written: the outline of its thought, the answer and the measurements, from the chunks of the stream."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ui.assurance import assurance
from ui.errors import ApiError, LostError, from_event

MEASURABLE_S = 0.1
"""Tokens that all arrive within this time say nothing of how fast they were written."""


@dataclass
class Step:
    """A segment of the thought. Times are seconds since the question was sent; `tokens` is None until the API has reported it.

    A vote's chains are not streamed, so the page gets no times for its steps.
    """

    action: str | None
    index: int | None
    began_s: float
    text: str = ""
    ended_s: float | None = None
    tokens: int | None = None
    tokens_before: int = 0


class Reply:
    """The state that the page draws, built from chunks. Nothing is estimated: what the API did not report is None."""

    def __init__(self, id: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._id = id
        self._clock = clock
        self._asked = self._sent = clock()
        self._first_s: float | None = None
        self._last_s: float | None = None
        self._first_tokens = 1  # that came with the first chunk
        self._steps: list[Step] = []
        self._actions: list[str] = []
        self._content = ""
        self._coat: dict[str, Any] = {}
        self._vote: dict[str, Any] | None = None
        self._chains: list[dict[str, Any]] = []  # of the vote, as they ended
        self._usage: dict[str, Any] = {}
        self._finish: str | None = None
        self._eta_s: list[float] | None = None
        self._phase = "sent"
        self._waiting: dict[str, Any] | None = None
        self._error: dict[str, Any] | None = None
        self.stored = False
        """Whether the API keeps the reply, so that it can be read again."""
        self.last_event: int | None = None
        self.lost = False
        """Whether the connection to the API is lost, and sought."""
        self._timed = True

    @property
    def begun(self) -> bool:
        """Whether the API has sent anything of the reply."""
        return self._phase not in ("sent", "waiting")

    @property
    def running(self) -> bool:
        """Whether the reply has not ended."""
        return self._phase not in ("done", "error")

    def wait(self, error: ApiError) -> None:
        """Record that the question waits until a model can take it."""
        self._phase, self._waiting = "waiting", error.described()

    def send(self) -> None:
        """Record that the question is sent, perhaps again. Measured times start here."""
        self._sent = self._clock()

    def read_again(self) -> None:
        """Record that the reply is read from the API's store: what comes says nothing of how fast it was written."""
        self._timed = self._timed and self.begun

    def add(self, chunk: dict[str, Any], number: int | None = None) -> None:
        """Add a chunk of the stream; one whose number has been seen is left out. Raises `ApiError` where it ends with an error."""
        self.lost = False
        if number is not None:
            self.stored = True
            if self.last_event is not None and number <= self.last_event:
                return
            self.last_event = number
        if usage := chunk.get("usage"):
            self._usage = usage
        if vote := (chunk.get("coat") or {}).get("vote"):
            self._add_vote(vote)
            self._phase = "voting"
        for choice in chunk.get("choices", []):
            self._add_choice(choice)

    def end(self) -> None:
        """Record that the stream has ended. Raises `LostError` where the reply is not complete."""
        if self._finish is None:
            raise LostError("the stream ended before the reply did")
        self._phase = "done"

    def fail(self, error: ApiError) -> None:
        """Record what went wrong; what has arrived is kept."""
        self.lost = False
        self._close_step()
        self._phase, self._error = "error", error.described()

    def state(self) -> dict[str, Any]:
        """Return the reply so far, as JSON."""
        now, measured = self._elapsed(), self._timed and not self._vote
        return {
            "id": self._id,
            "phase": self._phase,
            "stored": self.stored,
            "lost": self.lost,
            "elapsed_s": round(self._clock() - self._asked, 1),
            "waiting": self._waiting if self._phase == "waiting" else None,
            "steps": [
                {
                    "action": step.action,
                    "text": step.text,
                    "seconds": round((now if step.ended_s is None else step.ended_s) - step.began_s, 1) if measured else None,
                    "tokens": step.tokens,
                }
                for step in self._steps
            ],
            "progress": self._progress() if self._phase == "thinking" else None,
            "content": self._content,
            "answer": self._coat.get("answer"),
            "vote": self._vote,
            "chains": self._chains,
            "finish": self._finish,
            "assurance": assurance(self._coat.get("segments"), self._vote, self._finish) if self._phase == "done" else None,
            "stats": self._stats() if self._phase in ("done", "error") else None,
            "error": self._error,
        }

    def _add_choice(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta") or {}
        coat = delta.get("coat") or {}
        thought = delta.get("reasoning") or delta.get("reasoning_content") or ""
        content = delta.get("content") or ""
        self._eta_s = coat.get("eta_s", self._eta_s)
        self._actions += coat.get("actions", [])  # before any text of the segments that they open
        if thought or content:
            self._record_token_time()
        if thought:
            self._add_thought(thought, coat)
        if content:
            self._close_step()
            self._content += content
            self._phase = "answering"
        if reason := choice.get("finish_reason"):
            if reason == "error":
                raise from_event(choice.get("error") or {"message": "the reply ended with an error"})
            self._close_step()
            self._finish = reason
            self._summarize(coat)

    def _add_vote(self, vote: dict[str, Any]) -> None:
        """Take over a vote, and its chains, of which each comes once."""
        self._vote = {name: value for name, value in vote.items() if name != "chains"}
        self._chains = [*self._chains, *vote.get("chains", [])]

    def _record_token_time(self) -> None:
        self._last_s = self._elapsed()
        if self._first_s is None:
            self._first_s = self._last_s
            self._first_tokens = self._usage.get("completion_tokens") or 1

    def _add_thought(self, text: str, coat: dict[str, Any]) -> None:
        self._phase = "thinking"
        index = coat.get("index")
        if not self._steps or index != self._steps[-1].index:
            self._close_step()
            self._steps.append(self._step(index))
        step = self._steps[-1]
        step.text += text
        if "completion_tokens" in self._usage:
            step.tokens = self._usage["completion_tokens"] - step.tokens_before

    def _step(self, index: int | None) -> Step:
        action = self._actions[index] if index is not None and index < len(self._actions) else None
        return Step(action, index, self._elapsed(), tokens_before=sum(step.tokens or 0 for step in self._steps))

    def _close_step(self) -> None:
        if self._steps and self._steps[-1].ended_s is None:
            self._steps[-1].ended_s = self._elapsed()

    def _summarize(self, coat: dict[str, Any]) -> None:
        """Take over what the API says of the complete reply: its last chunk may have text of several segments."""
        self._coat = coat
        if vote := coat.get("vote"):
            self._add_vote(vote)
        steps = {step.index: step for step in self._steps}
        segments = coat.get("segments")
        if segments is None:
            return
        self._steps = [steps.get(index) or self._step(index) for index in range(len(segments))]
        for step, segment in zip(self._steps, segments, strict=True):
            step.action, step.text, step.tokens = segment["action"], segment["text"], segment["tokens"]
        self._close_step()

    def _progress(self) -> dict[str, Any]:
        """Return how fast the reply is written, and how many seconds the API says it still takes: quantiles of 10, 50, 90 %."""
        return {"tokens_per_s": self._rate(self._usage.get("completion_tokens")), "eta_s": self._eta_s}

    def _stats(self) -> dict[str, Any]:
        tokens = self._usage.get("completion_tokens")
        details = self._usage.get("completion_tokens_details") or {}
        actions = [segment["action"] for segment in self._coat["segments"]] if "segments" in self._coat else None
        return {
            "ttft_s": None if self._vote or not self._timed or self._first_s is None else round(self._first_s, 3),
            "seconds": round(self._last_s or self._elapsed(), 2) if self._timed else None,
            "tokens_per_s": self._rate(tokens),
            "tokens": tokens,
            "prompt_tokens": self._usage.get("prompt_tokens"),
            "reasoning_tokens": details.get("reasoning_tokens"),
            "reflections": None if actions is None else actions.count("reflect"),
            "explorations": None if actions is None else actions.count("explore"),
        }

    def _rate(self, tokens: int | None) -> float | None:
        """Return tokens/s after the first chunk; None where it cannot be measured, as in a vote, whose chains are not streamed."""
        if self._vote or not self._timed or not tokens or self._first_s is None or self._last_s is None:
            return None
        count, seconds = tokens - self._first_tokens, self._last_s - self._first_s
        return round(count / seconds, 1) if seconds >= MEASURABLE_S and count > 0 else None

    def _elapsed(self) -> float:
        return self._clock() - self._sent
