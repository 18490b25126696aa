"""Writes of many responses, a transaction for all that comes within 50 ms or has 64 tokens, or begins a response.

The database works in threads, so a slow disk holds up nothing but stored responses. A write that may wait is repeated until it
succeeds: while the database is away or its disk is full, the responses that are being written pause, and nothing of them is lost.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from deployments.errors import SatoriError, StoreFullError, StoreUnavailableError
from deployments.observability import logs, metrics
from deployments.store.database import is_full, reading
from deployments.store.values import Append

logger = logs.logger("store")
T = TypeVar("T")
AppendAll = Callable[[Connection, Sequence[Append]], list[bool]]
GROUP_S, GROUP_TOKENS = 0.05, 64
AGAIN_S = 0.5
"""The pause before a transaction is repeated."""
READERS = 2


@dataclass(slots=True)
class _Write:
    """A write; `append` is what it appends, where it does no other."""

    operation: Callable[[Connection], Any] | None
    append: Append | None
    patient: bool
    done: asyncio.Future[Any]

    def end(self, value: Any = None, error: BaseException | None = None) -> None:
        if self.done.done():  # whoever asked has gone
            return
        if error is None:
            self.done.set_result(value)
        else:
            self.done.set_exception(error)


class Journal:
    """A database, written in groups. It is opened (`connect`) with the first write or read, and again after that has failed.

    `append_all` writes many appends, and returns which are accepted.
    """

    def __init__(self, connect: Callable[[], Engine], append_all: AppendAll) -> None:
        self._connect, self._append_all = connect, append_all
        self._weight = 0
        self._engine: Engine | None = None
        self._writes: list[_Write] = []
        self._waiting = asyncio.Event()
        self._heavy = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._writing = ThreadPoolExecutor(1, "store-writer")
        self._reading = ThreadPoolExecutor(READERS, "store-reader")
        self._opening = asyncio.Lock()

    def write(self, operation: Callable[[Connection], T], patient: bool = False) -> "asyncio.Future[T]":
        """Add a write to the next transaction; return the future of its result, in the order of the calls.

        `operation` may run more than once, each time in a new transaction. A `patient` one waits for a database that is away or
        full; others raise StoreUnavailableError or StoreFullError.
        """
        return self._add(operation, None, 0 if patient else GROUP_TOKENS, patient)

    def append(self, append: Append) -> "asyncio.Future[bool]":
        """Append tokens in the next transaction, patiently; the result is whether the lease is still held."""
        return self._add(None, append, len(append.tokens) if append.start else GROUP_TOKENS, True)

    def _add(
        self, operation: Callable[[Connection], Any] | None, append: Append | None, weight: int, patient: bool
    ) -> "asyncio.Future[Any]":
        if self._writer is None:
            self._writer = asyncio.create_task(self._keep_writing())
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._writes.append(_Write(operation, append, patient, done))
        self._waiting.set()
        self._weight += weight
        if self._weight >= GROUP_TOKENS:
            self._heavy.set()
        return done

    async def read(self, operation: Callable[[Connection], T]) -> T:
        """Return what an operation reads. Raises StoreUnavailableError."""
        loop = asyncio.get_running_loop()
        try:
            engine = await self._opened()
            return await loop.run_in_executor(self._reading, _read, engine, operation)
        except (DBAPIError, OSError) as error:
            raise _told(error) from error

    def close(self) -> None:
        """Stop writing, once the transactions that have begun have ended; what has not been written is not."""
        if self._writer is not None:
            self._writer.cancel()
        for threads in (self._writing, self._reading):
            threads.shutdown(cancel_futures=True)
        if self._engine is not None:
            self._engine.dispose()

    async def _opened(self) -> Engine:
        async with self._opening:
            if self._engine is None:
                self._engine = await asyncio.get_running_loop().run_in_executor(self._reading, self._connect)
            return self._engine

    async def _keep_writing(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._waiting.wait()
            began = loop.time()
            group, self._writes, self._weight = self._writes, [], 0
            self._waiting.clear()
            self._heavy.clear()
            if left := await self._commit(group):
                self._writes[:0] = left
                self._waiting.set()
                await asyncio.sleep(AGAIN_S)
            elif (rest := GROUP_S - (loop.time() - began)) > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(rest):
                        await self._heavy.wait()

    async def _commit(self, group: list[_Write]) -> list[_Write]:
        """Run a group in one transaction; return the writes to repeat."""
        try:
            engine = await self._opened()
            values = await asyncio.get_running_loop().run_in_executor(self._writing, self._write, engine, group)
        except (DBAPIError, OSError) as error:
            if isinstance(error, DBAPIError) and not _may_pass(error):
                return await self._alone(group, error)
            told = _told(error)
            logger.warning("%s", told)
            metrics.STORE_FAILURES.labels().inc()
            for write in group:
                if not write.patient:
                    write.end(error=told)
            return [write for write in group if write.patient]
        except Exception as error:
            return await self._alone(group, error)
        for write, value in zip(group, values, strict=True):
            write.end(value)
        return []

    def _write(self, engine: Engine, group: list[_Write]) -> list[Any]:
        """Do the writes of a group in their order, those appends at once that follow each other."""
        values: list[Any] = []
        began = time.monotonic()
        with engine.begin() as connection:
            for appends, writes in itertools.groupby(group, lambda write: write.append is not None):
                if appends:
                    values += self._append_all(connection, [write.append for write in writes if write.append is not None])
                else:
                    values += [write.operation(connection) for write in writes if write.operation is not None]
        metrics.STORE_SECONDS.labels().observe(time.monotonic() - began)
        return values

    async def _alone(self, group: list[_Write], error: Exception) -> list[_Write]:
        """Give each write of a failed group a transaction of its own, so that only the faulty one fails."""
        if len(group) == 1:
            logger.error("a write to the store failed: %s", error)
            group[0].end(error=error)
            return []
        left: list[_Write] = []
        for write in group:
            left += [write] if left else await self._commit([write])  # the order stays
        return left


def _read(engine: Engine, operation: Callable[[Connection], T]) -> T:
    with reading(engine).begin() as connection:
        return operation(connection)


def _may_pass(error: DBAPIError) -> bool:
    """Return whether the same may succeed later: the database is away, locked or full."""
    return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)


def _told(error: Exception) -> SatoriError:
    """Return what clients are told."""
    if isinstance(error, DBAPIError) and is_full(error):
        return StoreFullError("the disk of the stored responses is full; `store: false` needs none of it")
    reason = type(error.orig if isinstance(error, DBAPIError) else error).__name__
    return StoreUnavailableError(f"the stored responses cannot be reached now ({reason}); try again after a moment")
