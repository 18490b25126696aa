"""Files: what batches read, in pieces, and what they have written, line by line. Nothing here holds a whole file.

A file is removed in small transactions, so that it holds up no response: it is gone for clients at once, its content afterwards.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from dataclasses import asdict, fields
from functools import partial

from sqlalchemy import Connection, Select, and_, delete, exists, insert, or_, select, update

from deployments.errors import BodyTimeoutError, SatoriError
from deployments.observability import logs
from deployments.store.journal import Journal
from deployments.store.room import Room
from deployments.store.schema import batches, files, leases, lines, pieces
from deployments.store.values import StoredFile

logger = logs.logger("store")
UPLOAD_S = 3600.0
"""How long an upload may take; what there is of it is removed then."""
PIECES_AT_ONCE, LINES_AT_ONCE = 8, 32
"""How much of a file is read, or removed, in one transaction."""
UPLOADED, WRITTEN = "batch", "batch_output"
"""The purposes of files: those that were uploaded, and those that batches have written."""
COLUMNS = [files.c[field.name] for field in fields(StoredFile)]


class Files:
    """The files of a store."""

    def __init__(self, journal: Journal, room: Room, clock: Callable[[], float] = time.time) -> None:
        self._journal, self._room, self._now = journal, room, clock
        self._purging: asyncio.Task[None] | None = None
        self._purge_again = False

    async def begin(self, owner: str) -> str:
        """Begin an upload; return its id. Nobody sees it before it is complete."""
        now, name = self._now(), f"file-{uuid.uuid4().hex}"
        file = StoredFile(name, owner, UPLOADED, "", 0, now, now + UPLOAD_S)
        await self._journal.write(lambda connection: add(connection, file, complete=False))
        return name

    async def append(self, file: str, number: int, data: bytes) -> None:
        """Add a piece to an upload. Raises StoreFullError; BodyTimeoutError if the upload took too long."""
        await self._room.check(len(data), "delete some")
        if not await self._journal.write(lambda connection: append(connection, file, number, data, self._now())):
            raise BodyTimeoutError(f"the file has not arrived within {UPLOAD_S:g} s")

    async def complete(self, file: str, filename: str, size: int, ttl_s: float) -> StoredFile | None:
        """Complete an upload of `size` bytes; None if it took too long."""
        changed = update(files).where(files.c.id == file, files.c.expires_at > self._now(), files.c.complete.is_(False))
        changed = changed.values(filename=filename, bytes=size, complete=True, expires_at=files.c.created_at + ttl_s)
        if not await self._journal.write(lambda connection: connection.execute(changed).rowcount):
            return None
        return await self.load(file, None)

    async def load(self, file: str, owner: str | None) -> StoredFile | None:
        """Return a file of this owner (None: anybody's), or None."""
        return await self._journal.read(lambda connection: load(connection, file, owner, self._now()))

    async def being_read(self, file: str) -> StoredFile | None:
        """Return a file that a batch reads, also where its time is over; None if there is none."""
        return await self._journal.read(lambda connection: load(connection, file, None, 0.0))

    async def list(
        self, owner: str, purpose: str | None, after: StoredFile | None, limit: int, ascending: bool
    ) -> list[StoredFile]:
        """Return an owner's files, by their time, those after one of them."""
        found = select(*COLUMNS).where(files.c.owner == owner, files.c.complete, files.c.expires_at > self._now())
        if purpose is not None:
            found = found.where(files.c.purpose == purpose)
        found = page(found, files, after, limit, ascending)
        rows = await self._journal.read(lambda connection: connection.execute(found).all())
        return [StoredFile(**row._mapping) for row in rows]

    async def content(self, file: StoredFile) -> AsyncGenerator[bytes, None]:
        """Yield what a file holds. It ends early where the file is removed meanwhile."""
        last = -1
        while found := await self._journal.read(partial(_read, file=file, after=last)):
            for _, data in found:
                yield data
            last = found[-1][0]

    async def remove(self, file: str) -> str | None:
        """Remove a file, unless a batch reads it: return that batch. Its content goes soon."""
        reader = await self._journal.write(lambda connection: remove(connection, file))
        if reader is None:
            self.purge_soon()
        return reader

    def purge_soon(self) -> None:
        """Have the content removed of files that are gone, or whose time is over, by a task of its own: nobody waits for it."""
        self._purge_again = True
        if self._purging is None:
            self._purging = asyncio.get_running_loop().create_task(self._keep_purging())

    async def _keep_purging(self) -> None:
        try:
            while self._purge_again:
                self._purge_again = False
                while await self._journal.write(lambda connection: purge(connection, self._now())):
                    pass
        except SatoriError as error:
            logger.warning("%s", error)  # the next purge goes on
        except Exception:  # a border
            logger.exception("files that are gone could not be removed")
        finally:
            self._purging = None

    def close(self) -> None:
        """Stop removing files."""
        if self._purging is not None:
            self._purging.cancel()


def add(connection: Connection, file: StoredFile, complete: bool = True) -> None:
    """Add a file."""
    connection.execute(insert(files).values(**asdict(file), complete=complete))


def append(connection: Connection, file: str, number: int, data: bytes, now: float) -> bool:
    """Add a piece to an upload, unless that is removed, or its time is over; return whether it is there."""
    uploading = select(files.c.id).where(files.c.id == file, files.c.complete.is_(False), files.c.expires_at > now)
    if connection.execute(uploading.with_for_update()).one_or_none() is None:
        return False
    connection.execute(insert(pieces).values(file=file, number=number, data=data))
    return True


def load(connection: Connection, file: str, owner: str | None, now: float) -> StoredFile | None:
    """Return a file; None if there is none, it is not complete, has expired, or is another owner's (None: anybody's)."""
    found = select(*COLUMNS).where(files.c.id == file, files.c.complete, files.c.expires_at > now)
    row = connection.execute(found).one_or_none()
    return None if row is None or (owner is not None and row.owner != owner) else StoredFile(**row._mapping)


def lock(connection: Connection, file: str) -> None:
    """Have others wait who want to read a file with a new batch, or to remove it."""
    connection.execute(select(files.c.id).where(files.c.id == file).with_for_update())


def page(
    found: "Select[tuple[object, ...]]", table: object, after: object, limit: int, ascending: bool
) -> "Select[tuple[object, ...]]":
    """Return a query's rows in the order of their times, so many after the row `after`."""
    made, name = table.c.created_at, table.c.id  # type: ignore[attr-defined]
    if after is not None:
        at, its = after.created_at, after.id  # type: ignore[attr-defined]
        further = made > at if ascending else made < at
        found = found.where(or_(further, and_(made == at, name > its if ascending else name < its)))
    order = (made, name) if ascending else (made.desc(), name.desc())
    return found.order_by(*order).limit(limit)


def remove(connection: Connection, file: str) -> str | None:
    """Make a file gone for clients, unless a batch that has not ended reads it: return that batch."""
    lock(connection, file)
    reading = select(batches.c.id).join(leases, leases.c.response == batches.c.id).where(batches.c.input_file == file)
    reader: str | None = connection.execute(reading.limit(1)).scalar_one_or_none()
    if reader is None:
        connection.execute(update(files).where(files.c.id == file).values(complete=False, expires_at=0))
    return reader


def purge(connection: Connection, now: float) -> bool:
    """Remove some of what there is of a file whose time is over; return whether there was one. No batch may be reading it."""
    reading = exists().where(batches.c.input_file == files.c.id, leases.c.response == batches.c.id)
    over = select(files.c.id, files.c.batch, files.c.failed).where(files.c.expires_at <= now, ~reading)
    file = connection.execute(over.limit(1)).one_or_none()
    if file is None:
        return False
    connection.execute(update(files).where(files.c.id == file.id).values(complete=False))
    if file.batch is None:
        of, number, most = pieces.c.file == file.id, pieces.c.number, PIECES_AT_ONCE
    else:
        of, number, most = (lines.c.batch == file.batch) & (lines.c.failed == file.failed), lines.c.line, LINES_AT_ONCE
    last = connection.execute(select(number).where(of).order_by(number).offset(most - 1).limit(1)).scalar_one_or_none()
    connection.execute(delete(number.table).where(of) if last is None else delete(number.table).where(of, number <= last))
    if last is None:
        connection.execute(delete(files).where(files.c.id == file.id))
    return True


def _read(connection: Connection, file: StoredFile, after: int) -> list[tuple[int, bytes]]:
    if file.batch is None:
        found = select(pieces.c.number, pieces.c.data).where(pieces.c.file == file.id, pieces.c.number == after + 1)
    else:
        mine = (lines.c.batch == file.batch) & (lines.c.failed == file.failed) & (lines.c.line > after)
        found = select(lines.c.line, lines.c.result).where(mine).order_by(lines.c.line).limit(LINES_AT_ONCE)
    return [(number, bytes(data)) for number, data in connection.execute(found)]
