"""OpenAI's Files, for batches: uploaded and read as streams, kept in the store, each its key's alone."""

import asyncio
import contextlib
import re
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fastapi import FastAPI, Query, Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse
from vllm.exceptions import VLLMValidationError

from deployments.access.usage import client_name
from deployments.errors import (
    BodyTimeoutError,
    OutOfBoundsError,
    OverloadedError,
    RequestTooLargeError,
    SatoriError,
    StoredFileNotFoundError,
)
from deployments.ingress.batch_input import SHOWN
from deployments.ingress.middleware.body import BODY_S
from deployments.ingress.middleware.intake import prepared
from deployments.ingress.responses import Responses
from deployments.ingress.upload import Form
from deployments.settings import StoreSettings
from deployments.store.values import StoredFile

if TYPE_CHECKING:  # it imports the database's library
    from deployments.store.store import Store

PATH = "/v1/files"
ID = re.compile("file-[0-9a-f]{32}")
FILE_BYTES = 200 * 10**6
FORM_BYTES = 2**16
"""What a form may have beside its file."""
UPLOADS = 8
"""How many uploads an ingress takes at a time; each has some 2 MiB of memory."""
ALL_S = 1800.0
"""Seconds in which a whole upload must have arrived; each piece has `BODY_S`."""
PIECE_BYTES = 2**20
PURPOSES = ("batch", "batch_output")
LISTED = 10_000
TTL_S = range(3600, 30 * 86400 + 1)
EXPIRES_AFTER = re.compile(r"expires_after\[(anchor|seconds)\]")


class Files:
    """The routes to files. `responses` has the store that they share."""

    def __init__(self, responses: Responses, settings: StoreSettings) -> None:
        self._responses, self._settings = responses, settings
        self._uploads = 0

    async def upload(self, request: Request) -> Response:
        """Take a file in pieces, each of which is in the store before the next is read."""
        store = await self.store()
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > FILE_BYTES + FORM_BYTES:
            raise _too_large()
        if self._uploads >= UPLOADS:
            raise OverloadedError(f"{UPLOADS} files are being uploaded already; try again after a moment")
        form = Form(request.headers.get("content-type", ""))
        self._uploads += 1
        name = None
        try:
            name = await store.files.begin(client_name())
            size = await _read(request, form, store, name)
            prepared()
            ttl_s = _checked(form, size, self._settings.ttl_s)
            assert form.filename is not None
            file = await store.files.complete(name, form.filename, size, ttl_s)
            if file is None:
                raise BodyTimeoutError("the file has not arrived in time")
            name = None
        finally:
            self._uploads -= 1
            if name is not None:
                with contextlib.suppress(SatoriError):  # it is removed when its time is over
                    await asyncio.shield(store.files.remove(name))
        return JSONResponse(described(file))

    async def list(self, purpose: str | None, after: str | None, limit: int, ascending: bool) -> Response:
        """List a key's files."""
        store = await self.store()
        last = None if after is None else await self._found(store, after, "after")
        found = await store.files.list(client_name(), purpose, last, limit + 1, ascending)
        return JSONResponse(listed([described(file) for file in found], limit))

    async def retrieve(self, file_id: str) -> Response:
        """Describe a file."""
        return JSONResponse(described(await self._found(await self.store(), file_id)))

    async def content(self, file_id: str) -> Response:
        """Stream what a file holds."""
        store = await self.store()
        file = await self._found(store, file_id)
        headers = {
            "content-length": str(file.bytes),  # a file that is removed meanwhile ends its stream with an error
            "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
            "x-content-type-options": "nosniff",
        }
        return StreamingResponse(store.files.content(file), media_type="application/octet-stream", headers=headers)

    async def remove(self, file_id: str) -> Response:
        """Delete a file, unless a batch reads it."""
        store = await self.store()
        await self._found(store, file_id)
        if (batch := await store.files.remove(file_id)) is not None:
            raise OutOfBoundsError("file_id", f"{file_id} is read by {batch}, which has not ended; cancel that first")
        return JSONResponse({"id": file_id, "object": "file", "deleted": True})

    async def store(self) -> "Store":
        """Return the store. Raises VLLMValidationError where there is none."""
        store = await self._responses.open_store()
        if store is None:
            raise VLLMValidationError("files and batches are not kept here (store.url)")
        return store

    async def _found(self, store: "Store", file_id: str, param: str = "file_id") -> StoredFile:
        file = await store.files.load(file_id, client_name()) if ID.fullmatch(file_id) else None
        if file is None:
            raise StoredFileNotFoundError(file_id[:SHOWN], param)
        return file


def mount(app: FastAPI, files: Files) -> None:
    """Add the routes."""

    @app.post(PATH)
    async def upload_file(raw_request: Request) -> Response:
        """Upload a file of requests for a batch, as a form with `purpose` (`batch`) and `file`."""
        return await files.upload(raw_request)

    @app.get(PATH)
    async def list_files(
        purpose: str | None = Query(None, pattern=f"^({'|'.join(PURPOSES)})$"),
        after: str | None = None,
        limit: int = Query(LISTED, ge=1, le=LISTED),
        order: str = Query("desc", pattern="^(asc|desc)$"),
    ) -> Response:
        """List files."""
        return await files.list(purpose, after, limit, order == "asc")

    @app.get(PATH + "/{file_id}")
    async def retrieve_file(file_id: str) -> Response:
        """Describe a file."""
        return await files.retrieve(file_id)

    @app.delete(PATH + "/{file_id}")
    async def delete_file(file_id: str) -> Response:
        """Delete a file."""
        return await files.remove(file_id)

    @app.get(PATH + "/{file_id}/content")
    async def download_file(file_id: str) -> Response:
        """Return what a file holds."""
        return await files.content(file_id)


def described(file: StoredFile) -> dict[str, Any]:
    """Return a file as clients see it."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at),
        "expires_at": int(file.expires_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


def listed(found: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """Return a page of a list; `found` has one more where there are more."""
    page = found[:limit]
    ids = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return {"object": "list", "data": page, **ids, "has_more": len(found) > limit}


async def _read(request: Request, form: Form, store: "Store", name: str) -> int:
    """Put what a form's file holds into the store; return its size."""
    size = number = 0
    pieces = aiter(request.stream())
    end = time.monotonic() + ALL_S
    while True:
        if (left_s := end - time.monotonic()) <= 0:
            raise BodyTimeoutError(f"the file has not arrived within {ALL_S:g} s ({size} bytes have)")
        try:
            async with asyncio.timeout(min(BODY_S, left_s)):
                arrived = await anext(pieces, b"")
        except TimeoutError:
            raise BodyTimeoutError(f"the rest of the file has not arrived in time ({size} bytes have)") from None
        except ClientDisconnect:
            raise BodyTimeoutError("the client has gone") from None
        form.feed(arrived)
        if size + len(form.data) > FILE_BYTES:
            raise _too_large()
        while len(form.data) >= PIECE_BYTES or (form.data and not arrived):
            piece = bytes(form.data[:PIECE_BYTES])
            del form.data[:PIECE_BYTES]
            await store.files.append(name, number, piece)
            size, number = size + len(piece), number + 1
        if not arrived:
            return size


def _checked(form: Form, size: int, most_s: float) -> float:
    """Return for how long a file is to be kept. Raises OutOfBoundsError for a form that is not right."""
    if not form.ended:
        raise OutOfBoundsError(None, "the form ends too early")
    if (purpose := form.fields.get("purpose")) != PURPOSES[0]:
        raise OutOfBoundsError("purpose", f"{(purpose or '')[:SHOWN]!r}; allowed: {PURPOSES[0]}")
    if form.filename is None or not size:
        raise OutOfBoundsError("file", "the form has no file, or an empty one")
    after = {found[1]: value for name, value in form.fields.items() if (found := EXPIRES_AFTER.fullmatch(name))}
    return ttl_s("expires_after", after, most_s) if after else most_s


def ttl_s(name: str, after: dict[str, Any], most_s: float) -> float:
    """Return the seconds for which a file is to be kept. Raises OutOfBoundsError."""
    seconds = str(after.get("seconds"))
    if after.get("anchor") != "created_at":
        raise OutOfBoundsError(f"{name}.anchor", "allowed: created_at")
    if not re.fullmatch(r"\d{1,9}", seconds, re.ASCII) or int(seconds) not in TTL_S:
        raise OutOfBoundsError(f"{name}.seconds", f"{seconds[:SHOWN]!r}; allowed: {TTL_S[0]} to {TTL_S[-1]}")
    return min(most_s, int(seconds))


def _too_large() -> RequestTooLargeError:
    return RequestTooLargeError(f"the file is larger than {FILE_BYTES} bytes")
