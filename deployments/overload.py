"""Refusing at once what would wait too long: bounded queues, and the time after which to try again.

The bounds are vLLM's own, `engine.max_num_queued_reqs` (requests that have not ended) and `engine.max_num_queued_tokens` (tokens of
prompts that are not read yet), each for one ingress. vLLM answers 503; that an API is busy for the moment is 429.
"""

import math
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import ClassVar

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.exceptions import GracefulHTTPError, MaxQueuedTokensError, QueueOverflowError
from vllm.v1.engine.async_llm import AsyncLLM

from deployments.measuring import failed

LONGEST_S = 60


class BoundedLLM(AsyncLLM):
    """vLLM's frontend, which refuses what is over the bounds of its queue with status 429."""

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """Raise GracefulHTTPError when `n` more sequences would be over a bound."""
        try:
            super().check_admission(n, request_id)
        except (QueueOverflowError, MaxQueuedTokensError) as error:
            kind = "reqs" if isinstance(error, QueueOverflowError) else "tokens"
            limit = getattr(self.scheduler_config, f"max_num_queued_{kind}")
            failed("queue_full")
            message = f"the queue is full (engine.max_num_queued_{kind}={limit}); try again after a moment"
            raise GracefulHTTPError(message, HTTPStatus.TOO_MANY_REQUESTS) from error


class RetryAfter:
    """ASGI middleware that tells in refusals for the moment (429, 503) when to try again, where that is not told yet.

    That is half the time that requests took lately, in whole seconds from 1 to 60: by then many of those that are here have ended.
    """

    pace_s: ClassVar[Callable[["RetryAfter"], float]] = lambda _: 0.0

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        def told(message: Message) -> Awaitable[None]:  # no coroutine of its own: this is done for every token
            if message["type"] == "http.response.start" and message["status"] in (429, 503):
                seconds = min(LONGEST_S, max(1, math.ceil(self.pace_s() / 2)))
                MutableHeaders(scope=message).setdefault("retry-after", str(seconds))
            return send(message)

        await self._app(scope, receive, told if scope["type"] == "http" else send)
