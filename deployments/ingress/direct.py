"""The direct path: from an engine step's tokens to bytes on a connection, for the streams that most clients ask for.

vLLM's way of a token makes an output of the request, wakes the task of its stream, and makes a chunk of three models, which then
passes all middleware. A direct stream begins and ends so: vLLM makes its first chunks and its last ones. Each token between them is
detokenized, read and written when its step arrives, between the head and the tail that all its chunks share. The bytes are those
that vLLM's way makes; tests compare them.

A token takes the direct path only while the stream rests: all that came before has been sent, and the client reads. Otherwise it
takes vLLM's way, in which outputs are joined until the client goes on. So nothing is overtaken, and a client that stops reading
holds no more than before. When this process lags and more steps wait, tokens of a stream are held, and go out together.
"""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

import msgspec
from vllm.entrypoints.serve.utils.api_utils import should_include_usage
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

from deployments.ingress import outlet as outlets
from deployments.ingress.frontend import Unmerged
from deployments.ingress.outlet import Outlet, StoredOutlet
from deployments.observability.record import current as current_record
from deployments.patching import patch
from deployments.reasoning.parser import CoatParser

encode = msgspec.json.Encoder().encode
HELD_S = 0.1
"""Tokens are held so long at most, however many steps wait."""
CHAT_OPENING = '"choices":[{"index":0,"delta":'
CHAT_TAIL = b',"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n'
COMPLETION_OPENING = '"choices":[{"index":0,"text":'
COMPLETION_TAIL = b',"logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":null}]}\n\n'


class Outputs(RequestOutputCollector):
    """vLLM's collector of a request's outputs, which also says whether its stream waits for the next one."""

    stream: "DirectStream"
    waiting = False

    def put(self, output: Any) -> None:
        """Add an output, or the error that ends the stream."""
        if not isinstance(output, Exception):
            self.stream.complete(output)
        super().put(output)

    async def get(self) -> Any:
        """Return the next output. The stream asks for it when all that came before has been sent."""
        self.waiting = True
        try:
            return await super().get()
        finally:
            self.waiting = False


class DirectStream:
    """A stream whose tokens may take the direct path.

    `parser` reads the reply, if anything does. `begun` is set when the stream's first chunk says how the others begin, `finished`
    when the engine has sent its last token: what vLLM makes then comes without a wait.
    """

    collector: type[RequestOutputCollector] = RequestOutputCollector
    """The class of a plain request's collector; that in its place is `outputs`."""
    outputs: type[Outputs] = Outputs

    def __init__(self, outlet: Outlet | StoredOutlet) -> None:
        self._outlet = outlet
        self._record = current_record.get()
        self._state: Any = None
        self._queue: Any = None
        self._handed = 0  # tokens of which vLLM's stream knows
        self._text, self._ids = "", list[int]()  # what is held
        self.parser: Any = None
        self.begun = self.finished = False

    def chunk(self, text: str, ids: list[int]) -> bytes | None:
        """Return the chunk of more of the reply, as vLLM makes it; None if there is none yet, or if the stream leaves."""
        raise NotImplementedError

    def leave(self) -> None:
        """Have vLLM's stream make the next chunk, of what is held and what the parser has."""
        self._queue.put(self._state.make_request_output([], None, None, None))

    def attach(self, state: Any) -> None:
        """Take on the state that vLLM has made of the request, if it is a plain one."""
        probabilities, detokenizer = state.logprobs_processor, state.detokenizer
        plain = (
            state.parent_req is None
            and state.output_kind == RequestOutputKind.DELTA
            and state.stream_interval == 1
            and not state.streaming_input
            and type(detokenizer) is FastIncrementalDetokenizer
            and not detokenizer.stop
            and probabilities.num_logprobs is None
            and probabilities.num_prompt_logprobs is None
            and (self.parser is None or isinstance(self.parser, CoatParser))
            and type(state.queue) is self.collector
            and self._outlet.here()
        )
        if plain:
            patch(
                state.queue,
                "__class__",
                self.outputs,
                why="vLLM 0.32.0 makes the collector of a request's outputs itself",
                until="it takes the class from outside",
            )
            self._state, self._queue, self._detokenizer = state, state.queue, detokenizer
            state.queue.stream = self

    def takes(self, output: EngineCoreOutput) -> bool:
        """Return whether an output can take the direct path; if so, its tokens are held."""
        queue = self._queue
        if not (
            queue.waiting
            and queue.output is None
            and self.begun
            and not self._state.is_prefilling
            and output.finish_reason is None
            and output.routed_experts is None
            and output.new_sampling_mask is None
            and self._outlet.ready()
        ):
            return False
        detokenizer, ids = self._detokenizer, output.new_token_ids
        detokenizer.token_ids += ids
        for token in ids:
            self._text += detokenizer.decode_next(token)
        self._ids += ids
        return True

    def flush(self) -> bool:
        """Write what is held, as one chunk; return whether there was one."""
        if not self._ids:
            return False  # they have gone vLLM's way, with what came after them
        if not self._outlet.ready():
            self.leave()
            return False
        text, ids = self._text, self._ids
        self._text, self._ids = "", []
        try:
            chunk = self.chunk(text, ids)
        except Exception as error:  # a stream whose text cannot be read ends by itself; all others go on
            self._queue.put(error)
            return False
        if chunk is None:
            return False
        self._write(chunk)
        return True

    def _write(self, chunk: bytes) -> None:
        now = time.monotonic()
        self._outlet.write(chunk, now)
        if self._record is not None:
            self._record.sent.append(now)

    def complete(self, output: Any) -> None:
        """Complete an output for vLLM's stream: with all tokens that it has not seen, and the text of those that are held."""
        self.finished = output.finished
        completion, ids = output.outputs[0], self._detokenizer.token_ids
        completion.token_ids = ids[self._handed :]
        self._handed = len(ids)
        completion.text = self._text + completion.text
        self._text, self._ids = "", []


class ChunkStream(DirectStream):
    """A stream of completions, of chats or texts: chunks begin alike, up to the `opening`, as the first shows; `tail` ends them."""

    def __init__(self, outlet: Outlet | StoredOutlet, opening: str, tail: bytes) -> None:
        super().__init__(outlet)
        self._head, self._opening, self._tail = b"", opening, tail

    def learn(self, chunk: str) -> None:
        """Take the head from the stream's first chunk. Where it has none, as an error, all goes on in vLLM's way."""
        before, found, _ = chunk.partition(self._opening)
        if found:
            self._head, self.begun = (before + self._opening).encode(), True

    def passes(self, chunk: str) -> bool:
        """Write a chunk of vLLM's, if it can go out now and differs from others in its text only; return whether it did."""
        if not (self.begun and self._outlet.ready()):
            return False
        written = chunk.encode()
        if not (written.startswith(self._head) and written.endswith(self._tail)):
            return False
        self._write(written)
        return True

    def chunk(self, text: str, ids: list[int]) -> bytes | None:
        """Return the chunk with this text."""
        delta = encode(text) if self.parser is None else self.parser.read_delta(text, ids)
        return None if delta is None else b"".join((self._head, delta, self._tail))


class SingleOutputs(Outputs, Unmerged):
    """The same for a stored request, whose outputs stay alone."""


class SingleStream(ChunkStream):
    """A stream that is stored: each token has a chunk of its own, so that others make the same ones again."""

    collector, outputs = Unmerged, SingleOutputs

    def takes(self, output: EngineCoreOutput) -> bool:
        """Return whether an output took the direct path; nothing is held."""
        if not super().takes(output):
            return False
        self.flush()
        return True

    def passes(self, chunk: str) -> bool:
        """Leave vLLM's chunks to whoever reads them."""
        return False


class DirectOutputProcessor(OutputProcessor):
    """vLLM's output processor, with the direct path.

    `behind` returns whether more engine steps have arrived already. `held` are the streams that hold tokens, `since` when the first
    of these came. `written` counts the chunks that were written directly.
    """

    behind: Callable[[], bool]
    held: list[DirectStream]
    since: float
    written: int

    def add_request(self, request: Any, *arguments: Any) -> None:
        """Add a request as vLLM does; if its stream may be direct, it takes it on."""
        super().add_request(request, *arguments)
        if (stream := pending.get()) is not None:
            pending.set(None)
            stream.attach(self.request_states[request.request_id])

    def process_outputs(
        self,
        engine_core_outputs: list[EngineCoreOutput],
        engine_core_timestamp: float | None = None,
        iteration_stats: Any = None,
        weight_version: str | None = None,
    ) -> Any:
        """Process a step's outputs as vLLM does, but hold those that take the direct path. They count as all others do."""
        others = []
        for output in engine_core_outputs:
            state = self.request_states.get(output.request_id)
            stream = None if state is None else getattr(state.queue, "stream", None)
            if stream is not None and weight_version is not None and output.new_token_ids:
                state.track_weight_version(weight_version)  # of the tokens from here on
            if state is None or stream is None or not stream.takes(output):
                others.append(output)
                continue
            if not self.held:
                self.since = time.monotonic()
            self.held.append(stream)
            if iteration_stats is not None:
                iteration_stats.update_from_output(
                    output, engine_core_timestamp, False, state.stats, self.lora_states, state.lora_name
                )
        return super().process_outputs(others, engine_core_timestamp, iteration_stats, weight_version)

    def update_scheduler_stats(self, scheduler_stats: Any) -> None:
        """Note a step's statistics, which vLLM does when its outputs are processed; then write what is held, unless more waits."""
        super().update_scheduler_stats(scheduler_stats)
        if self.held and (not self.behind() or time.monotonic() - self.since > HELD_S):
            held, self.held = self.held, []
            for stream in held:
                self.written += stream.flush()


pending: ContextVar[DirectStream | None] = ContextVar("pending", default=None)
"""The stream of the request that vLLM adds next in this task."""


def install(engine: Any, state: Any, behind: Callable[[], bool]) -> None:
    """Let streams of chats and completions take the direct path: those of the serving objects in the `state` of vLLM's app."""
    outlets.install()
    patch(
        engine.output_processor,
        "__class__",
        DirectOutputProcessor,
        why="vLLM 0.32.0 makes its frontend's output processor itself",
        until="it takes the class from outside",
    )
    processor = engine.output_processor
    processor.behind, processor.held, processor.since, processor.written = behind, [], 0.0, 0
    chat, completion = state.openai_serving_chat, state.openai_serving_completion
    why = "a token of vLLM 0.32.0's stream is an output, a wake-up, three models and a message through all middleware"
    until = "a token costs it no more than its bytes"

    def chat_stream(request: Any, *arguments: Any, **options: Any) -> AsyncGenerator[str, None]:
        chunks = chats(request, *arguments, **options)
        return _streamed(chunks, CHAT_OPENING, CHAT_TAIL) if _is_plain_chat(request, chat) else chunks

    def make_parser(*arguments: Any) -> Any:
        parser = parsers(*arguments)
        if (stream := pending.get()) is not None:
            stream.parser = parser
        return parser

    def completion_stream(request: Any, inputs: Any, *arguments: Any, **options: Any) -> AsyncGenerator[str, None]:
        chunks = completions(request, inputs, *arguments, **options)
        plain = len(inputs) == 1 and _is_plain(request, completion)
        return _streamed(chunks, COMPLETION_OPENING, COMPLETION_TAIL) if plain else chunks

    chats = patch(chat, "chat_completion_stream_generator", chat_stream, why=why, until=until)
    parsers = patch(chat, "_make_parser", make_parser, why="a stream's parser is made inside it", until=until)
    completions = patch(completion, "completion_stream_generator", completion_stream, why=why, until=until)


def _is_plain(request: Any, serving: Any) -> bool:
    """Return whether all chunks between a stream's first and last ones differ in their text only.

    What the engine is asked for is looked at in `DirectStream.attach`.
    """
    _, usage_in_all = should_include_usage(request.stream_options, serving.enable_force_include_usage)
    return not (
        usage_in_all or request.return_token_ids or request.response_format or request.structured_outputs or request.use_beam_search
    )


def _is_plain_chat(request: Any, serving: Any) -> bool:
    logged = serving.enable_log_outputs and serving.request_logger
    shows_more = getattr(request, "vote", None) or getattr(request, "tells_eta", False)
    return _is_plain(request, serving) and not (request.tools or shows_more or logged)


def _streamed(chunks: AsyncGenerator[str, None], opening: str, tail: bytes) -> AsyncGenerator[str, None]:
    outlet = outlets.current.get()
    if outlet is None:
        return chunks
    kind = SingleStream if isinstance(outlet, StoredOutlet) else ChunkStream
    return _beginning(chunks, kind(outlet, opening, tail))


async def _beginning(chunks: AsyncGenerator[str, None], stream: ChunkStream) -> AsyncGenerator[str, None]:
    """Return the chunks that vLLM makes of a stream, but for those that can be written at once; the last ones together."""
    pending.set(stream)
    last: list[str] = []
    async with aclosing(chunks):
        first = True
        async for chunk in chunks:
            if first:
                stream.learn(chunk)
                first = False
            elif not stream.finished and stream.passes(chunk):
                continue
            if stream.finished:
                last.append(chunk)
            else:
                yield chunk
    if last:
        yield "".join(last)
