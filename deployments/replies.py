"""What chat replies carry of the Chain of Action-Thought: the segment of each chunk, and a summary with the last.

vLLM's serving class calls these hooks; nothing of its API is written here.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse, ChatMessage
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.outputs import RequestOutput
from vllm.parser.abstract_parser import DelegatingParser

from deployments import measuring, metrics
from deployments.ballot import Ballot, announced
from deployments.coat import Delta
from deployments.options import CoatChatRequest
from deployments.reasoning import CoatReasoningParser, action_ids
from deployments.settings import CoatSettings


class CoatParser(DelegatingParser):
    """Reads one choice of a reply. `begin` tells it the request."""

    reasoning_parser_cls = CoatReasoningParser
    coat: CoatReasoningParser

    def begin(self, request: CoatChatRequest, model: str) -> None:
        """Set up for a request to `model`, the served name."""
        assert isinstance(self._reasoning_parser, CoatReasoningParser)
        self.coat = self._reasoning_parser
        self._model = model
        self._record = measuring.current.get() or measuring.Record(0.0)
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
        """Return the next chunk with the segment that it belongs to, and when the reply is finished with the summary.

        In place of vLLM's, which costs more a token. None where nothing can be told yet.
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
            self._answers()
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
            self._answers()
        return message

    def _answers(self) -> None:
        """Note when the answer begins."""
        if self._record.answered is None:
            self._record.answered = time.monotonic()

    def summary(self) -> dict[str, Any]:
        """Return what the client gets of the finished reply, and count it in the metrics."""
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
    """vLLM's chat serving, for a model that writes a Chain of Action-Thought. Made of one of vLLM's by `adopt`."""

    _limit_tokens: dict[str, Any]

    @classmethod
    def adopt(cls, serving: OpenAIServingChat, settings: CoatSettings) -> None:
        """Turn vLLM's own instance, which its start-up makes, into one of these."""
        serving.__class__ = cls
        serving.parser_cls = CoatParser
        serving._limit_tokens = limit_tokens(serving.renderer.tokenizer, settings)

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
        """Return the stream of a reply; in a vote, of its progress and then the reply that won."""
        if not request.vote:
            return super().chat_completion_stream_generator(request, result_generator, *args, **kwargs)
        return self._vote_stream(request, result_generator, *args, **kwargs)

    async def chat_completion_full_generator(
        self, request: Any, result_generator: AsyncIterator[RequestOutput], *args: Any, **kwargs: Any
    ) -> Any:
        """Return a complete reply; in a vote, the one that won."""
        if not request.vote:
            return await super().chat_completion_full_generator(request, result_generator, *args, **kwargs)
        ballot = Ballot(request.vote, self.models.model_name())
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
        ballot = Ballot(request.vote, self.models.model_name())
        try:
            async for progress in ballot.count(result_generator):
                yield announced(request_id, model, progress)
        except Exception as error:
            yield f"data: {self.create_streaming_error_response(error)}\n\ndata: [DONE]\n\n"
            return
        stream = super().chat_completion_stream_generator(request, ballot.winner(), request_id, model, *args, **kwargs)
        async for chunk in stream:
            yield ballot.with_usage(chunk)


def limit_tokens(tokenizer: Any, settings: CoatSettings) -> dict[str, Any]:
    """Return the token ids that the engine needs to keep to a request's limits (see `deployments.steering.Chain`)."""
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
