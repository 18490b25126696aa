"""A client for the part of the public HTTP API that the page needs. Every failure is an `ApiError`."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx

from ui.errors import ApiError, LostError, UnreachableError, from_event, from_response

CONNECT_S = 5.0
STATE_S = 10.0
"""`/ready` itself waits up to two seconds for a replica."""


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

    async def chat(self, body: dict[str, Any], key: str = "") -> AsyncGenerator[dict[str, Any]]:
        """Yield the chunks of a streamed chat completion.

        Closing the iterator closes the connection, and the API then stops the request. Raises `UnreachableError` where the request
        was not sent, `LostError` where the stream ended early.
        """
        request = self._http.build_request("POST", "/v1/chat/completions", json=body, headers=_headers(key))
        try:
            response = await self._http.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise UnreachableError(str(error)) from error
        except httpx.TransportError as error:
            raise LostError(str(error)) from error
        async with aclosing(response):
            if not response.is_success:
                text = (await response.aread()).decode(errors="replace")
                raise from_response(response.status_code, _body(text), response.headers)
            try:
                async for line in response.aiter_lines():
                    if not line.startswith("data:"):
                        continue
                    data = line.removeprefix("data:").strip()
                    if data == "[DONE]":
                        return
                    chunk = json.loads(data)
                    if chunk.get("error"):
                        raise from_event(chunk["error"])
                    yield chunk
            except (httpx.TransportError, json.JSONDecodeError) as error:
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
