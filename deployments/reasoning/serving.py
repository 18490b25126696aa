"""The chat endpoint: vLLM's own, for requests with the extension `coat` (see `deployments.reasoning.request`)."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import Depends, FastAPI, Request
from vllm.entrypoints.openai.chat_completion import api_router
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse, ChatMessage
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.serve.utils.api_utils import validate_json_request
from vllm.outputs import RequestOutput

from deployments.patching import patch
from deployments.reasoning.answers.comparer import Comparer
from deployments.reasoning.ballot import progress_chunk
from deployments.reasoning.calls import Follow
from deployments.reasoning.chains import Chains, ChainServing, check_coat, limit_tokens
from deployments.reasoning.formatted import Formats
from deployments.reasoning.parser import CoatParser, reads_formats
from deployments.reasoning.reading import vocabulary
from deployments.reasoning.request import CoatChatRequest
from deployments.reasoning.responses import CoatResponses
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


class CoatServing(ChainServing, OpenAIServingChat):
    """vLLM's chat serving, for a model that writes a Chain of Action-Thought. `adopt` makes one from vLLM's own."""

    @classmethod
    def adopt(
        cls, state: Any, settings: CoatSettings, formats: Formats | None = None, follow: Follow = CoatParser.follow
    ) -> dict[str, Any]:
        """Turn vLLM's own instances, which its start-up keeps in the app's `state`, into this and its like for Responses.

        The serving object of messages gets the same parser. With `formats`, replies in a format think first, and replies may
        call tools, whose arguments follow the schemas that `follow` returns.
        Returns the token ids that limits of a chain need (`limit_tokens`).
        """
        serving, responses = state.openai_serving_chat, state.openai_serving_responses
        tokenizer = serving.renderer.tokenizer
        chains = Chains(vocabulary(tokenizer), limit_tokens(tokenizer, settings), Comparer(), formats)
        for server, kind in ((serving, cls), (responses, CoatResponses)):
            patch(
                server,
                "__class__",
                kind,
                why="vLLM's start-up (0.32.0) makes the serving objects itself, from classes that it names itself",
                until="it takes the class from outside",
            )
            server.chains = chains
        parser = reads_formats(formats, follow)
        serving.parser_cls = state.anthropic_serving_messages.parser_cls = responses.parser = parser
        state.online_renderer.parser = parser
        for server in (serving, state.anthropic_serving_messages, responses):
            server.enable_auto_tools = True
        return chains.limit_tokens

    async def render_chat_request(self, request: Any) -> Any:
        """Return the conversation and the prompt, as vLLM does, and note a chain that the prompt ends within."""
        result = await super().render_chat_request(request)
        if not isinstance(request, CoatChatRequest) or not isinstance(result, tuple):
            return result
        conversation, [prompt] = result
        planted = self.plant(request, prompt)
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
        ballot = self.ballot(request)
        async for _ in ballot.count(result_generator):
            pass
        response = await super().chat_completion_full_generator(request, ballot.winner(), *args, **kwargs)
        if isinstance(response, ChatCompletionResponse):
            message = response.choices[0].message
            message.coat = getattr(message, "coat", {}) | {"vote": ballot.result()}  # none there of a raw reply
            ballot.count_into(response.usage)
        return response

    async def _vote_stream(
        self, request: Any, result_generator: AsyncIterator[RequestOutput], request_id: str, model: str, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        ballot = self.ballot(request)
        try:
            async for progress in ballot.count(result_generator):
                yield progress_chunk(request_id, model, progress)
        except Exception as error:
            yield f"data: {self.create_streaming_error_response(error)}\n\ndata: [DONE]\n\n"
            return
        stream = super().chat_completion_stream_generator(request, ballot.winner(), request_id, model, *args, **kwargs)
        async for chunk in stream:
            yield ballot.with_usage(chunk)


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
