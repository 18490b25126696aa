"""Asks a question: yields the reply's state as it grows, waits until a model is ready, and returns a failure as a state.

The API is asked to store the reply. One that it stores goes on where it was after a connection has broken.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager, suppress
from http import HTTPStatus
from typing import Any

from ui.client import Client
from ui.errors import ApiError, GoneError, LoadingError, LostError, NotStoredError, TakenError, UnreachableError, from_event
from ui.question import Question
from ui.reply import Reply

PACE_S = 0.15
"""Tokens that arrive within this time go to the browser together, so a fast model costs no more than a slow one."""
BEAT_S = 2.0
"""The browser gets a state at least this often, so it can tell a slow reply from a lost connection."""
RETRY_S = 1.0
"""Pause between two attempts to send a question, or to read a reply."""
PATIENCE_S = 1800.0
"""How long a question waits for a model, and a stored reply for the API."""
MAX_STOPS = 1000
"""Most stops that are kept for questions that have not arrived yet."""
PASSING = (HTTPStatus.NOT_FOUND, HTTPStatus.TOO_MANY_REQUESTS)
"""What a server or its proxy says of a stored reply while it starts, or has much to do. One that is gone has a code of its own."""


class Stops:
    """The questions that users have stopped, by id. A stop may arrive before its question."""

    def __init__(self) -> None:
        self._stopped: deque[str] = deque(maxlen=MAX_STOPS)
        self._running: defaultdict[str, set[asyncio.Task[None]]] = defaultdict(set)

    async def stop(self, question_id: str) -> None:
        """Stop a reply, and wait until nobody reads it any more; one that has already ended stays as it is."""
        self._stopped.append(question_id)
        if tasks := self._running.get(question_id):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    @contextmanager
    def listening(self, question_id: str, task: asyncio.Task[None]) -> Iterator[None]:
        """Within this context, stopping the question cancels the task."""
        if question_id in self._stopped:
            task.cancel()
        self._running[question_id].add(task)
        try:
            yield
        finally:
            self._running[question_id].discard(task)
            if not self._running[question_id]:
                del self._running[question_id]


async def ask(client: Client, question: Question, stops: Stops) -> AsyncGenerator[dict[str, Any]]:
    """Yield the states of the reply to a question; the last one is done or an error, unless the reply was stopped.

    Closing the generator stops a request whose reply the API does not store.
    """
    reply = Reply(question.id)
    changed = asyncio.Event()
    task = asyncio.create_task(_Pursuit(client, question, reply, changed).run())
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


class _Pursuit:
    """Asks until a model takes the question, and keeps the reply up to date until it ends, over as many connections as it takes."""

    def __init__(self, client: Client, question: Question, reply: Reply, changed: asyncio.Event) -> None:
        self._client, self._question, self._reply, self._changed = client, question, reply, changed
        self._storing = question.storable
        self._resuming = reply.stored = question.resumed
        self._cause: LostError | None = None  # why it is not known whether the reply is stored

    async def run(self) -> None:
        """Return when the reply has ended."""
        try:
            async with asyncio.timeout(PATIENCE_S) as limit:
                while not await self._attempt(limit):
                    await asyncio.sleep(RETRY_S)
        except TimeoutError:
            self._reply.fail(LoadingError())
        except ApiError as error:
            self._reply.fail(error)

    async def _attempt(self, limit: asyncio.Timeout) -> bool:
        """Send the question, or go on with the reply, and read. Return False where that is to be tried again."""
        try:
            await self._read(limit)
        except TakenError:
            self._resuming = True
            return await self._attempt(limit)
        except NotStoredError:
            self._storing = False
            return await self._attempt(limit)
        except ApiError as error:
            self._again_after(error)
            if limit.when() is None:
                limit.reschedule(asyncio.get_running_loop().time() + PATIENCE_S)
            self._changed.set()
            return False
        if self._reply.running:
            self._reply.end()
        return True

    async def _read(self, limit: asyncio.Timeout) -> None:
        reply = self._reply
        if self._resuming:
            reply.read_again()
            events = self._client.resume(self._question, reply.last_event)
        else:
            reply.send()
            events = self._client.chat(self._question, self._storing)
        async with aclosing(events):
            async for number, chunk in events:
                limit.reschedule(None)
                reply.stored |= self._resuming
                if failed := chunk.get("error"):
                    error = from_event(failed)
                    if number is None:  # an ingress of the API cannot go on; the reply can, if it is stored
                        raise LostError(error.message) if reply.stored else error
                    reply.fail(error)
                    return
                reply.add(chunk, number)
                self._changed.set()

    def _again_after(self, error: ApiError) -> None:
        """Choose what is tried next; raise the error where nothing is."""
        reply = self._reply
        if isinstance(error, GoneError) and not reply.stored:  # it was never stored: the connection broke before
            self._resuming = False
        elif reply.stored:
            if not passes(error):
                raise error
            self._resuming = True
        elif isinstance(error, LostError) and self._storing and not reply.begun:  # it may be stored
            self._resuming, self._cause = True, error
        elif self._cause is not None:
            if not passes(error) or error.status == HTTPStatus.NOT_FOUND:
                raise self._cause
        elif not isinstance(error, LoadingError | UnreachableError) or reply.begun:
            raise error
        if reply.begun:
            reply.lost = True
        else:
            reply.wait(error if isinstance(error, LoadingError) else UnreachableError(error.message))


def passes(error: ApiError) -> bool:
    """Return whether a stored reply may be read later, after this error."""
    if isinstance(error, GoneError):
        return False
    return error.status is None or error.status >= HTTPStatus.INTERNAL_SERVER_ERROR or error.status in PASSING
