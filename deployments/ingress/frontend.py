"""vLLM's frontend, AsyncLLM, made to refuse at once what would wait too long, and to check a request before its stream begins."""

import json
from collections import deque
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import msgspec
from vllm.exceptions import GracefulHTTPError, MaxQueuedTokensError, QueueOverflowError, VLLMValidationError
from vllm.inputs.engine import split_enc_dec_input
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import RequestOutputCollector

from deployments.engine.config import TASKS
from deployments.errors import SatoriError
from deployments.ingress.json_schema import exact
from deployments.observability.record import failed
from deployments.patching import patch
from deployments.reasoning import calls, effort
from deployments.reasoning.formatted import Formats, has_format
from deployments.store import chain

FORMATS = "structured output (response_format, structured_outputs, text.format, tool_choice)"
MASKS = ("min_tokens", "bad_words", "allowed_token_ids")
"""Parameters that forbid tokens: together with a grammar, none may be left."""
ENDS = ("stop", "stop_token_ids", "ignore_eos", "include_stop_str_in_output")
"""Parameters with which a reply could end inside its thought, or with more than its answer."""
MAY_STOP = ("stop", "stop_token_ids")
"""Those of them that a reply may have that is calls only if the model wants to."""


class BoundedLLM(AsyncLLM):
    """vLLM's frontend with bounds.

    The bounds of its queue are vLLM's own: `engine.max_num_queued_reqs` (requests that have not ended) and
    `engine.max_num_queued_tokens` (tokens of prompts that are not read yet), each for one ingress. vLLM answers 503 beyond them;
    this class answers 429, because the API is only busy for the moment.

    `formats` is set where the model thinks before it answers in a format.
    """

    formats: Formats | None = None
    limit_tokens: dict[str, Any] | None = None
    """The token ids that limits of a chain need, of a model that writes chains."""

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
        if self.limit_tokens is not None:
            template = (options.get("reasoning_parser_kwargs") or {}).get("chat_template_kwargs") or {}
            effort.apply(sampling_params, template.get("reasoning_effort"), self.limit_tokens)
        self.check(prompt, sampling_params, **options)
        if self.formats is not None and has_format(sampling_params.structured_outputs):
            thinks = self._thinks_first(sampling_params, **options)
            options |= self.formats.think_first(sampling_params) if thinks else {"reasoning_ended": True}
        return super().generate(prompt, sampling_params, *args, **options)

    def _thinks_first(
        self, params: Any, reasoning_parser_kwargs: Any = None, reasoning_ended: bool | None = None, **options: Any
    ) -> bool:
        """Return whether a thought comes before an answer in a format; only some endpoints can tell one from the other."""
        return bool(
            self.formats and has_format(params.structured_outputs) and reasoning_parser_kwargs is not None and not reasoning_ended
        )

    def check(self, prompt: Any, sampling_params: Any, **options: Any) -> None:
        """Raise vLLM's VLLMValidationError when an engine cannot run a rendered request. `options` are those of `generate`.

        Raises GracefulHTTPError where its samples exceed a bound of the queue: those of a vote are known here first.
        """
        if (samples := getattr(sampling_params, "n", 1)) > 1:
            self.check_admission(samples)
        if isinstance(prompt, dict):
            if (asked := sampling_params.structured_outputs) is not None and asked.json is not None:
                asked.json = exact(json.loads(asked.json) if isinstance(asked.json, str) else asked.json)
            self.input_processor._validate_model_inputs(*split_enc_dec_input(prompt))
            self.input_processor._validate_params(sampling_params, TASKS)
            _check_encodable(sampling_params)
            masks = MASKS if has_format(sampling_params.structured_outputs) else ()
            ends = ENDS if self._thinks_first(sampling_params, **options) else ()
            allowed = MAY_STOP if calls.choice(sampling_params.structured_outputs) == calls.TEXT else ()
            for name in masks + ends:
                if name not in allowed and getattr(sampling_params, name):
                    raise VLLMValidationError(f"{name} cannot be combined with {FORMATS}", parameter=name)

    async def _add_request(self, request: EngineCoreRequest, *arguments: Any) -> None:
        """Add a request as vLLM does, but leave nothing behind when that fails: a state counts against the bounds of the queue."""
        if chain.current.get() is not None:
            patch(
                arguments[-1],
                "__class__",
                Unmerged,
                why="vLLM 0.32.0 merges outputs for which a client is too slow: how many events a reply has depends on its speed",
                until="its queue can be told not to",
            )
        try:
            await super()._add_request(request, *arguments)
        except BaseException:
            await self.abort(request.request_id, internal=True)
            raise

    def refuse(self, request_id: str, error: SatoriError) -> None:
        """Let vLLM's server answer a request with this error."""
        if (state := self.output_processor.request_states.get(request_id)) is not None and state.queue is not None:
            state.queue.put(GracefulHTTPError(f"{error.code}: {error}", HTTPStatus(error.status)))


class Unmerged(RequestOutputCollector):
    """vLLM's queue of the outputs of a request, for a stored response: each output stays alone."""

    _more: deque[Any]

    def put(self, output: Any) -> None:
        """Add an output, or the error after all outputs."""
        if self.output is None:
            super().put(output)
        else:
            self.__dict__.setdefault("_more", deque()).append(output)

    async def get(self) -> Any:
        """Return the next output, once it is there."""
        await self.ready.wait()
        return self.get_nowait()

    def get_nowait(self) -> Any:
        """Return the next output; None if there is none yet."""
        try:
            return super().get_nowait()
        finally:
            if more := self.__dict__.get("_more"):
                super().put(more.popleft())


def _check_encodable(params: SamplingParams) -> None:
    """Raise VLLMValidationError for a number that has no encoding on the way to the engine."""
    if not _fits(params):
        name = next(filter(lambda name: not _fits(getattr(params, name)), params.__struct_fields__), None)
        raise VLLMValidationError(f"{name}: the number is out of range", parameter=name)


def _fits(value: Any) -> bool:
    with suppress(TypeError):  # what msgspec does not know, vLLM's encoder does
        try:
            msgspec.msgpack.encode(value)
        except OverflowError:
            return False
    return True
