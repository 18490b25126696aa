"""OpenAI's Batches: files of requests that are run when there is room, each line once, by whichever ingress holds the batch."""

import asyncio
import contextlib
import json
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Query
from pydantic import BaseModel, Field, field_validator
from starlette.responses import JSONResponse, Response

from deployments.access.usage import client_name
from deployments.errors import BatchNotFoundError, OutOfBoundsError, SatoriError, StoredFileNotFoundError
from deployments.host.run import draining
from deployments.ingress import files as file_routes
from deployments.ingress.batch_input import ENDPOINTS, SHOWN
from deployments.ingress.batch_pace import TICK_S, Pace
from deployments.ingress.batch_run import Place, Run
from deployments.ingress.files import Files, listed
from deployments.ingress.inner import Inner
from deployments.ingress.middleware.access import Guard
from deployments.ingress.responses import RENEWALS, Responses
from deployments.observability import logs, metrics
from deployments.settings import Settings
from deployments.store.values import CANCELLED, COMPLETED, EXPIRED, FAILED, VALIDATING, StoredBatch

if TYPE_CHECKING:  # it imports the database's library
    from deployments.store.store import Store

logger = logs.logger("store")
PATH = "/v1/batches"
ID = re.compile("batch_[0-9a-f]{32}")
AT_ONCE, OF_A_KEY = 16, 4
"""How many batches an ingress runs at a time, and how many of one key: those that wait for its limits hold up no other key's."""
LISTED = 100
HOUR_S = 3600
PAIRS, KEY_CHARACTERS, VALUE_CHARACTERS = 16, 64, 512
ENDED = (COMPLETED, FAILED, EXPIRED, CANCELLED)
TIMES = ("in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at")


class BatchRequest(BaseModel):
    """What a batch is asked for with."""

    input_file_id: str
    endpoint: str
    completion_window: str = Field(pattern=r"^[1-9]\d{0,2}h$")
    metadata: dict[str, str] | None = None
    output_expires_after: dict[str, Any] | None = None

    @field_validator("endpoint")
    @classmethod
    def _is_known(cls, endpoint: str) -> str:
        if endpoint not in ENDPOINTS:
            raise ValueError(f"allowed: {', '.join(ENDPOINTS)}")
        return endpoint

    @field_validator("metadata")
    @classmethod
    def _is_small(cls, metadata: dict[str, str] | None) -> dict[str, str] | None:
        pairs = metadata or {}
        if len(pairs) > PAIRS or any(len(key) > KEY_CHARACTERS or len(value) > VALUE_CHARACTERS for key, value in pairs.items()):
            raise ValueError(f"allowed: {PAIRS} pairs, of at most {KEY_CHARACTERS} and {VALUE_CHARACTERS} characters")
        return metadata


class Batches:
    """The batches of an ingress: those that it runs, and the routes to all of them. For `idle` see `Pace`."""

    def __init__(
        self, responses: Responses, files: Files, inner: Inner, guard: Guard, settings: Settings, idle: Callable[[float], float]
    ) -> None:
        self._responses, self._files, self._inner, self._guard, self._settings = responses, files, inner, guard, settings
        self._model = settings.served_model_name
        self.pace = Pace(settings.batches.max_lines, settings.batches.queue_s, idle)
        self._runs: dict[str, Run] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._wake = asyncio.Event()

    def start(self) -> None:
        """Run what nobody runs, from now on."""
        metrics.BATCH_RUNNING.labels().set_function(lambda: self.pace.running)
        for status in ENDED:
            metrics.BATCHES.labels(status)
        for outcome in ("done", "failed"):
            metrics.BATCH_LINES.labels(outcome)
        if self._responses.enabled:
            self._spawn(self._keep_watch())
            self._spawn(self._keep_pace())

    def close(self) -> None:
        """End all tasks; what they were running stays unfinished in the store."""
        for task in self._tasks:
            task.cancel()

    # What clients ask for.

    async def create(self, request: BatchRequest) -> Response:
        """Make a batch, which an ingress will run."""
        store = await self._files.store()
        after, ttl_s = request.output_expires_after, None
        if after is not None:
            ttl_s = file_routes.ttl_s("output_expires_after", after, self._settings.store.ttl_s)
        now, window_s = time.time(), int(request.completion_window[:-1]) * HOUR_S
        batch = StoredBatch(
            id=f"batch_{uuid.uuid4().hex}",
            owner=client_name(),
            model=self._model,
            status=VALIDATING,
            endpoint=request.endpoint,
            input_file=request.input_file_id,
            window=request.completion_window,
            details=json.dumps({"metadata": request.metadata, "output_ttl_s": ttl_s}),
            created_at=now,
            deadline=now + window_s,
            expires_at=now + window_s + self._settings.store.ttl_s,
        )
        if not file_routes.ID.fullmatch(batch.input_file) or not await store.batches.create(batch):
            raise StoredFileNotFoundError(batch.input_file[:SHOWN], "input_file_id")
        self._wake.set()
        return JSONResponse(described(batch))

    async def list(self, after: str | None, limit: int) -> Response:
        """List a key's batches."""
        store = await self._files.store()
        last = None if after is None else await self._mine(after, "after")
        found = await store.batches.list(client_name(), last, limit + 1)
        return JSONResponse(listed([described(batch) for batch in found], limit))

    async def retrieve(self, batch_id: str) -> Response:
        """Return a batch as it is now."""
        return JSONResponse(described(await self._mine(batch_id)))

    async def cancel(self, batch_id: str) -> Response:
        """Cancel a batch. The results that there are by then are kept."""
        batch = await self._mine(batch_id)
        if batch.status in ENDED and batch.status != CANCELLED:
            raise OutOfBoundsError("batch_id", f"the batch has ended ({batch.status}), so it cannot be cancelled")
        await (await self._files.store()).batches.cancel(batch_id)
        if (run := self._runs.get(batch_id)) is not None:
            run.stop("cancelled")
        self._wake.set()
        return JSONResponse(described(await self._mine(batch_id)))

    async def _mine(self, batch_id: str, param: str = "batch_id") -> StoredBatch:
        store = await self._files.store()
        batch = await store.batches.load(batch_id, client_name()) if ID.fullmatch(batch_id) else None
        if batch is None:
            raise BatchNotFoundError(batch_id[:SHOWN], param)
        return batch

    # Running them.

    async def _keep_watch(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._look()
            except SatoriError as error:
                logger.warning("%s", error)
            except Exception:  # the next round may succeed
                logger.exception("the batches could not be looked after")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._settings.store.lease_s / RENEWALS)

    async def _look(self) -> None:
        """Renew the leases of what runs here, and claim what nobody runs."""
        store = await self._responses.existing_store()
        if store is None:
            return
        leaving = draining()
        for run in list(self._runs.values()):
            if leaving:
                run.stop("left")
        await asyncio.gather(*(run.beat() for run in list(self._runs.values())))
        if leaving:
            return
        ending = sum(run.ending for run in self._runs.values())
        for batch_id in await store.batches.ending(AT_ONCE - min(ending, AT_ONCE)):
            await self._claim(store, batch_id)
        for _ in range(AT_ONCE):
            owners = Counter(run.batch.owner for run in self._runs.values() if not run.ending)
            if owners.total() >= AT_ONCE:
                return
            full = [owner for owner, count in owners.items() if count >= OF_A_KEY]
            if not (found := await store.batches.claimable(self._model, 1, without=full)):
                return
            await self._claim(store, found[0])

    async def _claim(self, store: "Store", batch_id: str) -> None:
        """Run a batch here, unless another ingress was quicker."""
        if (taken := await store.batches.claim(batch_id)) is None:
            return
        lease, batch = taken
        logger.info("batch %s runs here", batch_id)
        settings = self._settings
        place = Place(store, self._inner, self._guard, self.pace, settings.store.ttl_s, settings.http.max_body_bytes)
        run = self._runs[batch.id] = Run(place, lease, batch)

        async def keep() -> None:
            try:
                await run.run()
            finally:
                if self._runs.get(batch.id) is run:
                    del self._runs[batch.id]
                self._wake.set()

        self._spawn(keep())

    async def _keep_pace(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.pace.tick()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def mount(app: FastAPI, batches: Batches) -> None:
    """Add the routes."""

    @app.post(PATH)
    async def create_batch(request: BatchRequest) -> Response:
        """Make a batch of the requests in a file."""
        return await batches.create(request)

    @app.get(PATH)
    async def list_batches(after: str | None = None, limit: int = Query(20, ge=1, le=LISTED)) -> Response:
        """List batches."""
        return await batches.list(after, limit)

    @app.get(PATH + "/{batch_id}")
    async def retrieve_batch(batch_id: str) -> Response:
        """Return a batch."""
        return await batches.retrieve(batch_id)

    @app.post(PATH + "/{batch_id}/cancel")
    async def cancel_batch(batch_id: str) -> Response:
        """Cancel a batch."""
        return await batches.cancel(batch_id)


def described(batch: StoredBatch) -> dict[str, Any]:
    """Return a batch as clients see it."""
    details = json.loads(batch.details)
    errors = details.get("errors")
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model,
        "errors": None if errors is None else {"object": "list", "data": errors},
        "input_file_id": batch.input_file,
        "completion_window": batch.window,
        "status": batch.status,
        "output_file_id": details.get("output_file_id"),
        "error_file_id": details.get("error_file_id"),
        "created_at": int(batch.created_at),
        "expires_at": int(batch.deadline),
        **{name: details.get(name) for name in TIMES},
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "metadata": details["metadata"],
    }
