"""vLLM's endpoints (0.32.0), mended where they answer what is not so."""

from collections.abc import AsyncGenerator
from contextvars import ContextVar
from typing import Any

from fastapi import FastAPI
from starlette.responses import JSONResponse
from vllm.entrypoints.openai.chat_completion import serving as chat
from vllm.entrypoints.openai.completion import serving as completion
from vllm.entrypoints.openai.responses import utils as responses
from vllm.entrypoints.openai.responses.protocol import ResponsesResponse
from vllm.entrypoints.serve.utils.api_utils import get_max_tokens
from vllm.exceptions import VLLMValidationError

from deployments.errors import error_body
from deployments.ingress.content import reading_all_parts
from deployments.ingress.frontend import BoundedLLM
from deployments.patching import patch
from deployments.reasoning.formatted import has_format
from deployments.reasoning.parser import CoatParser

ERROR = 'data: {"error"'
PARSER_FLAG = "--tool-call-parser"
TOOLS_UNREAD = "tools: this server reads no tool calls of this model (its operator would set api.tool_call_parser)"
previous: ContextVar[str | None] = ContextVar("previous", default=None)
"""The response with which the current request goes on; vLLM's server is given the input of both."""
from_request = ResponsesResponse.from_request
construct_message = responses._construct_message_from_response_item


def mend(app: FastAPI, engine: BoundedLLM, vocabulary: int) -> None:
    """Mend the endpoints of vLLM's app, whose tokenizer has `vocabulary` tokens, and add the route of one model."""
    state = app.state
    check_responses_early(engine, state.openai_serving_responses)
    _let_errors_through(state.anthropic_serving_messages)
    _take_no_tools_for_none(state.anthropic_serving_messages)
    _refuse_unknown_tokens(state.serving_tokenization, vocabulary)
    _name_the_setting(state.online_renderer)
    patch(
        ResponsesResponse,
        "from_request",
        _not_stored,
        why="vLLM 0.32.0 does not say that a response is not stored, as OpenAI's are by default, nor with which one it goes on",
        until="it does",
    )
    patch(
        responses,
        "_construct_message_from_response_item",
        reading_all_parts(construct_message),
        why="vLLM 0.32.0 reads the first part of a former reply only, and fails at a refusal",
        until="it reads all parts",
    )
    for module in (chat, completion):
        patch(
            module,
            "get_max_tokens",
            _tokens_left,
            why="vLLM 0.32.0 says 'max_tokens must be at least 1, got 0' of a prompt that fills the context",
            until="it says what is wrong",
        )
    for path in state.openai_serving_models.base_model_paths:
        path.model_path = path.name  # clients are shown it as the model's `root`; it is a path of this host

    @app.get("/v1/models/{model:path}")
    async def retrieve(model: str) -> JSONResponse:
        """Return one served model."""
        for card in (await state.openai_serving_models.show_available_models()).data:
            if card.id == model:
                return JSONResponse(card.model_dump())
        return JSONResponse(error_body(f"The model `{model}` does not exist.", "NotFoundError", 404, "model"), 404)


def check_responses_early(engine: BoundedLLM, responses: Any) -> None:
    """Have vLLM's server for `/v1/responses` check a request before its stream begins."""

    def generate(*, engine_input: Any, sampling_params: Any, **options: Any) -> Any:
        parser = getattr(options.get("context"), "response_parser", None)
        if isinstance(parser, CoatParser) and parser.coat.off and has_format(sampling_params.structured_outputs):
            options["reasoning_parser_kwargs"] = None  # a raw reply has the format from its first token on, as in a chat
        engine.check(engine_input, sampling_params, **options)
        return original(engine_input=engine_input, sampling_params=sampling_params, **options)

    original = patch(
        responses,
        "_generate_with_builtin_tools",
        generate,
        why="vLLM 0.32.0 begins the stream of a response before it asks the engine, which is the first to check it",
        until="the server checks a request before it answers",
    )


def _let_errors_through(messages: Any) -> None:
    async def convert(chunks: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        errors = []

        async def good() -> AsyncGenerator[str, None]:
            async for chunk in chunks:
                if chunk.startswith(ERROR):
                    errors.append(chunk)
                    return
                yield chunk

        async for event in original(good()):
            yield event
        for error in errors:
            yield error

    original = patch(
        messages,
        "message_stream_converter",
        convert,
        why="vLLM 0.32.0 reads an error in a stream of chat completions as a chunk, and tells clients why that failed",
        until="its stream of messages passes errors on",
    )


def _name_the_setting(renderer: Any) -> None:
    def create(message: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(message, str) and PARSER_FLAG in message:
            message = f'{TOOLS_UNREAD}; leave tools out, or ask for tool_choice "none"'
        return original(message, *arguments, **options)

    original = patch(
        renderer,
        "create_error_response",
        create,
        why="vLLM 0.32.0 tells clients which flags of its command are missing",
        until="it tells them what they can do",
    )


def _take_no_tools_for_none(messages: Any) -> None:
    async def create(request: Any, *arguments: Any) -> Any:
        if not request.tools:
            request.tools = request.tool_choice = None
        return await original(request, *arguments)

    original = patch(
        messages,
        "create_messages",
        create,
        why="vLLM 0.32.0 takes an empty list of tools for a wish that the model chooses among them",
        until="it takes it for none",
    )


def _refuse_unknown_tokens(tokenization: Any, vocabulary: int) -> None:
    async def detokenize(request: Any, raw_request: Any) -> Any:
        if (unknown := next((token for token in request.tokens if token >= vocabulary), None)) is not None:
            raise VLLMValidationError(f"tokens: {unknown} is no token of the model, which has {vocabulary}", parameter="tokens")
        return await original(request, raw_request)

    original = patch(
        tokenization,
        "create_detokenize",
        detokenize,
        why="vLLM 0.32.0 leaves out what is no token, without a word",
        until="it refuses them",
    )


def _not_stored(*arguments: Any, **options: Any) -> ResponsesResponse:
    response = from_request(*arguments, **options)
    response.store = False  # an extra field
    response.previous_response_id = previous.get()
    return response


def _tokens_left(max_model_len: int, max_tokens: int | None, *arguments: Any, **options: Any) -> int:
    left: int = get_max_tokens(max_model_len, max_tokens, *arguments, **options)
    if left == 0 and max_tokens != 0:
        message = f"the prompt fills the model's context of {max_model_len} tokens; no room is left for an answer"
        raise VLLMValidationError(message, parameter="input_tokens", value=max_model_len)
    return left
