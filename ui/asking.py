"""Asks a question: yields the reply's state as it grows, waits until a model is ready, and returns a failure as a state."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Any

from ui.client import Client
from ui.errors import ApiError, LoadingError, UnreachableError
from ui.question import Question
from ui.reply import Reply

PACE_S = 0.08
"""Tokens that arrive within this time go to the browser together, so a fast model costs no more than a slow one."""
BEAT_S = 2.0
"""The browser gets a state at least this often, so it can tell a slow reply from a lost connection."""
RETRY_S = 1.0
"""Pause between two attempts to send a question."""
PATIENCE_S = 1800.0
"""How long a question waits for a model."""
MAX_EARLY_STOPS = 1000
"""Most stops that are kept for questions that have not arrived yet."""


class Stops:
    """The questions that users have stopped, by id. A stop may arrive before its question."""

    def __init__(self) -> None:
        self._early: deque[str] = deque(maxlen=MAX_EARLY_STOPS)
        self._running: dict[str, asyncio.Task[None]] = {}

    def stop(self, question_id: str) -> None:
        """Stop a reply; one that has already ended stays as it is."""
        if (task := self._running.get(question_id)) is not None:
            task.cancel()
        else:
            self._early.append(question_id)

    @contextmanager
    def listening(self, question_id: str, task: asyncio.Task[None]) -> Iterator[None]:
        """Within this context, stopping the question cancels the task."""
        if question_id in self._early:
            task.cancel()
        self._running[question_id] = task
        try:
            yield
        finally:
            del self._running[question_id]


async def ask(client: Client, question: Question, stops: Stops) -> AsyncGenerator[dict[str, Any]]:
    """Yield the states of the reply to a question; the last one is done or an error, unless the reply was stopped.

    Closing the generator stops the request.
    """
    reply = Reply(question.id)
    changed = asyncio.Event()
    task = asyncio.create_task(_follow(client, question, reply, changed))
    task.add_done_callback(lambda _: changed.set())
    try:
        with stops.listening(question.id, task):
            while not task.done():
                yield reply.state()
                await asyncio.sleep(PACE_S)
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), BEAT_S)
                changed.clear()
        if not task.cancelled():
            await task
            yield reply.state()
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _follow(client: Client, question: Question, reply: Reply, changed: asyncio.Event) -> None:
    """Ask until a model takes the question, and keep the reply up to date until it ends."""
    try:
        async with asyncio.timeout(None) as limit:
            limit.reschedule(asyncio.get_running_loop().time() + PATIENCE_S)
            while not await _attempt(client, question, reply, changed, limit):
                await asyncio.sleep(RETRY_S)
    except TimeoutError:
        reply.fail(LoadingError())
    except ApiError as error:
        reply.fail(error)


async def _attempt(client: Client, question: Question, reply: Reply, changed: asyncio.Event, limit: asyncio.Timeout) -> bool:
    """Send the question and read the reply. Return False where no model could take it yet."""
    reply.send()
    try:
        async with aclosing(client.chat(question.body(), question.key)) as chunks:
            async for chunk in chunks:
                limit.reschedule(None)
                reply.add(chunk)
                changed.set()
        reply.end()
    except (LoadingError, UnreachableError) as error:
        if reply.begun:
            raise
        reply.wait(error)
        changed.set()
        return False
    return True
