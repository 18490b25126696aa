"""Whether the model can answer, as the page shows it. One poll serves all users of a process."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from ui.client import Client
from ui.errors import ApiError, UnreachableError

FRESH_S = 1.0


class Readiness:
    """The API's state, polled at most once in `FRESH_S` seconds."""

    def __init__(self, client: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._lock = asyncio.Lock()
        self._state: dict[str, Any] = {}
        self._polled_at = -FRESH_S
        self._unready_since: float | None = None

    async def state(self) -> dict[str, Any]:
        """Return the `stage`, the `reason` for it, for how long it has not been "ready" (`elapsed_s`), the `models` and an `error`.

        Stages before "ready" are "starting" (nothing listens yet), "loading" (no model yet) and "asleep" (no model until somebody
        asks).
        """
        async with self._lock:
            if not self._state or self._clock() - self._polled_at >= FRESH_S:
                self._state = await self._poll()
                self._polled_at = self._clock()
        return self._state

    async def _poll(self) -> dict[str, Any]:
        try:
            stage, reason = await self._client.ready()
        except UnreachableError as error:
            stage, reason = "starting", str(error)
        if stage in ("ready", "asleep"):
            self._unready_since = None
        elif self._unready_since is None:
            self._unready_since = self._clock()
        elapsed = 0.0 if self._unready_since is None else self._clock() - self._unready_since
        state: dict[str, Any] = {"stage": stage, "reason": reason, "elapsed_s": round(elapsed), "models": [], "error": None}
        if stage != "starting":
            try:
                state["models"] = await self._client.models()
            except ApiError as error:  # the API may need a key; the page says so and asks again with the user's own
                state["error"] = error.described()
        return state
