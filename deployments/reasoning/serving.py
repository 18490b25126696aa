"""The chat endpoint: vLLM's own, for requests with the extension `coat` (see `deployments.reasoning.request`)."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import Depends, FastAPI, Request
from vllm.entrypoints.openai.chat_completion import api_router
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse, ChatMessage
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.serve.utils.api_utils import validate_json_request
from vllm.exceptions import VLLMValidationError
from vllm.outputs import RequestOutput

from deployments.patching import patch
from deployments.reasoning.answers.comparer import Comparer
from deployments.reasoning.ballot import Ballot, progress_chunk
from deployments.reasoning.calls import Follow
from deployments.reasoning.formatted import Formats, FormattedAnswers, thinks_first
from deployments.reasoning.parser import CoatParser, reads_formats
from deployments.reasoning.reading import Vocabulary, vocabulary
from deployments.reasoning.request import CoatChatRequest, CoatOptions
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
    check_coat(request, api_router.chat(raw_request))
    return await api_router.create_chat_completion(request=request, raw_request=raw_request)


def check_coat(request: CoatChatRequest, serving: Any) -> None:
    """Raise VLLMValidationError for a request that has the extension where the model, of this serving, writes no chains.

    `eta` alone is fine: it is told beside reasoning, where there is any.
    """
    asks = request.coat is not None and request.coat.model_dump(exclude={"eta"}) != CoatOptions().model_dump(exclude={"eta"})
    if asks and not isinstance(serving, CoatServing):
        raise VLLMValidationError("this model writes no Chain of Action-Thought; leave coat out", parameter="coat")


class CoatServing(OpenAIServingChat):
    """vLLM's chat serving, for a model that writes a Chain of Action-Thought. `adopt` makes one from vLLM's own."""

    _limit_tokens: dict[str, Any]
    _comparer: Comparer
    _vocabulary: Vocabulary
    _formats: Formats | None

    @classmethod
    def adopt(
        cls, state: Any, settings: CoatSettings, formats: Formats | None = None, follow: Follow = CoatParser.follow
    ) -> dict[str, Any]:
        """Turn vLLM's own instance, which its start-up keeps in the app's `state`, into one of these.

        The serving objects of the other APIs get the same parser. With `formats`, replies in a format think first, and replies may
        call tools, whose arguments follow the schemas that `follow` returns.
        Returns the token ids that limits of a chain need (`limit_tokens`).
        """
        serving = state.openai_serving_chat
        patch(
            serving,
            "__class__",
            cls,
            why="vLLM's start-up (0.32.0) makes the serving objects itself, from classes that it names itself",
            until="it takes the class from outside",
        )
        serving._vocabulary = vocabulary(serving.renderer.tokenizer)
        serving._limit_tokens = limit_tokens(serving.renderer.tokenizer, settings)
        serving._comparer = Comparer()
        serving._formats = formats
        parser = reads_formats(formats, follow)
        serving.parser_cls = state.anthropic_serving_messages.parser_cls = state.openai_serving_responses.parser = parser
        state.online_renderer.parser = parser
        for server in (serving, state.anthropic_serving_messages, state.openai_serving_responses):
            server.enable_auto_tools = True
        return serving._limit_tokens

    async def render_chat_request(self, request: Any) -> Any:
        """Return the conversation and the prompt, as vLLM does, and note a chain that the prompt ends within."""
        result = await super().render_chat_request(request)
        if not isinstance(request, CoatChatRequest) or not isinstance(result, tuple):
            return result
        conversation, [prompt] = result
        planted = self._vocabulary.planted(self._extract_prompt_components(prompt).token_ids or ())
        request._tokens = self._limit_tokens | {"planted": planted}
        if planted and request.echo and request.parsed:
            conversation[-1]["content"] = ""  # the parser tells it, read as the rest of the reply
        return result

    def _make_parser(self, request: Any, tokenizer: Any, chat_template_kwargs: Any) -> Any:
        parser = super()._make_parser(request, tokenizer, chat_template_kwargs)
        parser.begin(request)
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
            stream = super().chat_completion_stream_generator(request, result_generator, *args, **kwargs)
            return _calls_first(stream) if request.tools else stream
        return self._vote_stream(request, result_generator, *args, **kwargs)

    async def chat_completion_full_generator(
        self, request: Any, result_generator: AsyncIterator[RequestOutput], *args: Any, **kwargs: Any
    ) -> Any:
        """Return a complete reply; in a vote, the winning one."""
        if not request.vote:
            return await super().chat_completion_full_generator(request, result_generator, *args, **kwargs)
        ballot = self._ballot(request)
        async for _ in ballot.count(result_generator):
            pass
        response = await super().chat_completion_full_generator(request, ballot.winner(), *args, **kwargs)
        if isinstance(response, ChatCompletionResponse):
            response.choices[0].message.coat["vote"] = ballot.result()
            ballot.count_into(response.usage)
        return response

    async def _vote_stream(
        self, request: Any, result_generator: AsyncIterator[RequestOutput], request_id: str, model: str, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        ballot = self._ballot(request)
        try:
            async for progress in ballot.count(result_generator):
                yield progress_chunk(request_id, model, progress)
        except Exception as error:
            yield f"data: {self.create_streaming_error_response(error)}\n\ndata: [DONE]\n\n"
            return
        stream = super().chat_completion_stream_generator(request, ballot.winner(), request_id, model, *args, **kwargs)
        async for chunk in stream:
            yield ballot.with_usage(chunk)

    def _ballot(self, request: Any) -> Ballot:
        answers = None
        if self._formats is not None and thinks_first(request):
            answers = FormattedAnswers(self._formats, request.extract_structured_outputs())
        return Ballot(request.vote, self.models.model_name(), self._comparer, self._vocabulary, answers)


async def _calls_first(stream: AsyncIterator[str]) -> AsyncGenerator[str, None]:
    """Yield a stream's chunks, calls before the chunk that ends it: only then does openai's library (2.54) tell of a call's end."""
    async for chunk in stream:
        if '"tool_calls":[{' in chunk and '"finish_reason":"' in chunk:
            whole = json.loads(chunk.removeprefix("data: "))
            [choice] = whole["choices"]
            delta = choice["delta"]
            last = {name: delta.pop(name) for name in ("coat",) if name in delta}
            yield _event(whole | {"choices": [choice | {"finish_reason": None}]})
            sent = dict.fromkeys(choice.keys() & {"logprobs", "token_ids"})
            chunk = _event(whole | {"choices": [choice | sent | {"delta": last}]})
        yield chunk


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def limit_tokens(tokenizer: Any, settings: CoatSettings) -> dict[str, Any]:
    """Return the token ids that the engine needs to enforce a request's limits (see `deployments.reasoning.limits.Chain`)."""
    ids = {name: token for token, name in vocabulary(tokenizer).actions.items()}

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    return {
        "reflect": ids["reflect"],
        "explore": ids["explore"],
        "actions": list(ids.values()),
        "end": [tokenizer.eos_token_id],
        "marks": sorted(index for token, index in tokenizer.get_vocab().items() if "boxed" in token),
        "openings": [encode(opening) for opening in settings.openings],
        "answer": encode(settings.answer),
    }
