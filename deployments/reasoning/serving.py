"""The chat endpoint: vLLM's own, for requests with the extension `coat` (see `deployments.reasoning.request`)."""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import Depends, FastAPI, Request
from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.entrypoints.openai.chat_completion import api_router
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse, ChatMessage
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.serve.utils.api_utils import validate_json_request
from vllm.exceptions import VLLMValidationError
from vllm.outputs import RequestOutput
from vllm.parser.abstract_parser import DelegatingParser

from deployments.observability import metrics, record
from deployments.patching import patch
from deployments.reasoning.answers.comparer import Comparer
from deployments.reasoning.ballot import Ballot, progress_chunk
from deployments.reasoning.coat import Delta
from deployments.reasoning.parser import CoatReasoningParser, action_ids
from deployments.reasoning.request import CoatChatRequest
from deployments.settings import CoatSettings

PATH = "/v1/chat/completions"


def mount(app: FastAPI) -> None:
    """Replace vLLM's chat endpoint with this one. It becomes the first route, because it gets the most requests."""
    routes = app.router.routes
    routes[:] = [route for route in routes if getattr(route, "path", None) != PATH]
    original = next(route for route in api_router.router.routes if getattr(route, "path", None) == PATH)
    app.post(PATH, dependencies=[Depends(validate_json_request)], responses=original.responses)(create_chat_completion)
    routes.insert(0, routes.pop())


async def create_chat_completion(request: CoatChatRequest, raw_request: Request) -> Any:
    """Answer a chat: OpenAI's chat completion, with the extension `coat`."""
    if request.coat is not None and not isinstance(api_router.chat(raw_request), CoatServing):
        raise VLLMValidationError("this model writes no Chain of Action-Thought; leave coat out", parameter="coat")
    return await api_router.create_chat_completion(request=request, raw_request=raw_request)


class CoatParser(DelegatingParser):
    """Parses one choice of a reply. `begin` sets it up for the request."""

    reasoning_parser_cls = CoatReasoningParser
    coat: CoatReasoningParser

    def begin(self, request: CoatChatRequest, model: str) -> None:
        """Set up for a request to `model`, the served name."""
        assert isinstance(self._reasoning_parser, CoatReasoningParser)
        self.coat = self._reasoning_parser
        self._model = model
        self._record = record.current.get() or record.Record(0.0)
        self._shows_reasoning = request.include_reasoning
        self._record.vote = request.vote is not None
        self._record.reads = request.parsed
        self.coat.off = not request.parsed

    def parse_delta(
        self,
        delta_text: str,
        delta_token_ids: list[int],
        request: Any,
        prompt_token_ids: list[int] | None = None,
        *,
        finished: bool,
    ) -> DeltaMessage | None:
        """Return the next chunk with its segment, and with the summary when the reply is finished; None if nothing is certain yet.

        This replaces vLLM's own method, which costs more per token.
        """
        if self.coat.off:
            return DeltaMessage(content=delta_text)
        self.coat.transcript.ids += delta_token_ids
        self.coat.feed(delta_text)
        delta = self.coat.next()
        if finished:
            return self._last(delta)
        if delta is None:
            return None
        if delta.content:
            self._record_answer()
            return DeltaMessage(content=delta.text)
        if not self._shows_reasoning:
            return None
        return _reasoning(delta.text, {"action": delta.action, "index": delta.number})

    def _last(self, delta: Delta | None) -> DeltaMessage:
        reasoning, content = self.coat.rest()
        coat = self.summary()
        if delta is not None and delta.content:
            content = delta.text + (content or "")
        elif delta is not None:
            reasoning = delta.text + (reasoning or "")
            coat = {"action": delta.action, "index": delta.number} | coat
        shown = reasoning if self._shows_reasoning else None
        message = _reasoning(shown, coat) if shown else DeltaMessage(coat=coat)
        if content:
            message.content = content
            self._record_answer()
        return message

    def _record_answer(self) -> None:
        """Record when the answer begins."""
        if self._record.answered is None:
            self._record.answered = time.monotonic()

    def summary(self) -> dict[str, Any]:
        """Return what the client gets under `coat` of the finished reply, and count the reply in the metrics."""
        summary = self.coat.transcript.summary()
        self._record.answer_tokens += _count(self._model, summary, len(self.coat.transcript.ids))
        return summary if self._shows_reasoning else {"answer": summary["answer"]}


def _reasoning(text: str, coat: dict[str, Any]) -> DeltaMessage:
    """Return a chunk of reasoning; older clients read it under its second name."""
    return DeltaMessage(reasoning=text, reasoning_content=text, coat=coat)


def _count(model: str, summary: dict[str, Any], tokens: int) -> int:
    """Count a complete reply; return the tokens of its answer."""
    segments = summary["segments"]
    actions = [segment["action"] for segment in segments]
    metrics.REFLECTIONS.labels(model).observe(actions.count("reflect"))
    metrics.EXPLORATIONS.labels(model).observe(actions.count("explore"))
    metrics.ANSWERS.labels(model, "yes" if summary["answer"] is not None else "no").inc()
    for segment in segments:
        metrics.COAT_TOKENS.labels(model, segment["action"]).inc(segment["tokens"])
        metrics.COAT_ACTIONS.labels(model, segment["action"]).inc()
    answer = tokens - sum(segment["tokens"] for segment in segments)
    metrics.COAT_TOKENS.labels(model, "answer").inc(answer)
    return answer


class CoatServing(OpenAIServingChat):
    """vLLM's chat serving, for a model that writes a Chain of Action-Thought. `adopt` makes one from vLLM's own."""

    _limit_tokens: dict[str, Any]
    _comparer: Comparer

    @classmethod
    def adopt(cls, serving: OpenAIServingChat, settings: CoatSettings) -> None:
        """Turn vLLM's own instance, which its start-up makes, into one of these."""
        patch(
            serving,
            "__class__",
            cls,
            why="vLLM's start-up (0.32.0) makes the serving objects itself, from classes that it names itself",
            until="it takes the class from outside",
        )
        serving.parser_cls = CoatParser
        serving._limit_tokens = limit_tokens(serving.renderer.tokenizer, settings)
        serving._comparer = Comparer()

    async def create_chat_completion(self, request: Any, raw_request: Any = None) -> Any:
        """Answer a chat request."""
        if isinstance(request, CoatChatRequest):
            request._tokens = self._limit_tokens
        return await super().create_chat_completion(request, raw_request)

    def _make_parser(self, request: Any, tokenizer: Any, chat_template_kwargs: Any) -> Any:
        parser = super()._make_parser(request, tokenizer, chat_template_kwargs)
        parser.begin(request, self.models.model_name())
        return parser

    def _finalize_response_message(self, message: ChatMessage, *, parser: Any) -> ChatMessage:
        if not parser.coat.off:
            message.coat = parser.summary()
            message.reasoning_content = message.reasoning
        return message

    def chat_completion_stream_generator(
        self, request: Any, result_generator: AsyncIterator[RequestOutput], *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        """Return the stream of a reply; in a vote, that of its progress and then of the winning reply."""
        if not request.vote:
            return super().chat_completion_stream_generator(request, result_generator, *args, **kwargs)
        return self._vote_stream(request, result_generator, *args, **kwargs)

    async def chat_completion_full_generator(
        self, request: Any, result_generator: AsyncIterator[RequestOutput], *args: Any, **kwargs: Any
    ) -> Any:
        """Return a complete reply; in a vote, the winning one."""
        if not request.vote:
            return await super().chat_completion_full_generator(request, result_generator, *args, **kwargs)
        ballot = Ballot(request.vote, self.models.model_name(), self._comparer)
        async for _ in ballot.count(result_generator):
            pass
        response = await super().chat_completion_full_generator(request, ballot.winner(), *args, **kwargs)
        if isinstance(response, ChatCompletionResponse):
            response.choices[0].message.coat["vote"] = ballot.result()
            response.usage.completion_tokens = ballot.tokens
            response.usage.total_tokens = response.usage.prompt_tokens + ballot.tokens
        return response

    async def _vote_stream(
        self, request: Any, result_generator: AsyncIterator[RequestOutput], request_id: str, model: str, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        ballot = Ballot(request.vote, self.models.model_name(), self._comparer)
        try:
            async for progress in ballot.count(result_generator):
                yield progress_chunk(request_id, model, progress)
        except Exception as error:
            yield f"data: {self.create_streaming_error_response(error)}\n\ndata: [DONE]\n\n"
            return
        stream = super().chat_completion_stream_generator(request, ballot.winner(), request_id, model, *args, **kwargs)
        async for chunk in stream:
            yield ballot.with_usage(chunk)


def limit_tokens(tokenizer: Any, settings: CoatSettings) -> dict[str, Any]:
    """Return the token ids that the engine needs to enforce a request's limits (see `deployments.reasoning.limits.Chain`)."""
    vocabulary = tokenizer.get_vocab()
    ids = {name: token for token, name in action_ids(tokenizer).items()}

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    return {
        "reflect": ids["reflect"],
        "explore": ids["explore"],
        "actions": list(ids.values()),
        "end": [tokenizer.eos_token_id],
        "marks": sorted(index for token, index in vocabulary.items() if "boxed" in token),
        "openings": [encode(opening) for opening in settings.openings],
        "answer": encode(settings.answer),
    }
