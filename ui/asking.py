"""Asking a question: yields the reply's state as it grows, waits for a model that is not there yet, ends in words when it fails."""

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
"""Tokens that come within this time go to the browser together, so that a fast model costs no more than a slow one."""
BEAT_S = 2.0
"""The longest silence towards the browser, which by it tells a slow reply from a lost connection."""
AGAIN_S = 1.0
PATIENCE_S = 1800.0
"""How long a question waits for a model."""
AT_MOST_EARLY = 1000
"""Stops that are remembered for questions still on their way."""


class Stops:
    """Which questions the user has stopped, by their ids. A stop may overtake its question on the way."""

    def __init__(self) -> None:
        self._early: deque[str] = deque(maxlen=AT_MOST_EARLY)
        self._running: dict[str, asyncio.Task[None]] = {}

    def stop(self, question_id: str) -> None:
        """Stop a reply; one that has ended already stays as it is."""
        if (task := self._running.get(question_id)) is not None:
            task.cancel()
        else:
            self._early.append(question_id)

    @contextmanager
    def listening(self, question_id: str, task: asyncio.Task[None]) -> Iterator[None]:
        """Within this context, a stop of the question cancels the task."""
        if question_id in self._early:
            task.cancel()
        self._running[question_id] = task
        try:
            yield
        finally:
            del self._running[question_id]


async def ask(client: Client, question: Question, stops: Stops) -> AsyncGenerator[dict[str, Any]]:
    """Yield the states of the reply to a question; the last one is done or an error, unless it was stopped.

    Closing this stops the request.
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
    """Bring a reply up to date until it has ended."""
    try:
        async with asyncio.timeout(None) as limit:
            limit.reschedule(asyncio.get_running_loop().time() + PATIENCE_S)
            while not await _attempt(client, question, reply, changed, limit):
                await asyncio.sleep(AGAIN_S)
    except TimeoutError:
        reply.fail(LoadingError())
    except ApiError as error:
        reply.fail(error)


async def _attempt(client: Client, question: Question, reply: Reply, changed: asyncio.Event, limit: asyncio.Timeout) -> bool:
    """Send the question and read the reply; False where no model could take it yet."""
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
