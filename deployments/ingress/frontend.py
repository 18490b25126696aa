"""vLLM's frontend, AsyncLLM, made to refuse at once what would wait too long, and to check a request before its stream begins."""

from http import HTTPStatus
from typing import Any

from vllm.exceptions import GracefulHTTPError, MaxQueuedTokensError, QueueOverflowError, VLLMValidationError
from vllm.inputs.engine import split_enc_dec_input
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.structured_output import backend_outlines

from deployments.engine.config import TASKS
from deployments.errors import SatoriError
from deployments.observability.record import failed
from deployments.patching import patch


class BoundedLLM(AsyncLLM):
    """vLLM's frontend with bounds.

    The bounds of its queue are vLLM's own: `engine.max_num_queued_reqs` (requests that have not ended) and
    `engine.max_num_queued_tokens` (tokens of prompts that are not read yet), each for one ingress. vLLM answers 503 beyond them;
    this class answers 429, because the API is only busy for the moment.
    """

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """Raise GracefulHTTPError when `n` more sequences would exceed a bound."""
        try:
            super().check_admission(n, request_id)
        except (QueueOverflowError, MaxQueuedTokensError) as error:
            kind = "reqs" if isinstance(error, QueueOverflowError) else "tokens"
            limit = getattr(self.scheduler_config, f"max_num_queued_{kind}")
            failed("queue_full")
            message = f"the queue is full (engine.max_num_queued_{kind}={limit}); try again after a moment"
            raise GracefulHTTPError(message, HTTPStatus.TOO_MANY_REQUESTS) from error

    def generate(self, prompt: Any, sampling_params: Any, *args: Any, **options: Any) -> Any:
        """Return the outputs of a request, as vLLM does, but check the request now.

        vLLM (0.32.0) checks it when the first token is asked for; by then a stream has begun, with status 200.
        """
        self.check(prompt, sampling_params)
        return super().generate(prompt, sampling_params, *args, **options)

    def check(self, prompt: Any, sampling_params: Any) -> None:
        """Raise vLLM's VLLMValidationError when an engine cannot run a rendered request."""
        if isinstance(prompt, dict):
            self.input_processor._validate_model_inputs(*split_enc_dec_input(prompt))
            self.input_processor._validate_params(sampling_params, TASKS)

    def refuse(self, request_id: str, error: SatoriError) -> None:
        """Let vLLM's server answer a request with this error."""
        if (state := self.output_processor.request_states.get(request_id)) is not None and state.queue is not None:
            state.queue.put(GracefulHTTPError(f"{error.code}: {error}", HTTPStatus(error.status)))


def check_responses_early(engine: BoundedLLM, responses: Any) -> None:
    """Have vLLM's server for `/v1/responses` check a request before its stream begins."""

    def generate(*, engine_input: Any, sampling_params: Any, **options: Any) -> Any:
        engine.check(engine_input, sampling_params)
        return original(engine_input=engine_input, sampling_params=sampling_params, **options)

    original = patch(
        responses,
        "_generate_with_builtin_tools",
        generate,
        why="vLLM 0.32.0 begins the stream of a response before it asks the engine, which is the first to check it",
        until="the server checks a request before it answers",
    )


def refuse_outlines(engine: BoundedLLM) -> None:
    """Refuse schemas that need vLLM's slowest backend for structured output, unless the settings name a backend."""
    if engine.input_processor.structured_outputs_config.backend != "auto":
        return

    def refuse(params: Any) -> None:
        raise VLLMValidationError("the schema has features that are not supported together", parameter="structured_outputs")

    patch(
        backend_outlines,
        "validate_structured_output_request_outlines",
        refuse,
        why="vLLM 0.32.0 falls back on outlines for some schemas, and nothing bounds what that costs",
        until="the fallback can be turned off",
    )
