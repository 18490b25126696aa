"""What can go wrong between the UI and the API, a class for each kind. `kind` is the key of the page's help texts."""

from http import HTTPStatus
from typing import Any, ClassVar

import httpx

TOO_LONG = ("maximum context", "max_model_len", "context length", "maximum model length", "too long")


class ApiError(Exception):
    """The API did not answer a request. Message, `code` and `status` are the API's own where it sent any."""

    kind: ClassVar[str] = "other"

    def __init__(self, message: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.code = ""
        self.status: int | None = None

    def described(self) -> dict[str, Any]:
        """Return what the page shows."""
        return {"kind": self.kind, "message": self.message[:2000], "retry_after_s": self.retry_after_s}


class UnreachableError(ApiError):
    """Nothing listens at the API's address."""

    kind = "unreachable"


class LoadingError(ApiError):
    """The API is up, but no model can answer yet."""

    kind = "loading"


class QueueFullError(ApiError):
    """More requests are waiting than the API accepts."""

    kind = "queue_full"


class TooLongError(ApiError):
    """Question and answer do not fit into the model's context."""

    kind = "too_long"


class KeyRefusedError(ApiError):
    """The API needs a key, or did not accept this one."""

    kind = "key"


class LostError(ApiError):
    """The connection ended before the reply did."""

    kind = "lost"


class GoneError(ApiError):
    """The API does not have the reply any more."""

    kind = "gone"


class TakenError(ApiError):
    """The API answers a question of this id already."""


class NotStoredError(ApiError):
    """The API answers questions, but keeps no reply, or none of this kind."""


def from_response(status: int, body: Any, headers: httpx.Headers) -> ApiError:
    """Return the error that a response with an error status stands for. `body` is its JSON, or its text."""
    error = _from_response(status, message_of(body), headers)
    error.status, error.code = status, code_of(body)
    return error


def _from_response(status: int, message: str, headers: httpx.Headers) -> ApiError:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return QueueFullError(message, _seconds(headers.get("retry-after")))
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return KeyRefusedError(message)
    if status in (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT):
        return LoadingError(message, _seconds(headers.get("retry-after")))
    if status < HTTPStatus.INTERNAL_SERVER_ERROR and any(mark in message.lower() for mark in TOO_LONG):
        return TooLongError(message)
    return ApiError(message or f"HTTP {status}")


def from_event(error: dict[str, Any]) -> ApiError:
    """Return the error that an SSE error event in a stream stands for."""
    code = error.get("code")
    return from_response(code if isinstance(code, int) else 500, {"error": error}, httpx.Headers())


def message_of(body: Any) -> str:
    """Return the message of an error body, in any of the shapes that servers use."""
    while isinstance(body, dict):
        body = body.get("error") or body.get("message") or body.get("detail") or body.get("reason") or ""
    return str(body).strip()


def code_of(body: Any) -> str:
    """Return the code of an error body; "" where it is no text."""
    error = body.get("error") if isinstance(body, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) else ""


def _seconds(value: str | None) -> float | None:
    try:
        return float(value) if value else None
    except ValueError:  # an HTTP date, which is not worth a parser: the page then shows no time
        return None
