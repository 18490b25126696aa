"""The direct path of streams of `/v1/responses`: events instead of chunks, each with its number (see `deployments.ingress.direct`).

vLLM's stream keeps what a reply's current item holds, and says it again when the item ends; a direct event adds to that. Where an
item ends and another one begins, vLLM's stream makes the events.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

from vllm.entrypoints.openai.responses import serving as module
from vllm.entrypoints.openai.responses.context import SimpleContext
from vllm.entrypoints.openai.responses.streaming_events import _StateType

from deployments.ingress import outlet as outlets
from deployments.ingress.direct import DirectStream, encode, pending
from deployments.ingress.outlet import Outlet
from deployments.patching import patch
from deployments.reasoning.coat import Delta

TEXT = (
    b'event: response.output_text.delta\ndata: {"content_index":%d,"delta":%b,"item_id":%b,"logprobs":[],"output_index":%d,'
    b'"sequence_number":%d,"type":"response.output_text.delta"}\n\n'
)
REASONING = (
    b'event: response.reasoning_text.delta\ndata: {"content_index":%d,"delta":%b,"item_id":%b,"output_index":%d,'
    b'"sequence_number":%d,"type":"response.reasoning_text.delta","coat":%b}\n\n'
)


class ResponseStream(DirectStream):
    """A stream of a response. `context` is what vLLM keeps of it, `number` numbers an event, `items` makes those of its items."""

    def __init__(self, outlet: Outlet, context: Any, number: Callable[[Any], Any]) -> None:
        super().__init__(outlet)
        self._context, self._number = context, number
        self.parser = context.response_parser
        self.items: Any = None

    def chunk(self, text: str, ids: list[int]) -> bytes | None:
        """Return the event of this text; None too where another item begins with it."""
        delta = Delta(True, None, -1, text) if self.parser is None else self.parser.read(text, ids)
        state = self.items.state
        if delta is not None and delta.content and not delta.text:
            delta = None
        if delta is not None and state.current_state is not (_StateType.CONTENT if delta.content else _StateType.REASONING):
            if self.parser is None:
                self._text = text
            else:
                self._context._accumulated_text += text
                self.parser.unread(delta)
            self.leave()
            return None
        self._context._accumulated_text += text
        if delta is None:
            return None
        state.accumulated_text += delta.text
        event = self._number(SimpleNamespace(sequence_number=0))
        words = state.content_index, encode(delta.text), encode(state.current_item_id), state.output_index, event.sequence_number
        return TEXT % words if delta.content else REASONING % (*words, self.parser.coat_of(delta.number))


def install(responses: Any) -> None:
    """Let streams of vLLM's server for `/v1/responses` take the direct path."""

    def events(
        request: Any,
        sampling_params: Any,
        results: Any,
        context: Any,
        model: Any,
        tokenizer: Any,
        metadata: Any,
        created: Any,
        number: Any,
    ) -> AsyncGenerator[Any, None]:
        made = original(request, sampling_params, results, context, model, tokenizer, metadata, created, number)
        outlet = outlets.of_client()
        plain = (
            type(context) is SimpleContext
            and not (request.background or request.store or request.tools or getattr(request, "tells_eta", False))
            and sampling_params.structured_outputs is None
            and outlet is not None
        )
        return _beginning(made, ResponseStream(outlet, context, number)) if plain and outlet is not None else made

    original = patch(
        responses,
        "_process_simple_streaming_events",
        events,
        why="a token of vLLM 0.32.0's stream is an output, a wake-up, a model and a message through all middleware",
        until="a token costs it no more than its bytes",
    )
    _show_items()


def _show_items() -> None:
    """Have what makes the events of a response's items known to its stream, in this process. Does nothing the second time."""
    if hasattr(module, "satori_installed"):
        return

    def items(*arguments: Any, **options: Any) -> Any:
        made = original(*arguments, **options)
        if isinstance(stream := pending.get(), ResponseStream):
            stream.items, stream.begun = made, True
        return made

    module.satori_installed = True
    original = patch(
        module,
        "SimpleStreamingEventProcessor",
        items,
        why="vLLM 0.32.0 makes what writes a response's items inside its stream",
        until="a stream of events can be written from outside",
    )


async def _beginning(events: AsyncGenerator[Any, None], stream: ResponseStream) -> AsyncGenerator[Any, None]:
    """Return the events that vLLM makes of a stream."""
    pending.set(stream)
    async with aclosing(events):
        async for event in events:
            yield event
