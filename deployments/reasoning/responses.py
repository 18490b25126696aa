"""vLLM's server for `/v1/responses`, for requests with the extension `coat` (see `deployments.reasoning.request`).

A response has the field `coat` of a chat's message, and each event of reasoning that of a chat's chunk. Further events
`response.in_progress` have the progress of a vote in their response.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from vllm.entrypoints.openai.responses.context import ConversationContext, SimpleContext
from vllm.entrypoints.openai.responses.protocol import ResponsesResponse
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.outputs import RequestOutput

from deployments.reasoning.ballot import Ballot
from deployments.reasoning.chains import ChainServing
from deployments.reasoning.request import CoatResponsesRequest

REASONING_DELTA = "response.reasoning_text.delta"
BEGINNING = 2
"""How many events a stream begins with before anything has been generated: `created` and `in_progress`."""


class Voted(SimpleContext):
    """What vLLM keeps of a reply by vote: the winner's, once there is one."""

    def __init__(self, ballot: Ballot, parser: Any) -> None:
        super().__init__(response_parser=parser)
        self.ballot = ballot

    async def winner(self) -> AsyncGenerator[ConversationContext, None]:
        """Yield this with the winning reply, as vLLM's generation yields it."""
        async for output in self.ballot.winner():
            self.append_output(output)
            yield self


class CoatResponses(ChainServing, OpenAIServingResponses):
    """vLLM's server for Responses, for a model that writes a Chain of Action-Thought."""

    async def _render_resolved_response_inputs(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        rendered = await super()._render_resolved_response_inputs(request, *args, **kwargs)
        if isinstance(request, CoatResponsesRequest) and hasattr(rendered, "engine_input"):
            self.plant(request, rendered.engine_input)
        return rendered

    def _make_response_parser(self, request: Any, tokenizer: Any, chat_template_kwargs: Any) -> Any:
        parser = super()._make_response_parser(request, tokenizer, chat_template_kwargs)
        parser.begin(request)
        return parser

    async def _process_simple_streaming_events(
        self, request: Any, sampling_params: Any, result_generator: Any, context: Any, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        events = super()._process_simple_streaming_events(request, sampling_params, result_generator, context, *args, **kwargs)
        async for event in events:
            if event.type == REASONING_DELTA:
                event.coat = context.response_parser.chunk_coat
            yield event

    def responses_stream_generator(
        self, request: Any, sampling_params: Any, result_generator: Any, context: Any, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        """Return the events of a response; in a vote, with those of its progress and then of the winning reply."""
        if not getattr(request, "vote", None):
            return super().responses_stream_generator(request, sampling_params, result_generator, context, *args, **kwargs)
        voted = Voted(self.ballot(request), context.response_parser)
        events = super().responses_stream_generator(request, sampling_params, voted.winner(), voted, *args, **kwargs)
        return _with_progress(events, voted.ballot, result_generator)

    async def responses_full_generator(
        self, request: Any, sampling_params: Any, result_generator: Any, context: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Return a complete response; in a vote, with the winning reply."""
        if getattr(request, "vote", None) and not isinstance(context, Voted):
            context = Voted(self.ballot(request), context.response_parser)
            async for _ in context.ballot.count(_outputs(result_generator)):
                pass
            result_generator = context.winner()
        response = await super().responses_full_generator(request, sampling_params, result_generator, context, *args, **kwargs)
        parser = getattr(context, "response_parser", None)
        if isinstance(response, ResponsesResponse) and parser is not None:
            coat = {} if parser.coat.off else parser.summary()
            if isinstance(context, Voted):
                coat["vote"] = context.ballot.result()
                context.ballot.count_into_response(response.usage)
            if coat:
                response.coat = coat  # an extra field
        return response


async def _outputs(contexts: AsyncGenerator[ConversationContext, None]) -> AsyncGenerator[RequestOutput, None]:
    """Yield what has just been generated."""
    try:
        async for context in contexts:
            assert isinstance(context, SimpleContext)
            assert context.last_output is not None
            yield context.last_output
    finally:
        await contexts.aclose()


async def _with_progress(
    events: AsyncIterator[Any], ballot: Ballot, results: AsyncGenerator[ConversationContext, None]
) -> AsyncGenerator[Any, None]:
    """Yield the first events of a response, those of its vote, and then the others."""
    for _ in range(BEGINNING):
        begun = await anext(events)
        yield begun
    told = 0
    async for progress in ballot.count(_outputs(results)):
        told += 1
        response = begun.response.model_copy()
        response.coat = {"vote": progress}
        yield begun.model_copy(update={"response": response, "sequence_number": begun.sequence_number + told})
    async for event in events:
        event.sequence_number += told
        yield event
