"""A batch that is run here: its input is checked, and each of its lines that has no result yet is asked for."""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from deployments.errors import (
    InvalidKeyError,
    LimitExceededError,
    OutOfBoundsError,
    PoisonError,
    RequestTooLargeError,
    SatoriError,
    error_body,
)
from deployments.ingress.batch_input import TOO_DEEP, Check, Line, by_prefix, error, split, windows
from deployments.ingress.batch_pace import Pace
from deployments.ingress.inner import Answer, Inner
from deployments.ingress.middleware.access import Guard
from deployments.observability import logs, metrics
from deployments.observability.record import Record
from deployments.store.values import CANCELLED, CANCELLING, COMPLETED, EXPIRED, FAILED, VALIDATING, Lease, StoredBatch, StoredFile

if TYPE_CHECKING:
    from deployments.store.store import Store

logger = logs.logger("store")
BUSY = (429, 503)
AGAIN_S, AGAIN_AT_MOST_S = 1.0, 30.0
"""The pauses before a line is asked for again that was refused because there is no room."""
FAILURES = 3
"""How often a line is asked for again with which the server failed."""
AWAY_S = 2.0
WRITTEN_AT_ONCE = 500
NOT_IN_LINES = ("stream", "background", "store")
"""Parameters with which there would be nothing to write down, or a second copy of it that nobody asks for."""
FAILED_BODY = error_body("the server failed to handle this request", "InternalServerError", 500)
Why = Literal["cancelled", "expired", "lost", "left"]


@dataclass(frozen=True)
class Place:
    """Where batches are run: an ingress. A line may have `line_bytes`, and results are kept for `ttl_s`."""

    store: "Store"
    inner: Inner
    guard: Guard
    pace: Pace
    ttl_s: float
    line_bytes: int


class Run:
    """A batch that is run here, as the holder of its lease."""

    def __init__(self, place: Place, lease: Lease, batch: StoredBatch, clock: Callable[[], float] = time.time) -> None:
        self.lease, self.batch = lease, batch
        self._place, self._now = place, clock
        self._gone, self._over, self._leaves = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._why: Why | None = None
        self._failure: Exception | None = None
        self._checked = batch.total > 0
        self._lines: set[asyncio.Task[None]] = set()
        self._running: dict[int, Record] = {}
        self._most = asyncio.Semaphore(2 * place.pace.most)

    @property
    def ending(self) -> bool:
        """Whether no more of its lines are run: it only has to end."""
        return self._why is not None or self.batch.status == CANCELLING or self._now() >= self.batch.deadline

    def stop(self, why: Why) -> None:
        """End it before all lines are done."""
        self._why = self._why or why
        self._over.set()
        if why == "left":
            self._leaves.set()

    async def beat(self) -> None:
        """Extend the lease, and look whether the batch is cancelled, or its time over."""
        status = await self._place.store.batches.beat(self.lease)
        if status is None:
            self.stop("lost")
        elif status == CANCELLING:
            self.stop("cancelled")
        elif self._now() >= self.batch.deadline:
            self.stop("expired")

    async def run(self) -> None:
        """Run the batch to its end, or until it is stopped."""
        try:
            await self.beat()
            refused = None if self._why else await self._work()
            if self._failure is not None:
                raise self._failure
            await self._end(refused)
        except Exception as failure:  # a border: whoever claims the batch tries again
            logger.warning("batch %s stops here, and may go on later: %s", self.batch.id, failure)
            logger.debug("", exc_info=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leaves.wait(), AWAY_S)
            with contextlib.suppress(SatoriError):
                await self._place.store.batches.release(self.lease)

    async def _work(self) -> list[dict[str, Any]] | None:
        """Run the lines until all have ended, or the run is stopped. Return the errors of an input that is refused."""
        asking = asyncio.create_task(self._ask_all())
        over = asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait((asking, over), return_when=asyncio.FIRST_COMPLETED)
            return asking.result() if asking.done() else None
        finally:
            self._gone.set()  # the lines that still run end as if their client had left
            for task in (asking, over, *self._lines):
                task.cancel()
            await asyncio.gather(asking, over, *self._lines, return_exceptions=True)

    async def _end(self, refused: list[dict[str, Any]] | None) -> None:
        batches, ttl_s, status = self._place.store.batches, self._place.ttl_s, COMPLETED
        ttl_s = min(ttl_s, json.loads(self.batch.details).get("output_ttl_s") or ttl_s)
        if self._why == "left":
            await batches.release(self.lease)
            return
        if self._why == "lost":
            return
        if refused is not None:
            ended, status = await batches.refuse(self.lease, refused), FAILED
        else:
            if self._why == "cancelled":
                status = CANCELLED
            elif self._why == "expired":
                status = EXPIRED
                if self._checked:  # else nothing is known of its lines
                    await self._expire_rest()
            else:
                await batches.finalize(self.lease)
            ended = await batches.finish(self.lease, status, ttl_s)
        if ended:
            metrics.BATCHES.labels(status).inc()
            logger.info("batch %s ends: %s", self.batch.id, status)

    async def _ask_all(self) -> list[dict[str, Any]] | None:
        store = self._place.store
        file = await store.files.being_read(self.batch.input_file)
        if file is None:
            return [error("file_not_found", f"there is no file {self.batch.input_file}", param="input_file_id")]
        if self.batch.status == VALIDATING:
            check = await self._check(file)
            if check.errors:
                return check.errors
            self._checked = await store.batches.begin(self.lease, check.count)
        done = await store.batches.done(self.batch.id)
        async for window in windows(split(store.files.content(file), self._place.line_bytes)):
            for line in await asyncio.to_thread(by_prefix, window):
                if line.number not in done:
                    await self._most.acquire()
                    await self._wait_for_room()
                    self._running[line.number] = await self._place.pace.enter()
                    task = asyncio.create_task(self._keep_asking(line))
                    self._lines.add(task)
                    task.add_done_callback(partial(self._line_ends, line.number))
        while self._lines:
            await asyncio.wait(set(self._lines))
        return None

    async def _wait_for_room(self) -> None:
        """Wait while the store is full, or away. Files that are deleted, or whose time is over, make room."""
        batches, told = self._place.store.batches, False
        while not await batches.room_is_left():
            if not told:
                logger.warning("batch %s waits for room in the store (store.max_bytes)", self.batch.id)
                told = True
            await asyncio.sleep(AWAY_S)

    async def _check(self, file: StoredFile) -> Check:
        check = Check(self.batch.endpoint, self._place.line_bytes)
        async with contextlib.aclosing(self._place.store.files.content(file)) as content:
            async for group in split(content, self._place.line_bytes):
                await asyncio.to_thread(check.take, group)
                if check.full:
                    break
        check.end()
        return check

    async def _keep_asking(self, line: Line) -> None:
        """Ask for a line until it is not refused for want of room, and write down what it came to."""
        pace, pause_s, failures = self._place.pace, AGAIN_S, 0
        try:
            while True:
                answer = await self._answer(line)
                if isinstance(answer, Answer) and not _may_pass(answer, failures):
                    break
                failures += isinstance(answer, Answer) and answer.status not in BUSY
                pace.leave(self._running.pop(line.number), refused=isinstance(answer, Answer) and answer.status in BUSY)
                await asyncio.sleep(answer if isinstance(answer, float) else pause_s)
                pause_s = min(2 * pause_s, AGAIN_AT_MOST_S)
                self._running[line.number] = await pace.enter()
            if not self._gone.is_set():  # else it was ended by us
                pace.leave(self._running.pop(line.number))  # another one may run while this one is written
                await self._write(line, answer)
        except Exception as failure:  # the store's: `_answer` has none
            self._failure = failure
            self._over.set()

    def _line_ends(self, number: int, task: asyncio.Task[None]) -> None:
        """Give a line's place to another one, also where it was cancelled before it began."""
        self._lines.discard(task)
        if (record := self._running.pop(number, None)) is not None:
            self._place.pace.leave(record)
        self._most.release()

    async def _answer(self, line: Line) -> Answer | float:
        """Return what `_ask` does. What fails for this line is its own answer, so that the batch goes on."""
        if line.text is None:  # it was shorter than the bound when it was checked
            return _refused(RequestTooLargeError(f"the line has more than {self._place.line_bytes} bytes (http.max_body_bytes)"))
        try:
            return await self._ask(json.loads(line.text)["body"], self._running[line.number])
        except RecursionError:
            return _refused(OutOfBoundsError(None, TOO_DEEP[1]))
        except Exception:  # a border
            logger.exception("line %d of batch %s cannot be asked for", line.number, self.batch.id)
            return Answer("", 500, json.dumps(FAILED_BODY).encode())

    async def _ask(self, body: dict[str, Any], record: Record) -> Answer | float:
        """Return the answer to a line, or after how many seconds its key may ask again."""
        for name in NOT_IN_LINES:
            if body.get(name):
                return _refusal(f"{name}: not in a batch; leave it out", "BadRequestError", 400, name)
        guard, owner = self._place.guard, self.batch.owner
        ask = partial(self._place.inner.ask, self.batch.endpoint, json.dumps(body).encode(), owner, record, self._gone)
        if guard.store is None:
            return await ask()
        if (key := guard.store.get(owner)) is None:
            return _refused(InvalidKeyError("the API key that made this batch is not known any more"))
        try:
            await guard.begin(key)
        except LimitExceededError as exceeded:
            return min(max(AGAIN_S, exceeded.retry_after_s), AGAIN_AT_MOST_S)
        try:
            return await ask()
        finally:
            guard.end(key)

    async def _write(self, line: Line, answer: Answer) -> None:
        try:
            body = json.loads(answer.body)
        except (ValueError, RecursionError):
            body = FAILED_BODY
        response = {"status_code": answer.status, "request_id": answer.request_id, "body": body}
        failed = answer.status >= 400
        if await self._place.store.batches.record(self.lease, line.number, failed, self._result(line, response, None)):
            metrics.BATCH_LINES.labels("failed" if failed else "done").inc()
        else:
            self.stop("lost")

    def _result(self, line: Line, response: dict[str, Any] | None, failure: dict[str, Any] | None) -> bytes:
        name = f"batch_req_{self.batch.id.removeprefix('batch_')}_{line.number}"
        result = {"id": name, "custom_id": _custom_id(line), "response": response, "error": failure}
        return json.dumps(result, ensure_ascii=False).encode(errors="replace") + b"\n"

    async def _expire_rest(self) -> None:
        """Write down that the lines without a result came too late."""
        store = self._place.store
        if (file := await store.files.being_read(self.batch.input_file)) is None:
            return
        done = await store.batches.done(self.batch.id)
        late = {"code": "batch_expired", "message": "the batch's time was over before this line's turn"}
        async for group in split(store.files.content(file), self._place.line_bytes):
            left = [line for line in group if line.number not in done]
            for at in range(0, len(left), WRITTEN_AT_ONCE):
                await asyncio.gather(
                    *(
                        store.batches.record(self.lease, line.number, True, self._result(line, None, late))
                        for line in left[at : at + WRITTEN_AT_ONCE]
                    )
                )


def _custom_id(line: Line) -> str | None:
    """Return the name that a line has for its client; None where it cannot be read any more."""
    try:
        return str(json.loads(line.text or b"")["custom_id"])
    except (ValueError, RecursionError):
        return None


def _may_pass(answer: Answer, failures: int) -> bool:
    """Return whether a line is to be asked for again: there was no room, or the server failed, maybe as it is about to end."""
    return answer.status in BUSY or (answer.status >= 500 and failures < FAILURES and PoisonError.code.encode() not in answer.body)


def _refusal(message: str, kind: str, status: int, param: str) -> Answer:
    return Answer("", status, json.dumps(error_body(message, kind, status, param)).encode())


def _refused(error: SatoriError) -> Answer:
    return Answer("", error.status, json.dumps(error.body()).encode())
