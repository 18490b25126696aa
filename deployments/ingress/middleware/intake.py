"""First come, first served into the engine: only a few requests at a time are parsed, rendered and tokenized.

An event loop gives every request a turn in each round. So when 64 requests arrive together, the first reaches the engine only when
nearly all are ready, and the engine idles until then. With a few at a time, the first ones decode while the others are prepared.
"""

import asyncio
from collections.abc import Awaitable
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

AT_ONCE = 4


class Permit:
    """One of the places: acquired when the request's body is complete, released when the engine has the request."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places = places
        self._held = False

    async def acquire(self) -> None:
        """Wait for a place."""
        if not self._held:
            await self._places.acquire()
            self._held = True

    def release(self) -> None:
        """Free the place, if held."""
        if self._held:
            self._held = False
            self._places.release()


GONE_S = 10.0


async def _cancelled_late(serving: Awaitable[None]) -> None:
    """Wait for the application, and cancel it only after it has had a moment to end by itself.

    Serve cancels a request whose client has gone. vLLM's handlers (`with_cancellation`, 0.32.0) receive the disconnect themselves
    and then end the work. If they were cancelled meanwhile, they would leave the work behind, running to its last token.
    """
    task = asyncio.ensure_future(serving)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=GONE_S)
        task.cancel()
        raise


_permit: ContextVar[Permit | None] = ContextVar("permit", default=None)


def prepared() -> None:
    """Free the place of the current task's request, which has been handed to the engine."""
    if (permit := _permit.get()) is not None:
        permit.release()


class Intake:
    """ASGI middleware that lets `AT_ONCE` requests with a body be prepared at a time, in order of arrival.

    A request acquires a place only when its whole body has arrived, so a slow upload holds up nobody.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._places = asyncio.Semaphore(AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"].startswith("/ui"):
            await self._app(scope, receive, send)
            return
        permit = Permit(self._places)

        async def receive_in_turn() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body"):
                await permit.acquire()
            return message

        token = _permit.set(permit)
        try:
            await _cancelled_late(self._app(scope, receive_in_turn, send))
        finally:
            permit.release()
            _permit.reset(token)
