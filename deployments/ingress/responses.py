"""Stored responses: OpenAI's Responses with `store: true` or `background: true`. They outlive client, ingress and server.

A stored response is made by a task of its own, which no client's leaving ends. Its tokens go to the store first, and its events are
made from what is there (see `deployments.store.chain`). They are a function of the request and the tokens alone, ids and times
included, so any ingress makes the same ones again: for a client that asks for those after a number, and to go on with a response
whose ingress has died.
"""

import asyncio
import contextlib
import contextvars
import hashlib
import itertools
import json
import os
import re
import socket
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Query, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from vllm.entrypoints.openai.responses import serving, streaming_events, utils
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.renderers import chat_utils
from vllm.v1.engine.exceptions import EngineDeadError

from deployments.access.usage import client, client_name
from deployments.errors import OverloadedError, ResponseNotFoundError, SatoriError, error_body
from deployments.host.run import RUN, draining
from deployments.ingress.endpoints import previous
from deployments.ingress.frontend import BoundedLLM
from deployments.ingress.middleware.intake import prepared
from deployments.observability import logs, metrics
from deployments.patching import patch
from deployments.reasoning.chains import check_coat
from deployments.reasoning.request import CoatResponsesRequest
from deployments.settings import ROOT, StoreSettings
from deployments.store import chain as chains
from deployments.store.chain import Chain
from deployments.store.values import Lease, Stored

if TYPE_CHECKING:
    from deployments.store.store import Store

logger = logs.logger("store")

PATH = "/v1/responses"
ID = re.compile("resp_[0-9a-f]{32}")
ENDED = "response.completed"
"""The last event, as vLLM calls it whatever the status is."""
POLL_S = 0.2
AWAY_S = 2.0
EXPIRE_S = 60.0
CLAIMS = 16
"""How many responses an ingress takes over at a time."""
RENEWALS = 3
"""How often a lease is extended while it lasts."""
LISTED = 100
WATCHERS = 16
"""How many clients may read the events of a stored reply anew at a time, from one ingress: each takes a place in its queue."""
UNKNOWN = {"code": "server_error", "message": "the server failed to handle this request"}
STATUSES = ("completed", "incomplete", "failed", "cancelled")
BUSY = (429, 503)
_ids: ContextVar[Iterator[str] | None] = ContextVar("ids", default=None)
random_uuid = utils.random_uuid


def default_url(port: int) -> str | None:
    """Return the path of the store of what `make serve` starts; None for other applications, which may be on several hosts."""
    return str(ROOT / ".run" / "store" / f"{port}.sqlite") if RUN in os.environ else None


def wanted(request: CoatResponsesRequest) -> bool:
    """Return whether a response is to be stored: its request says so. OpenAI's default is to store; here it is not to."""
    return bool(request.background) or ("store" in request.model_fields_set and bool(request.store))


Make = Callable[[Stored, Chain, AsyncIterable[Any] | None], AsyncGenerator[dict[str, Any], None]]
"""Makes the events of what is stored: each has a `type` and a `sequence_number`; the type of the last one ends with a status."""


class Run:
    """A response that is being made here.

    `events` gets each event of it, for the client that asked for it; None ends them. `rests` is set while that client has had all
    that came before, `told` is the number of its last event.
    """

    def __init__(self, stored: Stored, chain: Chain) -> None:
        self.stored, self.chain = stored, chain
        self.events: asyncio.Queue[dict[str, Any] | None] | None = None
        self.rests, self.told = False, -1
        self.task: asyncio.Task[None] | None = None


class Responses:
    """The stored responses of an ingress: those that it makes, and the routes to all of them.

    `vllm` is vLLM's server for `/v1/responses`.
    """

    def __init__(self, vllm: Any, engine: BoundedLLM, settings: StoreSettings, url: str | None, model: str) -> None:
        self.server, self._engine, self._settings, self._model = vllm, engine, settings, model
        self._url = url if settings.enabled and not vllm.use_harmony else None
        self._opened: Store | None = None
        self.makers: dict[str, Make] = {"resp": self._events}
        """By the first part of an id: stored chats are in the same store, run and continued alike."""
        self._runs: dict[str, Run] = {}
        self._watching: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def store(self) -> "Store":
        """The store, once it is open."""
        assert self._opened is not None
        return self._opened

    @property
    def enabled(self) -> bool:
        """Whether responses can be stored."""
        return self._url is not None

    async def _open(self, url: str) -> None:
        """Open the store. Its library is imported with the first stored response, in a thread: most servers have none."""
        if self._opened is None:
            module = await asyncio.to_thread(_import_store)
            holder = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
            settings = self._settings
            made = module.Store(url, holder, lease_s=settings.lease_s, max_bytes=settings.max_bytes)
            self._opened = self._opened or made

    async def open_store(self) -> "Store | None":
        """Return the store, opened; None where nothing is kept."""
        if self._url is not None:
            await self._open(self._url)
        return self._opened

    async def existing_store(self) -> "Store | None":
        """Return the store, opened, if anything was ever kept in it."""
        return self.store if await self._is_there() else None

    async def _is_there(self) -> bool:
        """Return whether there is a store, so that there may be responses in it; it is open then."""
        if self._url is None or not (self._opened is not None or "://" in self._url or os.path.isfile(self._url)):  # noqa: PTH113
            return False  # `is_file` would raise where the folder is another user's
        await self._open(self._url)
        return True

    def start(self) -> None:
        """Go on with what nobody goes on with, from now on."""
        metrics.STORED_RUNNING.labels().set_function(lambda: len(self._runs))
        for status in STATUSES:
            metrics.STORED_RESPONSES.labels(status)
        metrics.STORE_FAILURES.labels()
        if self._url is not None:
            self._spawn(self._keep_watch())

    def close(self) -> None:
        """End all tasks; what they were making stays unfinished in the store."""
        for task in self._tasks:
            task.cancel()
        if self._opened is not None:
            self._opened.close()

    # What clients ask for.

    async def create(self, request: CoatResponsesRequest, raw_request: Request) -> Response:
        """Make a stored response; answer with its events, with the response when it has ended, or at once in the background."""
        await self._open(self._check(request))
        body = json.loads(await raw_request.body())  # what `json` gives has vLLM's items in it by now
        stored = Stored(
            id=f"resp_{uuid.uuid4().hex}",
            owner=client_name(),
            model=self._model,
            status="queued" if request.background else "in_progress",
            background=bool(request.background),
            request="",
            input="",
            result="",
            created_at=float(int(time.time())),
            expires_at=time.time() + self._settings.ttl_s,
        )
        items = input_items(body["input"], stored.id)
        if request.previous_response_id is not None:
            items = body["input"] = [*await self.before(request.previous_response_id), *items]
        stored = replace(stored, request=json.dumps(body), input=json.dumps(items))
        made = await self.server.create_responses(self._inner(stored), raw_request)
        if isinstance(made, ErrorResponse):
            return JSONResponse(made.model_dump(mode="json", by_alias=True), made.error.code)
        self._engine.check_admission(1)
        first = _dumped(await anext(made))  # it says what the request comes to, and nothing has been generated
        stored = replace(stored, result=json.dumps(self._response(stored, first["response"], stored.status)))
        lease = await self.store.create(stored)
        prepared()
        run = Run(stored, Chain(self.store, stored.id, lease))
        if not stored.background or request.stream:
            run.events = asyncio.Queue()
        self.begin(run, _with_first(first, made))
        if run.events is None:
            return JSONResponse(json.loads(stored.result))
        if request.stream:
            return _streamed(self.events_of(run))
        last = None
        async for event in self.events_of(run):
            last = event
        if last is None or "response" not in last:
            raise SatoriError("the response did not end")
        return JSONResponse(last["response"])

    async def retrieve(self, response_id: str, stream: bool, starting_after: int | None) -> Response:
        """Return a response as it is now, or its events after a number."""
        stored = await self._mine(response_id)
        if not stream:
            return JSONResponse(_current(stored))
        if (refusal := beyond(stored, starting_after)) is not None:
            return refusal
        return _streamed(self.watch(stored, starting_after))

    async def cancel(self, response_id: str) -> Response:
        """Cancel a response that runs in the background. What was generated so far is kept."""
        stored = await self._mine(response_id)
        if not stored.background:
            return refused("only a response with `background: true` can be cancelled", 400, "response_id")
        if await self.store.cancel(response_id):
            metrics.STORED_RESPONSES.labels("cancelled").inc()
            if (run := self._runs.get(response_id)) is not None:
                run.chain.lose()
        return JSONResponse(_current(await self._mine(response_id)))

    async def remove(self, response_id: str) -> Response:
        """Delete a response, also while it is being made."""
        await self._mine(response_id)
        await self.drop(response_id)
        return JSONResponse({"id": response_id, "object": "response", "deleted": True})

    async def drop(self, stored_id: str) -> None:
        """Remove what is stored, and end it where it is being made here; other ingresses find that it is gone."""
        await self.store.remove(stored_id)
        if (run := self._runs.get(stored_id)) is not None:
            run.chain.lose()

    async def input_items(self, response_id: str, order: str, limit: int, after: str | None) -> Response:
        """Return the items of a response's input, those of the responses before it among them."""
        items = json.loads((await self._mine(response_id)).input)
        if order == "desc":
            items.reverse()
        if after is not None:
            places = [place for place, item in enumerate(items) if item["id"] == after]
            if not places:
                return refused(f"after={after!r}: the response has no such item", 400, "after")
            items = items[places[0] + 1 :]
        page = items[:limit]
        ids = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
        return JSONResponse({"object": "list", "data": page, **ids, "has_more": len(items) > limit})

    async def _mine(self, response_id: str) -> Stored:
        stored = await self.find(response_id) if ID.fullmatch(response_id) is not None else None
        if stored is None:
            raise ResponseNotFoundError(response_id)
        return stored

    async def find(self, stored_id: str) -> Stored | None:
        """Return what the current client has stored under this id; None if there is nothing."""
        return await self.store.load(stored_id, client_name()) if await self._is_there() else None

    async def before(self, response_id: str) -> list[dict[str, Any]]:
        """Return the items of a response's input and output."""
        try:
            stored = await self._mine(response_id)
        except ResponseNotFoundError as error:
            error.param = "previous_response_id"
            raise
        if stored.running:
            message = f"the response {response_id} has not ended; wait for it, or cancel it"
            raise VLLMValidationError(message, parameter="previous_response_id")
        return [*json.loads(stored.input), *json.loads(stored.result)["output"]]

    def _check(self, request: CoatResponsesRequest) -> str:
        """Return where the store is. Raises VLLMValidationError for what cannot be stored."""
        if self._url is None:
            message = "background: replies are not kept here (store.url), so none can be written in the background; leave it out"
            raise VLLMValidationError(message, parameter="background")
        for name, given in (
            ("coat.vote", request.vote is not None),
            ("include", request.is_include_output_logprobs()),
            ("enable_response_messages", request.enable_response_messages),
            ("previous_input_messages", request.previous_input_messages),
        ):
            if given:
                raise VLLMValidationError(f"{name}: a response with it cannot be stored; send `store: false`", parameter=name)
        return self._url

    # Making them.

    def _inner(self, stored: Stored) -> CoatResponsesRequest:
        """Return the request that vLLM's server gets for a stored one."""
        body = json.loads(stored.request) | {"background": False, "store": False, "stream": True, "request_id": stored.id}
        return CoatResponsesRequest.model_validate(body | {"previous_response_id": None})

    def _response(self, stored: Stored, made: dict[str, Any], status: str) -> dict[str, Any]:
        """Return the response that clients see, of the one that vLLM has made."""
        return made | {
            "id": stored.id,
            "created_at": int(stored.created_at),
            "status": status,
            "background": stored.background,
            "store": True,
            "previous_response_id": json.loads(stored.request).get("previous_response_id"),
        }

    def begin(self, run: Run, made: AsyncIterable[Any] | None = None) -> None:
        """Make what is stored, in a task of its own."""
        self._runs[run.stored.id] = run
        run.task = self._spawn(self._keep_running(run, made), context_of(run.stored))

    async def _keep_running(self, run: Run, made: AsyncIterable[Any] | None) -> None:
        try:
            async for event in self._made(run.stored, run.chain, made):
                if run.events is not None:
                    run.events.put_nowait(event)
        except Exception as error:
            logger.warning("response %s stops here, and may go on later: %s", run.stored.id, error)
            if (lease := run.chain.lease) is not None:
                with contextlib.suppress(SatoriError):
                    await asyncio.sleep(AWAY_S)
                    await self.store.release(lease)
        finally:
            run.chain.stop()
            if self._runs.get(run.stored.id) is run:
                del self._runs[run.stored.id]
            if run.events is not None:
                run.events.put_nowait(None)

    def _made(self, stored: Stored, chain: Chain, made: AsyncIterable[Any] | None = None) -> AsyncGenerator[dict[str, Any], None]:
        chains.current.set(chain)
        _ids.set(_ids_of(stored.id))
        return self.makers[stored.id.partition("_")[0]](stored, chain, made)

    async def _events(
        self, stored: Stored, chain: Chain, made: AsyncIterable[Any] | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the events of a response from its first token on, as they come. The holder of its lease ends it with the last one.

        Raises GracefulHTTPError where this ingress is too busy.
        """
        numbers = itertools.count()
        last: dict[str, Any] = {"type": ENDED, "response": json.loads(stored.result) | {"error": UNKNOWN}}
        status = "failed"
        try:
            if made is None:
                made = await self.server.create_responses(self._inner(stored), None)
                if isinstance(made, ErrorResponse):
                    raise VLLMValidationError(made.error.message)
            async for each in made:
                event = _dumped(each)
                if event["type"] == ENDED:
                    last, status = event, event["response"]["status"]
                    break
                if "response" in event:
                    first = event["type"] == "response.created"
                    waits = stored.background and first
                    event["response"] = self._response(stored, event["response"], "queued" if waits else "in_progress")
                    yield event | {"sequence_number": next(numbers)}
                    if waits:
                        yield event | {"type": "response.queued", "sequence_number": next(numbers)}
                elif event["type"] != "error":
                    yield event | {"sequence_number": next(numbers)}
        except GracefulHTTPError as error:
            if chain.end is None and error.http_status in BUSY:
                raise
            last["response"] |= {"error": {"code": "server_error", "message": error.message}}
        except EngineDeadError:  # this ingress is shutting down
            raise
        except Exception as error:
            logger.warning("response %s failed", stored.id, exc_info=error)
        if status == "failed" and chain.end is not None and chain.end.code is not None:
            last["response"] |= {"error": {"code": "server_error", "message": f"{chain.end.code}: {chain.end.message}"}}
        number = next(numbers)
        if chain.lease is not None:
            result = json.dumps(self._response(stored, last["response"], status))
            if await self.store.finish(chain.lease, status, result, number):
                metrics.STORED_RESPONSES.labels(status).inc()
            else:
                chain.lose()
        yield await self._ended(stored, number)

    async def _ended(self, stored: Stored, number: int) -> dict[str, Any]:
        """Wait for the end of a response; return its last event, whose response is the one in the store."""
        while True:
            with contextlib.suppress(SatoriError):
                found = await self.store.load(stored.id, None)
                if found is None:
                    response = json.loads(stored.result) | {"status": "cancelled"}
                    return {"type": "response.cancelled", "response": response, "sequence_number": number}
                if not found.running:
                    return {"type": f"response.{found.status}", "response": _current(found), "sequence_number": number}
            await asyncio.sleep(POLL_S)

    async def events_of(self, run: Run) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the events of a response that is made here. Where that stops, go on with what another ingress makes of it."""
        assert run.events is not None
        try:
            while True:
                run.rests = True
                event = await run.events.get()
                run.rests = False
                if event is None:
                    break
                run.told = event["sequence_number"]
                yield event
                if _is_last(event):
                    return
        finally:
            run.events = None
        async for event in self.follow(run.stored, run.told):
            yield event

    def watch(self, stored: Stored, starting_after: int | None) -> AsyncGenerator[dict[str, Any], None]:
        """Return the events of a response after a number, for one client more.

        Raises OverloadedError where as many watch it here as may, GracefulHTTPError where this ingress is too busy.
        """
        if self._watching[stored.id] >= WATCHERS:
            raise OverloadedError(f"{WATCHERS} clients are reading this reply here already; try again after a moment")
        self._engine.check_admission(1)

        async def watched() -> AsyncGenerator[dict[str, Any], None]:
            self._watching[stored.id] += 1
            try:
                async for event in self.follow(stored, -1 if starting_after is None else starting_after):
                    yield event
            finally:
                self._watching[stored.id] -= 1
                if not self._watching[stored.id]:
                    del self._watching[stored.id]

        return watched()

    async def follow(self, stored: Stored, after: int) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the events of a response after a number, made anew from its tokens as they are written."""
        chain = Chain(self.store, stored.id)
        events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(1)

        async def make() -> None:
            try:
                async with contextlib.aclosing(self._made(stored, chain)) as made:
                    async for event in made:
                        if event["sequence_number"] > after:
                            await events.put(event)
            finally:
                chain.stop()
            await events.put(None)

        # In a context of its own: a client that reads slowly, or leaves, must not be the one in whose context tokens are read.
        task = self._spawn(make(), context_of(stored))
        try:
            while True:
                getting = asyncio.ensure_future(events.get())
                await asyncio.wait((getting, task), return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    getting.cancel()
                    task.result()  # what it failed with
                    return
                if (event := getting.result()) is None:
                    return
                yield event
        finally:
            task.cancel()

    # What nobody goes on with.

    async def _keep_watch(self) -> None:
        expired = 0.0
        while True:
            try:
                if await self._is_there():
                    for run in list(self._runs.values()):
                        run.chain.renew()
                    if not draining():
                        await self._claim()
                    if time.monotonic() - expired > EXPIRE_S and not await self.store.expire():
                        expired = time.monotonic()
            except SatoriError as error:
                logger.warning("%s", error)
            except Exception:  # the next round may succeed
                logger.exception("the stored responses could not be looked after")
            await asyncio.sleep(self._settings.lease_s / RENEWALS)

    async def _claim(self) -> None:
        for response_id in await self.store.claimable(self._model, CLAIMS):
            taken: tuple[Lease, Stored, list[int]] | None = await self.store.claim(response_id)
            if taken is not None:
                lease, stored, tokens = taken
                metrics.STORED_CLAIMS.labels().inc()
                logger.info("response %s goes on here after %d tokens", response_id, len(tokens))
                self.begin(Run(stored, Chain(self.store, response_id, lease, tokens, stored.end)))

    def _spawn(self, work: Any, context: contextvars.Context | None = None) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def mount(app: FastAPI, responses: Responses) -> None:
    """Replace vLLM's routes to responses with these. Those that are not to be stored go to vLLM's as before."""
    routes = app.router.routes
    original = next(route for route in routes if getattr(route, "path", None) == PATH)
    routes[:] = [route for route in routes if not getattr(route, "path", "").startswith(PATH)]
    options: dict[str, Any] = {"dependencies": original.dependencies, "responses": original.responses}  # type: ignore[attr-defined]

    @app.post(PATH, **options)
    async def create_responses(request: CoatResponsesRequest, raw_request: Request) -> Any:
        """Make a response, with the extension `coat`."""
        check_coat(request, responses.server)
        if wanted(request) and (responses.enabled or request.background):
            return await responses.create(request, raw_request)
        if (before := request.previous_response_id) is not None:
            body = json.loads(await raw_request.body())
            body["input"] = [*await responses.before(before), *input_items(body["input"], request.request_id)]
            request = CoatResponsesRequest.model_validate(body | {"previous_response_id": None})
            previous.set(before)
        return await original.endpoint(request=request, raw_request=raw_request)  # type: ignore[attr-defined]

    @app.get(PATH + "/{response_id}")
    async def retrieve_responses(
        response_id: str, stream: bool = False, starting_after: int | None = Query(None, ge=0)
    ) -> Response:
        """Return a stored response, or its events."""
        return await responses.retrieve(response_id, stream, starting_after)

    @app.delete(PATH + "/{response_id}")
    async def delete_responses(response_id: str) -> Response:
        """Delete a stored response."""
        return await responses.remove(response_id)

    @app.post(PATH + "/{response_id}/cancel")
    async def cancel_responses(response_id: str) -> Response:
        """Cancel a stored response that runs in the background."""
        return await responses.cancel(response_id)

    @app.get(PATH + "/{response_id}/input_items")
    async def list_input_items(
        response_id: str,
        order: str = Query("desc", pattern="^(asc|desc)$"),
        limit: int = Query(20, ge=1, le=LISTED),
        after: str | None = None,
    ) -> Response:
        """List the items of a stored response's input."""
        return await responses.input_items(response_id, order, limit, after)


def make_ids_again() -> None:
    """Have vLLM name the items of a stored response after it, and others at random as before."""
    for module in (serving, streaming_events, utils, chat_utils):
        patch(
            module,
            "random_uuid",
            _next_id,
            why="vLLM 0.32.0 names items at random, so that nobody could make the same events again",
            until="it can be told how to name them",
        )


def input_items(given: str | list[Any], response_id: str) -> list[dict[str, Any]]:
    """Return a request's input as items, each with an id."""
    if isinstance(given, str):
        given = [{"role": "user", "content": [{"type": "input_text", "text": given}]}]
    items = []
    for number, item in enumerate(given):
        kind = item.get("type", "message")
        name = f"{'msg' if kind == 'message' else kind}_{_hashed(response_id, f'input {number}')}"
        items.append({"type": kind, **item, "id": item.get("id") or name})
    return items


def _import_store() -> ModuleType:
    from deployments.store import store

    return store


def _next_id() -> str:
    ids = _ids.get()
    return random_uuid() if ids is None else next(ids)


def _ids_of(response_id: str) -> Iterator[str]:
    return (_hashed(response_id, number) for number in itertools.count())


def _hashed(response_id: str, what: Any) -> str:
    return hashlib.sha256(f"{response_id} {what}".encode()).hexdigest()[:32]


def _dumped(event: Any) -> dict[str, Any]:
    dumped: dict[str, Any] = event.model_dump(mode="json", by_alias=True)
    return dumped


async def _with_first(first: dict[str, Any], rest: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
    yield _Dumped(first)
    async for event in rest:
        yield event


class _Dumped:
    """An event that was dumped before."""

    def __init__(self, event: dict[str, Any]) -> None:
        self._event = event

    def model_dump(self, **_: Any) -> dict[str, Any]:
        return self._event


def _current(stored: Stored) -> dict[str, Any]:
    """Return a response as it is now."""
    current: dict[str, Any] = json.loads(stored.result) | {"status": stored.status}
    return current


def _is_last(event: dict[str, Any]) -> bool:
    return event["type"].partition(".")[2] in STATUSES


def _streamed(events: AsyncIterator[dict[str, Any]]) -> StreamingResponse:
    async def written() -> AsyncGenerator[str, None]:
        async for event in events:
            yield f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n"

    return StreamingResponse(written(), media_type="text/event-stream")


def context_of(stored: Stored) -> contextvars.Context:
    """Return a context for what is done for a stored reply: its owner's, and no client's request."""
    context = contextvars.Context()
    context.run(client.set, stored.owner)
    return context


def beyond(stored: Stored, starting_after: int | None) -> JSONResponse | None:
    """Return the refusal of a request for events after one that there is not; None if there is, or may be."""
    if starting_after is None or stored.last_event is None or starting_after <= stored.last_event:
        return None
    message = f"starting_after={starting_after}: the last event of this response is {stored.last_event}"
    return refused(message, 400, "starting_after")


def refused(message: str, status: int, param: str) -> JSONResponse:
    """Return a refusal in the form of OpenAI's API."""
    return JSONResponse(error_body(message, "BadRequestError", status, param), status)
