"""A client for the part of the public HTTP API that the page needs. Every failure is an `ApiError`."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any, NamedTuple

import httpx

from ui.errors import ApiError, GoneError, LostError, NotStoredError, TakenError, UnreachableError, from_response
from ui.question import Question

PATH = "/v1/chat/completions"
RESUME = "x-satori-resume"
"""The header that asks the API to store a reply, so that it can be read on after its connection has broken."""
NO_STORE = ("store_unavailable", "store_full")

CONNECT_S = 5.0
STATE_S = 10.0
"""`/ready` itself waits up to two seconds for a replica."""


class Event(NamedTuple):
    """An event of a stream. It has a number where the reply is stored: it is the same one whenever the reply is read.

    The first one, of a stream that begins, is empty.
    """

    number: int | None
    data: dict[str, Any]


class Client:
    """The API's client, shared by all users of a process. It holds no state of any of them."""

    def __init__(self, url: str) -> None:
        """`url` is the API's address without `/v1`."""
        # Each request has its own connection. HAProxy with splice(), which is Ray's default but not ours (haproxy.sh), does not
        # notice that the client of a reused connection has left.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        # A reply may take long (a queue, a model that is loading), so reading has no timeout.
        timeout = httpx.Timeout(None, connect=CONNECT_S)
        self._http = httpx.AsyncClient(base_url=url, limits=limits, timeout=timeout, trust_env=False)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def ready(self) -> tuple[str, str]:
        """Return the stage of the model and, where it is not "ready", the reason. Raises `UnreachableError`.

        A request would be answered now ("ready"), later ("loading"), or would start the model, which nobody is using ("asleep").
        """
        response = await self._get("/ready")
        if response.is_success:
            return "ready", ""
        body = _body(response.text)
        fields = body if isinstance(body, dict) else {}
        return "asleep" if fields.get("asleep") else "loading", str(fields.get("reason", ""))

    async def models(self, key: str = "") -> list[dict[str, Any]]:
        """Return the served models: `id` and, where the API gives it, `max_model_len`."""
        response = await self._get("/v1/models", key)
        body = _body(response.text)
        if not response.is_success:
            raise from_response(response.status_code, body, response.headers)
        if not isinstance(body, dict):
            raise ApiError("/v1/models did not answer with a list of models")
        return [{"id": model["id"], "max_model_len": model.get("max_model_len")} for model in body["data"]]

    def chat(self, question: Question, stored: bool) -> AsyncGenerator[Event]:
        """Return the events of a streamed chat completion, which the API is to keep where it is `stored`.

        Closing the iterator closes the connection; the API then stops a request that is not stored. Raises `UnreachableError` where
        the request was not sent, `LostError` where the stream ended early, and for a stored one `TakenError` where the API has its
        id already, `NotStoredError` where it does not store it.
        """
        headers = _headers(question.key) | {"x-request-id": question.id} | ({RESUME: "1"} if stored else {})
        request = self._http.build_request("POST", PATH, json=question.body(), headers=headers)

        def kind(error: ApiError) -> type[ApiError] | None:
            if error.code == "already_stored":
                return TakenError
            return NotStoredError if stored and (error.code in NO_STORE or RESUME in error.message) else None

        return self._stream(request, kind)

    def resume(self, question: Question, after: int | None) -> AsyncGenerator[Event]:
        """Return the events of a stored reply after a number, those to come among them.

        Raises `GoneError` where the API does not have it, `ApiError` with a status that a server passes through, `LostError`.
        """
        params = {} if after is None else {"starting_after": after}
        request = self._http.build_request("GET", f"{PATH}/{question.id}", params=params, headers=_headers(question.key))
        return self._stream(request, lambda error: GoneError if error.code == "chat_not_found" else None)

    async def delete(self, question_id: str, key: str = "") -> None:
        """End and remove a stored reply, if there is one. Raises `UnreachableError` where the API cannot do it now."""
        try:
            response = await self._http.delete(f"{PATH}/{question_id}", headers=_headers(key), timeout=STATE_S)
        except httpx.TransportError as error:
            raise UnreachableError(str(error)) from error
        if response.is_server_error:
            raise UnreachableError(f"HTTP {response.status_code}")

    async def _stream(self, request: httpx.Request, kind: Callable[[ApiError], type[ApiError] | None]) -> AsyncGenerator[Event]:
        """Yield the events of a stream. `kind` says what an error of the API means here; None for no more than it says."""
        sending = asyncio.ensure_future(self._http.send(request, stream=True))
        try:
            response = await asyncio.shield(sending)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise UnreachableError(str(error)) from error
        except httpx.TransportError as error:
            raise LostError(str(error)) from error
        except asyncio.CancelledError:  # what the API stores, it has once it answers: only then can it be deleted
            with suppress(httpx.TransportError, TimeoutError):
                response = await asyncio.wait_for(sending, CONNECT_S)
                await response.aclose()
            raise
        async with aclosing(response):
            if not response.is_success:
                text = (await response.aread()).decode(errors="replace")
                refused = from_response(response.status_code, _body(text), response.headers)
                raise refused if (meaning := kind(refused)) is None else meaning(refused.message)
            yield Event(None, {})
            number: int | None = None
            try:
                async for line in response.aiter_lines():
                    if line.startswith("id:"):
                        number = int(line.removeprefix("id:"))
                    if not line.startswith("data:"):
                        continue
                    data = line.removeprefix("data:").strip()
                    if data == "[DONE]":
                        return
                    yield Event(number, json.loads(data))
                    number = None
            except (httpx.TransportError, ValueError) as error:
                raise LostError(str(error)) from error
        raise LostError("the stream ended without [DONE]")

    async def _get(self, path: str, key: str = "") -> httpx.Response:
        try:
            return await self._http.get(path, headers=_headers(key), timeout=httpx.Timeout(STATE_S, connect=CONNECT_S))
        except httpx.TransportError as error:
            raise UnreachableError(str(error)) from error


def _headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def _body(text: str) -> Any:
    """Return a body's JSON, or its text where it has none (a proxy's error page)."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
