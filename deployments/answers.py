"""What the server says when it refuses: always an error as OpenAI's API writes one, with nothing of its inside."""

import traceback
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments import logs
from deployments.errors import SatoriError, error_body

logger = logs.logger("ingress")


def install(app: FastAPI) -> None:
    """Add to vLLM's handlers (0.32.0) those for what they leave to the framework, and one that hides what failed inside."""
    app.exception_handler(HTTPException)(_http)
    app.exception_handler(SatoriError)(_ours)
    app.exception_handler(Exception)(_unknown)


async def _http(request: Request, error: HTTPException) -> JSONResponse:
    said = error_body(str(error.detail), HTTPStatus(error.status_code).phrase, error.status_code)
    return JSONResponse(said, error.status_code, error.headers)


async def _ours(request: Request, error: SatoriError) -> JSONResponse:
    return JSONResponse(error.body(), error.status)


async def _unknown(request: Request, error: Exception) -> JSONResponse:
    logger.error("%s failed", request.url.path, exc_info=error)
    said = error_body("the server failed at this request", "InternalServerError", SatoriError.code)
    return JSONResponse(said, SatoriError.status)


class Misread:
    """ASGI middleware: what fails while a body is made into a request and a prompt is the body's fault, whatever the exception.

    vLLM's validators and renderers (0.32.0) take some values for granted, and end with an AttributeError where they are others.
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
            message = f"a value in the body is not what it should be ({type(error).__name__} while reading it)"
            await JSONResponse(error_body(message, "BadRequestError", 400), 400)(scope, receive, send)


def _reads(frame: traceback.FrameSummary) -> bool:
    return frame.name == "request_body_to_args" or "/vllm/renderers/" in frame.filename


def check_early(engine: Any, responses: Any) -> None:
    """Have an AsyncLLM (vLLM 0.32.0) check a request when it gets it, not when the first token is asked for.

    A stream has begun by then, with status 200. `responses`, vLLM's server of `/v1/responses`, begins one even before it asks.
    Here are also two checks that it lacks: on the length of texts that it would truncate after tokenizing all of them, and on
    schemas that need its slowest backend, whose cost nothing bounds.
    """
    from vllm.exceptions import VLLMValidationError
    from vllm.inputs.engine import split_enc_dec_input
    from vllm.utils.async_utils import make_async
    from vllm.v1.structured_output import backend_outlines

    from deployments.engine import TASKS

    theirs, theirs_for_responses, checks, renderer = (
        engine.generate,
        responses._generate_with_builtin_tools,
        engine.input_processor,
        engine.renderer,
    )
    tokenize = renderer._tokenize_prompt
    most = engine.model_config.max_model_len * renderer.tokenizer.max_chars_per_token

    def check(prompt: Any, params: Any) -> None:
        if isinstance(prompt, dict):
            checks._validate_model_inputs(*split_enc_dec_input(prompt))
            checks._validate_params(params, TASKS)

    def generate(prompt: Any, params: Any, *args: Any, **options: Any) -> Any:
        check(prompt, params)
        return theirs(prompt, params, *args, **options)

    def generate_for_responses(*, engine_input: Any, sampling_params: Any, **options: Any) -> Any:
        check(engine_input, sampling_params)
        return theirs_for_responses(engine_input=engine_input, sampling_params=sampling_params, **options)

    def tokenize_within_bounds(prompt: Any, params: Any) -> Any:
        if (length := len(prompt["prompt"])) > most:
            raise VLLMValidationError(f"the prompt has {length} characters; at most {most} are allowed", parameter="prompt")
        return tokenize(prompt, params)

    def refuse(params: Any) -> None:
        raise VLLMValidationError("the schema has features that are not supported together", parameter="structured_outputs")

    engine.generate = generate
    responses._generate_with_builtin_tools = generate_for_responses
    renderer._tokenize_prompt = tokenize_within_bounds
    renderer._tokenize_prompt_async = make_async(tokenize_within_bounds, executor=renderer._executor)
    if checks.structured_outputs_config.backend == "auto":
        backend_outlines.validate_structured_output_request_outlines = refuse
