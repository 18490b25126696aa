"""How much the store may hold."""

import time

from deployments.errors import StoreFullError, StoreUnavailableError
from deployments.store import database
from deployments.store.journal import Journal

LOOK_S = 1.0
"""For how long what was found is taken as true where many ask."""


class Room:
    """The bound `max_bytes` on all that a store holds."""

    def __init__(self, journal: Journal, max_bytes: int) -> None:
        self._journal, self._max_bytes = journal, max_bytes
        self._looked, self._is_left = float("-inf"), False

    async def check(self, more: int, advice: str) -> None:
        """Raise StoreFullError, with some advice, where there is no room for so many bytes more."""
        used = await self._journal.read(database.bytes_used)
        if used + more > self._max_bytes:
            raise StoreFullError(f"the stored responses and files take {used} bytes (store.max_bytes={self._max_bytes}); {advice}")

    async def is_left(self) -> bool:
        """Return whether there was any within the last second. There is none while the database is away."""
        if time.monotonic() - self._looked > LOOK_S:
            try:
                self._is_left = await self._journal.read(database.bytes_used) < self._max_bytes
            except StoreUnavailableError:
                self._is_left = False
            self._looked = time.monotonic()
        return self._is_left
