"""How much the store may hold."""

from deployments.errors import StoreFullError
from deployments.store import database
from deployments.store.journal import Journal


class Room:
    """The bound `max_bytes` on all that a store holds."""

    def __init__(self, journal: Journal, max_bytes: int) -> None:
        self._journal, self._max_bytes = journal, max_bytes

    async def check(self, more: int, advice: str) -> None:
        """Raise StoreFullError, with some advice, where there is no room for so many bytes more."""
        used = await self._journal.read(database.bytes_used)
        if used + more > self._max_bytes:
            raise StoreFullError(f"the stored responses and files take {used} bytes (store.max_bytes={self._max_bytes}); {advice}")
