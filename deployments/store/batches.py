"""Batches: what they are, and what each of their lines came to.

A batch is run by the holder of its lease alone. The result of a line is written in one transaction, which the database lets succeed
once for each line: a holder that comes back late, or a commit that is repeated, changes nothing.
"""

import json
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from deployments.store import files as stored_files
from deployments.store import leases as held
from deployments.store.journal import Journal
from deployments.store.room import Room
from deployments.store.schema import batches, leases, lines
from deployments.store.values import (
    CANCELLED,
    CANCELLING,
    FAILED,
    FINALIZING,
    IN_PROGRESS,
    VALIDATING,
    Lease,
    StoredBatch,
    StoredFile,
)

CANCELLABLE = (VALIDATING, IN_PROGRESS, FINALIZING)
FREE = 0.0
"""The time at which the lease of a batch has run out that nobody runs yet."""
COLUMNS = [batches.c[field.name] for field in fields(StoredBatch)]


class Batches:
    """The batches of a store. `holder` names this ingress, and a lease lasts `lease_s`.

    What the holder of a lease writes waits for a database that is away or full, and tells whether the lease is still held.
    """

    def __init__(self, journal: Journal, room: Room, holder: str, lease_s: float, clock: Callable[[], float] = time.time) -> None:
        self._journal, self._room, self._holder, self._lease_s, self._now = journal, room, holder, lease_s, clock

    async def create(self, batch: StoredBatch) -> bool:
        """Add a batch that anybody may claim; return whether there is its input file. Raises StoreFullError."""
        await self._room.check(len(batch.details), "delete some files")
        return await self._journal.write(lambda connection: create(connection, batch, self._now()))

    async def load(self, batch: str, owner: str | None) -> StoredBatch | None:
        """Return a batch of this owner (None: anybody's), or None."""
        return await self._journal.read(lambda connection: load(connection, batch, owner))

    async def list(self, owner: str, after: StoredBatch | None, limit: int) -> list[StoredBatch]:
        """Return an owner's batches, the newest first, those after one of them."""
        found = stored_files.page(select(*COLUMNS).where(batches.c.owner == owner), batches, after, limit, ascending=False)
        rows = await self._journal.read(lambda connection: connection.execute(found).all())
        return [StoredBatch(**row._mapping) for row in rows]

    async def claimable(self, model: str, most: int, without: Collection[str] = ()) -> Sequence[str]:
        """Return the ids of a model's batches that nobody runs, the oldest first, but for these owners' and those of `ending`."""
        return await self._orphans(most, batches.c.model == model, batches.c.owner.not_in(without), ~self._ending())

    async def ending(self, most: int) -> Sequence[str]:
        """Return the ids of batches of any model that nobody runs and that only have to end: they are cancelled, or late."""
        return await self._orphans(most, self._ending())

    def _ending(self) -> ColumnElement[bool]:
        return (batches.c.status == CANCELLING) | (batches.c.deadline <= self._now())

    async def _orphans(self, most: int, *which: ColumnElement[bool]) -> Sequence[str]:
        orphans = select(batches.c.id).join(leases, leases.c.response == batches.c.id)
        orphans = orphans.where(leases.c.expires_at < self._now(), *which).order_by(batches.c.created_at).limit(most)
        return await self._journal.read(lambda connection: connection.execute(orphans).scalars().all())

    async def claim(self, batch: str) -> tuple[Lease, StoredBatch] | None:
        """Take over a batch that nobody runs."""
        return await self._journal.write(lambda connection: claim(connection, batch, self._holder, self._now(), self._lease_s))

    async def room_is_left(self) -> bool:
        """Return whether there is room for more results."""
        return await self._room.is_left()

    async def done(self, batch: str) -> set[int]:
        """Return the numbers of the lines that have a result."""
        numbers = select(lines.c.line).where(lines.c.batch == batch)
        return set(await self._journal.read(lambda connection: connection.execute(numbers).scalars().all()))

    async def beat(self, lease: Lease) -> str | None:
        """Extend a lease; return the batch's status, None where the lease is lost."""
        return await self._held(lease, lambda connection, status: status, None)

    async def begin(self, lease: Lease, total: int) -> bool:
        """Go from validating to in progress, with so many lines."""

        def work(connection: Connection, status: str) -> bool:
            if status == VALIDATING:
                self._move(connection, lease.response, IN_PROGRESS, total=total)
            return True

        return await self._held(lease, work, False)

    async def refuse(self, lease: Lease, errors: Sequence[dict[str, Any]]) -> bool:
        """Fail a batch whose input is wrong."""

        def work(connection: Connection, status: str) -> bool:
            self._end(connection, lease, CANCELLED if status == CANCELLING else FAILED, errors=errors)
            return True

        return await self._held(lease, work, False)

    async def record(self, lease: Lease, line: int, failed: bool, result: bytes) -> bool:
        """Write what a line came to, unless that is there already."""

        def work(connection: Connection, _: str) -> bool:
            mine = lines.c.batch == lease.response
            if connection.execute(select(lines.c.line).where(mine, lines.c.line == line)).one_or_none() is None:
                row = {"batch": lease.response, "line": line, "failed": failed, "result": result}
                connection.execute(insert(lines).values(row))
                counter = batches.c.failed if failed else batches.c.completed
                connection.execute(update(batches).where(batches.c.id == lease.response).values({counter: counter + 1}))
            return True

        return await self._held(lease, work, False)

    async def finalize(self, lease: Lease) -> bool:
        """Say that all lines have results."""

        def work(connection: Connection, status: str) -> bool:
            if status == IN_PROGRESS:
                self._move(connection, lease.response, FINALIZING)
            return True

        return await self._held(lease, work, False)

    async def finish(self, lease: Lease, wanted: str, ttl_s: float) -> bool:
        """End a batch, with files of the results that there are, which are kept for `ttl_s`. What was cancelled is cancelled."""

        def work(connection: Connection, status: str) -> bool:
            written = self._write_files(connection, lease.response, ttl_s)
            self._end(connection, lease, CANCELLED if status == CANCELLING else wanted, expires_at=self._now() + ttl_s, **written)
            return True

        return await self._held(lease, work, False)

    async def release(self, lease: Lease) -> None:
        """Let anybody claim this batch at once."""
        await self._journal.write(lambda connection: held.release(connection, lease))

    async def cancel(self, batch: str) -> None:
        """Have a batch cancelled by who runs it, unless it has ended."""

        def work(connection: Connection) -> None:
            if _status(connection, batch) in CANCELLABLE:
                self._move(connection, batch, CANCELLING)

        await self._journal.write(work)

    async def expire(self) -> None:
        """Remove batches whose time is over. The files that they have written have a time of their own."""
        over = batches.c.expires_at <= self._now()
        running = select(leases.c.response).where(leases.c.response == batches.c.id).exists()
        await self._journal.write(lambda connection: connection.execute(delete(batches).where(over, ~running)).rowcount)

    async def _held(self, lease: Lease, work: Callable[[Connection, str], Any], lost: Any) -> Any:
        """Do some work as the holder of a lease, whose rows are locked in one order: the lease, then its batch."""

        def operation(connection: Connection) -> Any:
            if not held.renew(connection, lease, self._now(), self._lease_s):
                return lost
            status = _status(connection, lease.response)
            return lost if status is None else work(connection, status)

        return await self._journal.write(operation, patient=True)

    def _move(self, connection: Connection, batch: str, status: str, **columns: Any) -> None:
        """Give a batch another status, and note the time. What is no column is a detail."""
        details = json.loads(connection.execute(select(batches.c.details).where(batches.c.id == batch)).scalar_one())
        details |= {f"{status}_at": int(self._now())}
        for name in columns.keys() - batches.c.keys():
            details[name] = columns.pop(name)
        changed = update(batches).where(batches.c.id == batch).values(status=status, details=json.dumps(details), **columns)
        connection.execute(changed)

    def _end(self, connection: Connection, lease: Lease, status: str, **columns: Any) -> None:
        self._move(connection, lease.response, status, **columns)
        connection.execute(delete(leases).where(held.by(lease)))

    def _write_files(self, connection: Connection, batch: str, ttl_s: float) -> dict[str, str]:
        """Add files of a batch's results, where there are any; return their ids."""
        sizes = select(lines.c.failed, func.sum(func.length(lines.c.result))).where(lines.c.batch == batch).group_by(lines.c.failed)
        owner = connection.execute(select(batches.c.owner).where(batches.c.id == batch)).scalar_one()
        now, ids = self._now(), {}
        for failed, size in connection.execute(sizes).all():
            kind, name = ("error" if failed else "output"), f"file-{uuid.uuid4().hex}"
            file = StoredFile(
                name, owner, stored_files.WRITTEN, f"{batch}_{kind}.jsonl", size, now, now + ttl_s, batch=batch, failed=failed
            )
            stored_files.add(connection, file)
            ids[f"{kind}_file_id"] = name
        return ids


def create(connection: Connection, batch: StoredBatch, now: float) -> bool:
    """Add a batch that nobody runs yet; return whether there is its input file."""
    stored_files.lock(connection, batch.input_file)
    if stored_files.load(connection, batch.input_file, batch.owner, now) is None:
        return False
    held.create(connection, batch.id, "", FREE)
    connection.execute(insert(batches).values(**asdict(batch)))
    return True


def load(connection: Connection, batch: str, owner: str | None) -> StoredBatch | None:
    """Return a batch; None if there is none, or it is another owner's (None: anybody's)."""
    row = connection.execute(select(*COLUMNS).where(batches.c.id == batch)).one_or_none()
    return None if row is None or (owner is not None and row.owner != owner) else StoredBatch(**row._mapping)


def claim(connection: Connection, batch: str, holder: str, now: float, lease_s: float) -> tuple[Lease, StoredBatch] | None:
    """Take over a batch whose lease has run out."""
    lease = held.claim(connection, batch, holder, now, lease_s)
    if lease is None or (found := load(connection, batch, None)) is None:
        return None
    return lease, found


def _status(connection: Connection, batch: str) -> str | None:
    locked = select(batches.c.status).where(batches.c.id == batch).with_for_update()
    status: str | None = connection.execute(locked).scalar_one_or_none()
    return status
