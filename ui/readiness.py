"""Whether the model can answer, as the page shows it. One poll serves all users of a process."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from ui.client import Client
from ui.errors import ApiError, UnreachableError

FRESH_S = 1.0


class Readiness:
    """The API's state, asked for at most once in `FRESH_S`."""

    def __init__(self, client: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._lock = asyncio.Lock()
        self._state: dict[str, Any] = {}
        self._asked = -FRESH_S
        self._since: float | None = None

    async def state(self) -> dict[str, Any]:
        """Return `stage`, why, and for how many seconds not "ready".

        Before, it is "starting": nothing listens yet; "loading": no model yet; or "asleep": none until somebody asks.
        """
        async with self._lock:
            if not self._state or self._clock() - self._asked >= FRESH_S:
                self._state = await self._ask()
                self._asked = self._clock()
        return self._state

    async def _ask(self) -> dict[str, Any]:
        try:
            stage, reason = await self._client.ready()
        except UnreachableError as error:
            stage, reason = "starting", str(error)
        if stage in ("ready", "asleep"):
            self._since = None
        elif self._since is None:
            self._since = self._clock()
        elapsed = 0.0 if self._since is None else self._clock() - self._since
        state: dict[str, Any] = {"stage": stage, "reason": reason, "elapsed_s": round(elapsed), "models": [], "error": None}
        if stage != "starting":
            try:
                state["models"] = await self._client.models()
            except ApiError as error:  # a key may be wanted; the page says so and asks again with its user's own
                state["error"] = error.described()
        return state
