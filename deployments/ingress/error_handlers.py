"""The server's error responses: always in the form of OpenAI's API, and without internal details."""

import traceback
from http import HTTPStatus

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.errors import SatoriError, error_body
from deployments.observability import logs

logger = logs.logger("ingress")


def install(app: FastAPI) -> None:
    """Add handlers for the errors that vLLM's own (0.32.0) leave to the framework, and one that hides internal failures."""
    app.exception_handler(HTTPException)(_http)
    app.exception_handler(SatoriError)(_ours)
    app.exception_handler(Exception)(_unknown)


async def _http(request: Request, error: HTTPException) -> JSONResponse:
    body = error_body(str(error.detail), HTTPStatus(error.status_code).phrase, error.status_code)
    return JSONResponse(body, error.status_code, error.headers)


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
            if not any(_reads(frame) for frame in traceback.extract_tb(error.__traceback__)):
                raise
            logger.warning("%s: the body could not be read", scope["path"], exc_info=error)
            message = f"a value in the body is not valid ({type(error).__name__} while reading it)"
            await JSONResponse(error_body(message, "BadRequestError", 400), 400)(scope, receive, send)


def _reads(frame: traceback.FrameSummary) -> bool:
    return frame.name == "request_body_to_args" or "/vllm/renderers/" in frame.filename
