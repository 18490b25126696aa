"""The steps of a scripted engine: one every `step_s`, as long as it has requests."""

import asyncio
import time
from typing import Generic, TypeVar

Reply = TypeVar("Reply")


class Stepping(Generic[Reply]):
    """A scripted engine. `_replies` are its open requests; a subclass says what a step does (`_step`)."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._replies: dict[str, Reply] = {}
        self._stepping: asyncio.Task[None] | None = None

    def _open(self, request_id: str, reply: Reply) -> None:
        """Add a request; it gets its first token with the next step."""
        self._replies[request_id] = reply
        if self._stepping is None or self._stepping.done():
            self._stepping = asyncio.create_task(self._run())

    async def _run(self) -> None:
        due = time.monotonic()
        while self._replies:
            due = max(due + self._step_s, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            self._step()

    def _step(self) -> None:
        raise NotImplementedError
