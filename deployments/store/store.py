"""The store of an ingress: what is written and read of stored responses, through its journal."""

import asyncio
import time
from collections.abc import Callable, Sequence

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from deployments.errors import AlreadyStoredError
from deployments.store import database, leases, replies
from deployments.store.batches import Batches
from deployments.store.files import Files
from deployments.store.journal import Journal
from deployments.store.room import Room
from deployments.store.values import Append, End, Lease, Progress, Stored


class Store:
    """Stored responses in the database `url` (see `database.connect`).

    `holder` names this ingress. A lease lasts `lease_s`. All together may take `max_bytes`. Reads and writes raise
    StoreUnavailableError; the writes of a running response wait instead. `files` are those of `batches`.
    """

    def __init__(self, url: str, holder: str, *, lease_s: float, max_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self._holder, self._lease_s, self._now = holder, lease_s, clock
        self._journal = Journal(lambda: database.connect(url), self._append_all)
        self._room = Room(self._journal, max_bytes)
        self.files = Files(self._journal, self._room, clock)
        self.batches = Batches(self._journal, self._room, holder, lease_s, clock)

    async def create(self, response: Stored) -> Lease:
        """Add a response; return the lease for it.

        Raises StoreFullError where all together take too much, AlreadyStoredError where there is one with this id.
        """
        await self._room.check(len(response.request) + len(response.input), "delete some, or send `store: false`")
        try:
            return await self._journal.write(
                lambda connection: replies.create(connection, response, self._holder, self._now(), self._lease_s)
            )
        except IntegrityError as error:
            raise AlreadyStoredError(response.id) from error

    async def load(self, response: str, owner: str | None) -> Stored | None:
        """Return a response of this owner (None: anybody's), or None."""
        return await self._journal.read(lambda connection: replies.load(connection, response, owner, self._now()))

    async def progress(self, response: str, start: int) -> Progress:
        """Return what there is of a response from the token at `start` on."""
        return await self._journal.read(lambda connection: replies.progress(connection, response, start))

    async def claimable(self, model: str, most: int) -> list[str]:
        """Return the ids of a model's responses that nobody goes on with."""
        return await self._journal.read(lambda connection: replies.claimable(connection, model, self._now(), most))

    async def claim(self, response: str) -> tuple[Lease, Stored, list[int]] | None:
        """Take over a response that nobody goes on with; return the lease, the response and its tokens."""
        return await self._journal.write(
            lambda connection: replies.claim(connection, response, self._holder, self._now(), self._lease_s)
        )

    def append(self, lease: Lease, start: int, tokens: Sequence[int], end: End | None) -> "asyncio.Future[bool]":
        """Write tokens from a position on; the result is whether the lease is still held."""
        return self._journal.append(Append(lease, start, tokens, end))

    def _append_all(self, connection: Connection, appends: Sequence[Append]) -> list[bool]:
        return replies.append_all(connection, appends, self._now(), self._lease_s)

    def renew(self, lease: Lease) -> "asyncio.Future[bool]":
        """Extend a lease; the result is whether it is still held."""
        return self._journal.write(lambda connection: leases.renew(connection, lease, self._now(), self._lease_s), patient=True)

    async def release(self, lease: Lease) -> None:
        """Let anybody claim this response at once."""
        await self._journal.write(lambda connection: leases.release(connection, lease))

    async def finish(self, lease: Lease, status: str, result: str, last_event: int) -> bool:
        """End a response; return whether the lease was still held."""
        return await self._journal.write(
            lambda connection: replies.finish(connection, lease, status, result, last_event), patient=True
        )

    async def cancel(self, response: str) -> bool:
        """Cancel a response; return whether it had not ended."""
        return await self._journal.write(lambda connection: replies.cancel(connection, response))

    async def remove(self, response: str) -> None:
        """Remove a response."""
        await self._journal.write(lambda connection: replies.remove(connection, response))

    async def expire(self) -> int:
        """Remove some responses, and all batches and files, whose time is over; return how many responses. It waits for no file."""
        await self.batches.expire()
        self.files.purge_soon()
        return await self._journal.write(lambda connection: replies.expire(connection, self._now()))

    def close(self) -> None:
        """Stop reading and writing."""
        self.files.close()
        self._journal.close()
