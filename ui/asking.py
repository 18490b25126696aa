"""Asking a question: yields the reply's state as it grows, waits for a model that is not there yet, ends in words when it fails."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
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


async def ask(client: Client, question: Question) -> AsyncGenerator[dict[str, Any]]:
    """Yield the states of the reply to a question; the last one is done or an error. Closing this stops the request."""
    reply = Reply(question.id)
    changed = asyncio.Event()
    task = asyncio.create_task(_follow(client, question, reply, changed))
    try:
        while not task.done():
            yield reply.state()
            await asyncio.sleep(PACE_S)
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), BEAT_S)
            changed.clear()
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
    finally:
        changed.set()


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
