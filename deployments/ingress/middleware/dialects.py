"""Errors, and how streams end, in the shape of the API that a request came by.

What answers a request, vLLM 0.32.0 and our other middleware, writes errors as OpenAI's chat API does. Anthropic's API has other
ones (https://docs.anthropic.com/en/api/errors), and a stream of Responses ends with the event of its status or with an error.
"""

import json
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import STATUS_OF, error_body
from deployments.ingress import outlet
from deployments.observability import logs
from deployments.observability.record import failed

logger = logs.logger("ingress")
TYPES = MappingProxyType(
    {
        400: "invalid_request_error",
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        503: "overloaded_error",
        504: "timeout_error",
    }
)
"""Anthropic's type of an error, by HTTP status; other statuses are those of `invalid_request_error` below 500, else `api_error`."""
ERROR_EVENTS = (b'data: {"error"', b"event: error")
LAST = tuple(f"event: response.{status}\n".encode() for status in ("completed", "incomplete", "failed", "cancelled"))
UNKNOWN = "the server failed to handle this request"


class Dialects:
    """ASGI middleware that rewrites errors of `/v1/messages` and the ends of streams of `/v1/responses`, and makes HEAD a GET."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path = scope["path"] if scope["type"] == "http" else ""
        if scope.get("method") == "HEAD":
            scope = {
                **scope,
                "method": "GET",
            }  # FastAPI's routes have no HEAD; the HTTP server, which has its own scope, sends no body
        if path.startswith("/v1/messages"):
            await self._app(scope, receive, _Messages(send).send)
        elif path == "/v1/responses" or path.startswith("/v1/responses/"):
            await _Responses(send, empty=path != "/v1/responses").serve(self._app, scope, receive)
        else:
            await self._app(scope, receive, send)


def anthropic_error(message: str, status: int) -> dict[str, Any]:
    """Return an error's body, or the data of an error event, as Anthropic's API writes it."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


class _Messages:
    """One response of Anthropic's API: any JSON with an error status is rewritten, and error events of a stream."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._refusal: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if message["status"] >= 400:
                self._refusal = message
                return
        elif self._refusal is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                await self._refuse(self._refusal)
            return
        elif (piece := message.get("body", b"")).startswith(ERROR_EVENTS):
            message = {**message, "body": _event("error", anthropic_error(*_said(piece)))}
        await self._send(message)

    async def _refuse(self, start: Message) -> None:
        written = _loaded(self._body)
        if code := _error(written).get("code"):
            failed(str(code))  # the record's middleware is outside, and looks for OpenAI's shape
        body = json.dumps(anthropic_error(_message(written), start["status"])).encode()
        headers = MutableHeaders(raw=list(start["headers"]))
        headers["content-length"] = str(len(body))
        headers["content-type"] = "application/json"
        await self._send({**start, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": body})


class _Responses:
    """One response of OpenAI's Responses API: a stream ends with the event of its status, or with an error event.

    It may be `empty` where the client has had all events before.
    """

    def __init__(self, send: Send, empty: bool) -> None:
        self._send, self._empty = send, empty
        self._outlet = outlet.of_client()
        self._streams = self._ended = False
        self._events = 0  # that were sent as messages

    async def serve(self, app: ASGIApp, scope: Scope, receive: Receive) -> None:
        try:
            await app(scope, receive, self.send)
        except Exception as error:
            if not self._streams:
                raise
            logger.warning("a stream of %s failed: %s", scope["path"], error)
            await self._end(next(filter(None, map(_known, _causes(error))), UNKNOWN))

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._streams = message["status"] < 400 and (b"content-type", b"text/event-stream; charset=utf-8") in message["headers"]
        elif self._streams and not self._ended:
            piece = message.get("body", b"")
            self._events += piece.startswith(b"event: ")
            if piece.startswith(LAST):
                self._ended = True
                message = {**message, "body": _with_its_status(piece)}
            elif piece.startswith(ERROR_EVENTS):
                await self._end(_said(piece)[0])
                return
            elif not message.get("more_body") and not (self._empty and not self._events):
                await self._end(UNKNOWN)
                return
        await self._send(message)

    async def _end(self, message: str) -> None:
        """End the stream with an error event. `error` is for clients that look for it in every event, as OpenAI's own do."""
        self._ended = True
        code = _code(message) or "server_error"
        number = self._events + (0 if self._outlet is None else self._outlet.events)
        data = {"type": "error", "sequence_number": number, "code": code, "message": message, "param": None}
        data |= error_body(message, "server_error", code)
        await self._send({"type": "http.response.body", "body": _event("error", data), "more_body": False})


def _with_its_status(piece: bytes) -> bytes:
    """Return the last event of a response under the name of the response's status: vLLM calls each one completed."""
    data = json.loads(piece.partition(b"data: ")[2])
    name = f"response.{data['response']['status']}"
    return piece if data["type"] == name else _event(name, data | {"type": name})


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def _said(piece: bytes) -> tuple[str, int]:
    """Return the message and the status of an error event."""
    body = _loaded(piece.partition(b"data: ")[2].partition(b"\n")[0])
    message, code = _message(body), _error(body).get("code")
    return message, code if isinstance(code, int) else STATUS_OF.get(_code(message) or "", 500)


def _loaded(body: bytes) -> dict[str, Any]:
    try:
        loaded = json.loads(body)
    except ValueError:
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _error(body: dict[str, Any]) -> dict[str, Any]:
    error = body.get("error")
    return error if isinstance(error, dict) else {}


def _message(body: dict[str, Any]) -> str:
    return str(_error(body).get("message") or UNKNOWN)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _known(error: BaseException) -> str | None:
    """Return what an error of ours says to clients."""
    return str(error) if _code(str(error)) else None


def _code(message: str) -> str | None:
    """Return the code with which a message begins that is one of ours."""
    code = message.partition(":")[0]
    return code if code in STATUS_OF else None
