"""Chats that are stored: streams that a client may resume, those of requests with the header `x-satori-resume: 1`.

They are kept and gone on with as stored responses are (see `deployments.ingress.responses`), under the request's `x-request-id`.
Each event has a number, its `id` in the stream, and each token a chunk of its own, so that any ingress makes the same events again.
"""

import asyncio
import hashlib
import itertools
import json
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from typing import Any

from fastapi import Depends, FastAPI, Header, Query, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import validate_json_request
from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.v1.engine.exceptions import EngineDeadError

from deployments.access.usage import client_name
from deployments.errors import AlreadyStoredError, ChatNotFoundError, EngineLostError, SatoriError, error_body
from deployments.ingress import outlet as outlets
from deployments.ingress.frontend import BoundedLLM
from deployments.ingress.middleware.intake import prepared
from deployments.ingress.responses import BUSY, Responses, Run, beyond, context_of
from deployments.observability import logs, metrics
from deployments.observability.record import current as current_record
from deployments.reasoning.chains import check_coat
from deployments.reasoning.request import CoatChatRequest
from deployments.reasoning.serving import PATH
from deployments.settings import StoreSettings
from deployments.store.chain import Chain
from deployments.store.values import Stored

logger = logs.logger("store")

HEADER = "x-satori-resume"
NAME = "chatcmpl-"
DONE = "[DONE]"
ENDING = str(EngineDeadError())
"""What vLLM's stream says where this ingress is shutting down."""
DATA = "data: "
ERROR, CREATED, CREATED_BYTES = '{"error":', re.compile(r'"created":\s*\d+,'), re.compile(rb'"created":\s*\d+,')
EVENT, LAST = "chat.chunk", "chat.completed"


class Chats:
    """The stored chats of an ingress. `serving` is vLLM's server for chats; `stored` has the store, and runs what is stored."""

    def __init__(self, serving: Any, engine: BoundedLLM, stored: Responses, settings: StoreSettings, model: str) -> None:
        self._serving, self._engine, self._stored, self._settings, self._model = serving, engine, stored, settings, model
        stored.makers["chat"] = self._events

    async def create(self, request: CoatChatRequest, raw_request: Request) -> Response:
        """Store a chat while it is made, and answer with its events."""
        _check(request)
        check_coat(request, self._serving)
        store = await self._stored.open_store()
        if store is None:
            message = f"{HEADER}: replies are not kept here (store.url), so none can be resumed; leave it out"
            raise VLLMValidationError(message, parameter=HEADER)
        request_id = (raw_request.headers.get("x-request-id") or uuid.uuid4().hex).removeprefix(NAME)
        now = time.time()
        stored = Stored(
            id=_id(request_id),
            owner=client_name(),
            model=self._model,
            status="in_progress",
            background=False,
            request=json.dumps(json.loads(await raw_request.body()) | {"request_id": request_id}),
            input="[]",
            result="{}",
            created_at=float(int(now)),
            expires_at=now + self._settings.ttl_s,
        )
        # In a context of its own, as all of it: what is stored does not end with its client's request.
        context, client, record = context_of(stored), outlets.of_client(), current_record.get()
        direct = _Direct(stored, client, record)
        context.run(outlets.current.set, outlets.StoredOutlet(direct.write))
        made = await asyncio.get_running_loop().create_task(self._made(stored), context=context)
        if isinstance(made, ErrorResponse):
            return JSONResponse(made.model_dump(), made.error.code)
        self._engine.check_admission(1)
        try:
            lease = await store.create(stored)
        except AlreadyStoredError:  # which names the store's id
            raise AlreadyStoredError(request_id) from None
        prepared()
        run = Run(stored, Chain(store, stored.id, lease))
        run.events = asyncio.Queue()
        direct.run, direct.stream = run, made
        self._stored.begin(run, direct)
        return _streamed(self._stored.events_of(run))

    async def resume(self, completion_id: str, starting_after: int | None) -> Response:
        """Return the events of a stored chat after a number, those to come among them."""
        stored = await self._mine(completion_id)
        if (refusal := beyond(stored, starting_after)) is not None:
            return refusal
        return _streamed(self._stored.watch(stored, starting_after))

    async def remove(self, completion_id: str) -> Response:
        """Delete a stored chat, also while it is being made."""
        stored = await self._mine(completion_id)
        await self._stored.drop(stored.id)
        return JSONResponse({"id": completion_id, "object": "chat.completion.deleted", "deleted": True})

    async def _mine(self, completion_id: str) -> Stored:
        stored = await self._stored.find(_id(completion_id.removeprefix(NAME)))
        if stored is None:
            raise ChatNotFoundError(completion_id)
        return stored

    async def _made(self, stored: Stored) -> Any:
        """Return vLLM's stream of a chat, or its refusal."""
        return await self._serving.create_chat_completion(CoatChatRequest.model_validate(json.loads(stored.request)), None)

    async def _events(self, stored: Stored, chain: Chain, made: AsyncIterable[str] | None) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the events of a chat from its first token on, as they come. The holder of its lease ends it with the last one.

        Raises GracefulHTTPError where this ingress is too busy, EngineLostError where it cannot go on.
        """
        numbers = made.numbers if isinstance(made, _Direct) else itertools.count()
        created = _created(stored)
        failure: dict[str, Any] | None = None
        try:
            made = await self._made(stored) if made is None else made
            if isinstance(made, ErrorResponse):
                failure = made.model_dump()
            else:
                async for data in _data(made):
                    if data == DONE:
                        break
                    if data.startswith(ERROR):
                        failure = json.loads(data)
                        break
                    yield {"type": EVENT, "sequence_number": next(numbers), "data": CREATED.sub(created, data, 1)}
        except GracefulHTTPError as error:
            if error.http_status in BUSY:
                raise
            failure = error_body(error.message, "InternalServerError", error.http_status)
        except VLLMValidationError as error:
            failure = error_body(str(error), "BadRequestError", 400, error.parameter)
        except (EngineDeadError, SatoriError):  # this ingress is shutting down, or cannot go on
            raise
        except Exception as error:  # as a template that fails: it would fail again
            logger.warning("chat %s failed", stored.id, exc_info=error)
            failure = error_body("the server failed to handle this request", "InternalServerError", 500)
        if failure is not None:
            if (end := chain.end) is not None and end.code is not None:
                failure = error_body(f"{end.code}: {end.message}", "InternalServerError", 500)
            elif failure["error"]["code"] in BUSY or failure["error"]["message"] == ENDING:
                raise EngineLostError(failure["error"]["message"])
            yield {"type": EVENT, "sequence_number": next(numbers), "data": json.dumps(failure, ensure_ascii=False)}
        number, status = next(numbers), "completed" if failure is None else "failed"
        if chain.lease is not None:
            if await self._stored.store.finish(chain.lease, status, "{}", number):
                metrics.STORED_RESPONSES.labels(status).inc()
            else:
                chain.lose()
        yield {"type": LAST, "sequence_number": number, "data": DONE}


def mount(app: FastAPI, chats: Chats) -> None:
    """Add the routes to stored chats, and let the one to chats store those that ask for it."""
    routes = app.router.routes
    original = next(route for route in routes if getattr(route, "path", None) == PATH)
    routes.remove(original)
    answer: Any = original.endpoint  # type: ignore[attr-defined]

    async def create_chat_completion(request: CoatChatRequest, raw_request: Request) -> Any:
        """Answer a chat: OpenAI's chat completion, with the extension `coat`."""
        if HEADER in raw_request.headers and _wanted(raw_request.headers[HEADER]):
            return await chats.create(request, raw_request)
        return await answer(request=request, raw_request=raw_request)

    options: dict[str, Any] = {"responses": original.responses}  # type: ignore[attr-defined]
    app.post(PATH, dependencies=[Depends(validate_json_request)], **options)(create_chat_completion)
    routes.insert(0, routes.pop())

    @app.get(PATH + "/{completion_id:path}")
    async def resume_chat_completion(
        completion_id: str, starting_after: int | None = Query(None, ge=0), last_event_id: int | None = Header(None, ge=0)
    ) -> Response:
        """Go on with the stream of a stored chat, after an event of it."""
        return await chats.resume(completion_id, last_event_id if starting_after is None else starting_after)

    @app.delete(PATH + "/{completion_id:path}")
    async def delete_chat_completion(completion_id: str) -> Response:
        """Delete a stored chat; one that is being made ends."""
        return await chats.remove(completion_id)


class _Direct:
    """vLLM's stream of a chat that is stored, for the client that asked for it: most events are written past it, as they come.

    An event goes at once to the client's connection (`client`) if that rests, and else after those that wait. All have `numbers`.
    """

    run: Run
    stream: AsyncIterator[str] | None

    def __init__(self, stored: Stored, client: outlets.Outlet | None, record: Any) -> None:
        self.numbers = itertools.count()
        self._client, self._record, self._created = client, record, _created(stored).encode()

    def __aiter__(self) -> AsyncIterator[str]:
        stream, self.stream = self.stream, None  # the stream has this, too: a cycle would keep all of it
        assert stream is not None
        return stream

    def write(self, chunk: bytes, now: float) -> None:
        """Write the event of a chunk."""
        run, number = self.run, next(self.numbers)
        if run.events is None:  # the client has left
            return
        event = CREATED_BYTES.sub(self._created, chunk, 1)
        if self._client is not None and run.rests and run.events.empty() and self._client.ready():
            run.told = number
            self._client.write(b"id: %d\n%b" % (number, event), now)
            if self._record is not None:
                self._record.sent.append(now)
        else:
            run.events.put_nowait({"type": EVENT, "sequence_number": number, "data": event[len(DATA) : -2].decode()})


def _created(stored: Stored) -> str:
    return f'"created":{int(stored.created_at)},'


def _wanted(value: str) -> bool:
    if value not in ("0", "1"):
        raise VLLMValidationError(f"{HEADER}: {value!r} is neither 0 nor 1", parameter=HEADER)
    return value == "1"


def _check(request: CoatChatRequest) -> None:
    """Raise VLLMValidationError for a request whose events nobody could make again."""
    for name, given in (
        ("stream", not request.stream),
        ("n", (request.n or 1) > 1),
        ("coat.vote", request.vote is not None),
        ("logprobs", request.logprobs),
        ("prompt_logprobs", request.prompt_logprobs is not None),
        ("use_beam_search", request.use_beam_search),
    ):
        if given:
            needs = (
                "only a stream can be resumed; set it" if name == "stream" else "a reply with it cannot be resumed; leave it out"
            )
            raise VLLMValidationError(f"{name}: {needs}, or leave the header {HEADER} out", parameter=name)


def _id(request_id: str) -> str:
    """Return the id in the store of a chat of the current client."""
    return f"chat_{hashlib.sha256(json.dumps([client_name(), request_id]).encode()).hexdigest()[:32]}"


async def _data(stream: AsyncIterable[str]) -> AsyncGenerator[str, None]:
    """Yield the data of each event of vLLM's stream."""
    async for written in stream:
        for event in written.split("\n\n"):
            if event.startswith(DATA):
                yield event.removeprefix(DATA)


def _streamed(events: AsyncIterator[dict[str, Any]]) -> StreamingResponse:
    async def written() -> AsyncGenerator[str, None]:
        try:
            async for event in events:
                yield f"id: {event['sequence_number']}\ndata: {event['data']}\n\n"
        except (SatoriError, GracefulHTTPError, EngineDeadError) as error:  # an event without a number: the client may go on later
            yield f"data: {json.dumps(error_body(str(error), type(error).__name__, 503), ensure_ascii=False)}\n\n"

    return StreamingResponse(written(), media_type="text/event-stream")
