"""The server's error responses: always in the form of OpenAI's API, and without internal details."""

import json
import logging
import traceback
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from vllm.entrypoints.serve.exception_handling.handlers.validation import clean_loc_for_param
from vllm.exceptions import GracefulHTTPError, VLLMClientError, VLLMValidationError

from deployments.errors import SatoriError, error_body
from deployments.observability import logs

logger = logs.logger("ingress")
SERVERS = (
    "openai.chat_completion.serving",
    "openai.completion.serving",
    "openai.responses.serving",
    "anthropic.api_router",
    "anthropic.serving",
)
"""The modules of vLLM that log whatever ends a request with its traceback."""
SAID = 3
"""So many of the values in a body that are not allowed are named; vLLM's models can find thousands in one."""
CHARACTERS = 80
"""So much is repeated of a value."""


def install(app: FastAPI) -> None:
    """Add handlers for the errors that vLLM's own (0.32.0) leave to the framework, and one that hides internal failures."""
    app.exception_handler(HTTPException)(_http)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(ValidationError)(_invalid)  # of parts that vLLM's models read late, such as a message's
    app.exception_handler(SatoriError)(_ours)
    app.exception_handler(Exception)(_unknown)
    for module in SERVERS:
        logging.getLogger(f"vllm.entrypoints.{module}").addFilter(_expected_in_one_line)


def _expected_in_one_line(record: logging.LogRecord) -> bool:
    """Write an error that a client gets, and that is not the server's, in one line. Always returns True: it is logged."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, GracefulHTTPError | VLLMClientError):
        message = " ".join(f"{record.getMessage()} {error}".split())
        record.msg, record.args, record.exc_info, record.exc_text = message, (), None, None
    return True


async def _http(request: Request, error: HTTPException) -> JSONResponse:
    body = error_body(str(error.detail), HTTPStatus(error.status_code).phrase, error.status_code)
    return JSONResponse(body, error.status_code, error.headers)


async def _invalid(request: Request, error: RequestValidationError | ValidationError) -> JSONResponse:
    found = dict(_said(each) for each in error.errors())
    params, said = list(found), [f"{param}: {message}" if param else message for param, message in found.items()]
    more = [f"and {len(said) - SAID} more"] if len(said) > SAID else []
    return JSONResponse(error_body("; ".join(said[:SAID] + more), "BadRequestError", 400, params[0] if params else None), 400)


def _said(error: Mapping[str, Any] | str) -> tuple[str | None, str]:
    """Return the path of a value that is not allowed, and what is wrong with it."""
    if isinstance(error, str):
        return None, error
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, VLLMValidationError):
        return cause.parameter, str(cause)
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "json_invalid":
        return None, f"the body is not JSON: {cause} (character {error['loc'][-1]})"
    param = clean_loc_for_param(error["loc"]).removeprefix("body").removeprefix(".") or None
    if error["type"] != "missing" and isinstance(value := error.get("input"), str | int | float | bool):
        message += f", got {json.dumps(value, ensure_ascii=False)[:CHARACTERS]}"
    return param, message[0].lower() + message[1:]


async def _ours(request: Request, error: SatoriError) -> JSONResponse:
    return JSONResponse(error.body(), error.status)


async def _unknown(request: Request, error: Exception) -> JSONResponse:
    logger.error("%s failed", request.url.path, exc_info=error)
    body = error_body("the server failed to handle this request", "InternalServerError", SatoriError.code)
    return JSONResponse(body, SatoriError.status)


class Misread:
    """ASGI middleware that blames the body for whatever fails while it is made into a request and a prompt: status 400.

    vLLM's validators and renderers (0.32.0) take some values for granted, and raise an AttributeError when they get others.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            if not any(map(_reads, frames)):
                raise
            where = f"{frames[-1].filename}:{frames[-1].lineno}"
            logger.warning("%s: the body could not be read: %r in %s", scope["path"], error, where)
            message = f"a value in the body is not valid ({type(error).__name__} while reading it)"
            await JSONResponse(error_body(message, "BadRequestError", 400), 400)(scope, receive, send)


def _reads(frame: traceback.FrameSummary) -> bool:
    return frame.name == "request_body_to_args" or "/vllm/renderers/" in frame.filename
