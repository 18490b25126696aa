"""Errors of the platform: one base class. Each has an HTTP status, a stable code, and whether a retry may help."""

from typing import Any, ClassVar


def error_body(message: str, kind: str, code: str | int, param: str | None = None) -> dict[str, Any]:
    """Return the body of an error in the form of OpenAI's API. `param` names the part of the request that was wrong."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class SatoriError(Exception):
    """Base of all errors that satori-serve raises on purpose."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    param: str | None = None
    """The part of the request that was wrong."""

    def body(self) -> dict[str, Any]:
        """Return the error in the form of OpenAI's API."""
        return error_body(str(self), type(self).__name__, self.code, self.param)


class SettingsError(SatoriError):
    """A setting is unknown or has a value that is not allowed. The message names key, value and what is allowed."""

    code = "invalid_settings"


class PortInUseError(SatoriError):
    """A port that the application must listen on is taken. The message names the port and its owner."""

    code = "port_in_use"


class WeightsError(SatoriError):
    """A model's files are not available."""

    code = "weights_unavailable"


class EngineUnavailableError(SatoriError):
    """No LLM replica can answer now."""

    status = 503
    code = "engine_unavailable"
    retryable = True


class EngineLostError(EngineUnavailableError):
    """The engine died or hung while it had this request."""

    code = "engine_lost"


class PoisonError(SatoriError):
    """A request is refused because replicas died while they ran it."""

    code = "request_kills_replicas"


class InvalidKeyError(SatoriError):
    """A request came without an API key, or with an unknown one."""

    status = 401
    code = "invalid_api_key"


class LimitExceededError(SatoriError):
    """A request exceeds a limit of its key. The message names the limit and its value."""

    status = 429
    code = "rate_limit_exceeded"
    retryable = True

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnknownHostError(SatoriError):
    """A request asks for a name that is not the application's. The message says how to allow it."""

    status = 421
    code = "unknown_host"


class ForeignOriginError(SatoriError):
    """A request to the web UI that its own page does not make."""

    status = 403
    code = "foreign_origin"


class BodyTimeoutError(SatoriError):
    """A request's body has not arrived in time."""

    status = 408
    code = "body_timeout"


class RequestTooLargeError(SatoriError):
    """A request's body is larger than allowed."""

    status = 413
    code = "request_too_large"


class OverloadedError(SatoriError):
    """The server already holds as much as it may; a retry after a moment may succeed."""

    status = 429
    code = "overloaded"
    retryable = True


class StoreUnavailableError(SatoriError):
    """Stored responses cannot be reached now."""

    status = 503
    code = "store_unavailable"
    retryable = True


class NotStoredError(SatoriError):
    """The store has none of this name: it was not stored, has expired, was deleted, or is another key's."""

    status = 404
    what: ClassVar[str]

    def __init__(self, name: str, param: str | None = None) -> None:
        super().__init__(f"there is no {self.what} {name!r}; it may have expired")
        self.param = param or self.param


class ResponseNotFoundError(NotStoredError):
    """There is no such response."""

    code = "response_not_found"
    param = "response_id"
    what = "stored response"


class ChatNotFoundError(NotStoredError):
    """There is no such stored chat."""

    code = "chat_not_found"
    param = "completion_id"
    what = "stored chat"


class StoredFileNotFoundError(NotStoredError):
    """There is no such file."""

    code = "file_not_found"
    param = "file_id"
    what = "file"


class BatchNotFoundError(NotStoredError):
    """There is no such batch."""

    code = "batch_not_found"
    param = "batch_id"
    what = "batch"


class AlreadyStoredError(SatoriError):
    """Something is stored under this id."""

    status = 409
    code = "already_stored"
    param = "x-request-id"

    def __init__(self, name: str) -> None:
        super().__init__(f"x-request-id={name!r}: a stored chat has this id; give each its own")


class StoreFullError(SatoriError):
    """There is no room for another stored response or file."""

    status = 507
    code = "store_full"


class OutOfBoundsError(SatoriError):
    """A part of a request exceeds its bound. `param` is the path of that part."""

    status = 400
    code = "out_of_bounds"

    def __init__(self, param: str | None, message: str) -> None:
        super().__init__(f"{param}: {message}" if param else message)
        self.param = param


class GrammarTooComplexError(OutOfBoundsError):
    """A schema, regex or grammar would take too long to compile or to follow."""

    code = "grammar_too_complex"


class GrammarNotFollowedError(OutOfBoundsError):
    """A schema, regex or grammar cannot be compiled, can match nothing or never end, or failed while the engine followed it."""

    code = "grammar_not_followed"


class SchemaNotFollowedError(OutOfBoundsError):
    """A JSON schema asks for what the engine cannot enforce, or for what no value can meet. `param` ends with the keyword."""

    code = "schema_not_followed"


def _statuses(kind: type[SatoriError]) -> dict[str, int]:
    found = {kind.code: kind.status}
    for child in kind.__subclasses__():
        found |= _statuses(child)
    return found


STATUS_OF = _statuses(SatoriError) | {"queue_full": 429, "draining": 503, "deadline_exceeded": 504}
"""All our codes with which a request can end, with their HTTP status. The last three belong to no exception of ours."""
for kind in (SettingsError, PortInUseError, WeightsError):
    del STATUS_OF[kind.code]
CODES = frozenset(STATUS_OF)
"""Metrics label refusals by these codes."""
