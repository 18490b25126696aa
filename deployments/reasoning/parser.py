"""The parsers for vLLM: a reply's thought goes to `reasoning`, its closing statement to `content`, the rest to `coat`.

`CoatParser` parses the choices of chat replies, Responses and Anthropic messages. vLLM also needs a reasoning parser by name:
`coat` is registered when this module is imported.
"""

import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from vllm.entrypoints.generate.base.protocol import DeltaMessage, FunctionCall
from vllm.parser.abstract_parser import DelegatingParser
from vllm.reasoning import ReasoningParser, ReasoningParserManager
from vllm.tool_parsers.abstract_tool_parser import ToolParser

from deployments.observability import metrics, record
from deployments.reasoning import calls
from deployments.reasoning.coat import Delta
from deployments.reasoning.formatted import ChoosingReading, Formats, FormattedReading, thinks_first
from deployments.reasoning.reading import Reading, Tokens, vocabulary
from deployments.routing import prospect

_json = msgspec.json.Encoder().encode
ETA_S = 1.0
"""How often a stream says how long it still takes, where that is asked for."""


@ReasoningParserManager.register_module("coat")
class CoatReasoningParser(ReasoningParser):
    """Parses one reply. A chunk that goes out has text of one segment only; further text waits for the next chunk.

    `off` makes it return everything as content, with the actions as text.
    """

    engine_based_streaming = True
    off = False

    def __init__(self, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(tokenizer, *args, **kwargs)
        self._vocabulary = vocabulary(tokenizer)
        self._waiting: deque[Delta] = deque()
        self._segment, self._shown = -1, "\n"  # the segment shown last, and its last text
        self._raw = Tokens(self._vocabulary)
        self.reading = Reading(self._vocabulary)

    def plant(
        self, prompt: Sequence[int], *, echo: bool, late: bool, formats: Formats | None = None, may_call: bool = False
    ) -> None:
        """Go on from the chain that a prompt ends within, if it does; for `echo` and `late` see `Reading`.

        With `formats`, the reply is a thought and an answer in a format; where it `may_call`, a chain that calls may follow.
        """
        planted = self._vocabulary.planted(prompt)
        if formats and may_call:
            self.reading = ChoosingReading(formats, planted, echo=echo, late=late)
        elif formats:
            self.reading = FormattedReading(formats, planted)
        else:
            self.reading = Reading(self._vocabulary, planted, echo=echo, late=late)

    def adjust_request(self, request: Any) -> Any:
        """Return the request, changed so that the actions appear in the text."""
        request.skip_special_tokens = False
        return request

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Return whether all further text is content: only if `off`."""
        return self.off

    def is_reasoning_end_streaming(self, input_ids: Sequence[int], delta_ids: Iterable[int]) -> bool:
        """Return whether all further text is content: only if `off`, because an action may follow an answer."""
        return self.off

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """Return the ids after the end of reasoning, for tool parsers: none unless `off`, because reasoning has no such end."""
        return input_ids if self.off else []

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        """Return how many of the tokens that were read are certainly reasoning."""
        return 0 if self.off else self.reading.thought_tokens

    def extract_reasoning(self, model_output: str, request: Any, token_ids: Sequence[int] = ()) -> tuple[str | None, str | None]:
        """Return the reasoning and the content of a complete reply, None for each that it lacks."""
        if self.off:
            return None, self.raw(model_output, token_ids, ended=True)
        self._add(self.reading.feed(model_output, token_ids))
        return self.rest()

    def extract_reasoning_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
    ) -> DeltaMessage | None:
        """Return the next chunk for the client; None if nothing is certain yet."""
        delta = self.step(delta_text, delta_token_ids)
        if delta is None:
            return None
        return DeltaMessage(content=delta.text) if delta.content else DeltaMessage(reasoning=delta.text)

    def step(self, text: str, ids: Sequence[int]) -> Delta | None:
        """Parse more of the reply; return the next piece for the client: of one segment, or of the answer."""
        deltas = self.reading.feed(text, ids)
        if len(deltas) == 1 and not self._waiting:  # as most tokens make
            [delta] = deltas
            return delta if delta.content else self._on_its_lines(delta)
        self._add(deltas)
        return self._waiting.popleft() if self._waiting else None

    def show_again(self, delta: Delta) -> None:
        """Return this piece first, which `step` has returned."""
        self._waiting.appendleft(delta)

    def waiting(self) -> list[Delta]:
        """Return what waits for the next chunk, which must show it."""
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting

    def rest(self) -> tuple[str | None, str | None]:
        """End the parsing; return the reasoning and the content that were not returned yet."""
        self._add(self.reading.finish())
        waiting = self.waiting()
        parts = ["".join(delta.text for delta in waiting if delta.content == content) for content in (False, True)]
        return parts[0] or None, parts[1] or None

    def raw(self, text: str, ids: Sequence[int], *, ended: bool) -> str:
        """Return more of the reply as text: of the special tokens, it has only the actions."""
        shown = [part if isinstance(part, str) else self._written(self._raw.ids[part]) for part in self._raw.cut(text, ids)]
        return "".join(shown) + (self._raw.rest() if ended else "")

    def _written(self, token: int) -> str:
        return self._vocabulary.special[token] if token in self._vocabulary.actions else ""

    def _add(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            shown = delta if delta.content else self._on_its_lines(delta)
            last = self._waiting[-1] if self._waiting else None
            if last and (last.content, last.number) == (shown.content, shown.number):
                self._waiting[-1] = last._replace(text=last.text + shown.text)
            else:
                self._waiting.append(shown)

    def _on_its_lines(self, delta: Delta) -> Delta:
        """Return a piece of thought as clients see it: a segment starts on a new line, in place of its action."""
        if delta.number != self._segment:
            self._segment = delta.number
            if not self._shown.endswith("\n"):
                delta = delta._replace(text="\n" + delta.text)
        if delta.text:
            self._shown = delta.text
        return delta


class CoatParser(DelegatingParser):
    """Parses one choice of a reply, and counts it in the metrics when it is complete.

    `formats` is set where the model thinks before it answers in a format. `follow` gives the schema that a call's arguments follow.
    """

    reasoning_parser_cls = CoatReasoningParser
    tool_parser_cls = ToolParser  # it sets the format of calls that are asked for
    formats: Formats | None = None
    follow: calls.Follow = staticmethod(lambda schema: schema)

    def __init__(self, tokenizer: Any, *args: Any, model_config: Any = None, **kwargs: Any) -> None:
        super().__init__(tokenizer, *args, model_config=model_config, **kwargs)
        assert isinstance(self._reasoning_parser, CoatReasoningParser)
        self.coat = self._reasoning_parser
        self._model = getattr(model_config, "served_model_name", "")
        self._prompt: Sequence[int] = ()
        self._begun = self._planted = False
        self._told = 0  # actions that the client knows of
        self.chunk_coat: dict[str, Any] = {}
        """What the last chunk of reasoning had under `coat`, without the summary."""
        self._forced = False
        self._eta_due: float | None = None  # when the stream says next how long it takes; None if nobody asks
        self._choice: str | None = None  # what the reply may have instead of calls, where it is left to the model
        self._read = 0  # tokens that `read` has read since `parse_delta`
        self._arguments: list[str] | None = None  # the answer, as far as it is written, while it may be calls

    def adjust_request(self, request: Any) -> Any:
        """Return the request, changed so that its reply can be read; with the format of its calls."""
        request = super().adjust_request(request)
        if self.formats is not None and getattr(request, "parsed", True) and getattr(request, "vote", None) is None:
            calls.offer(request, self.follow)
        return request

    def _apply_structural_tag(self, request: Any) -> Any:
        """Return the request: calls of this parser have no structural tag."""
        return request

    def begin(self, request: Any) -> None:
        """Set up for a request."""
        self._begun = True
        self._record = record.current.get() or record.Record(0.0)
        self._shows_reasoning = request.include_reasoning
        self._vote = getattr(request, "vote", None) is not None
        self._record.vote = self._vote
        self.coat.off = not getattr(request, "parsed", True)
        self._record.reads = not self.coat.off
        self._forced = calls.forces_call(request)
        self._eta_due = 0.0 if getattr(request, "tells_eta", False) else None

    def set_prompt_token_ids(self, prompt_token_ids: Sequence[int]) -> None:
        """Take the prompt, in whose chain the reply may go on."""
        self._prompt = prompt_token_ids

    def parse(
        self, model_output: str, request: Any, enable_auto_tools: bool = False, model_output_token_ids: Sequence[int] = ()
    ) -> tuple[str | None, str | None, list[FunctionCall] | None]:
        """Return the reasoning, the content and the tool calls of a complete reply."""
        self._plant(request, self._prompt)
        reasoning, content = self.coat.extract_reasoning(model_output, request, model_output_token_ids)
        self._count()
        if self._arguments is not None:
            content = self._content(content or "") or None
        return reasoning, content, self._calls(request)

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
        if not self._planted:
            self._plant(request, prompt_token_ids or ())
        if self._read:
            delta_token_ids, self._read = delta_token_ids[self._read :], 0
        if self.coat.off:
            unread = "".join(delta.text for delta in self.coat.waiting())
            return self._raw(unread + self.coat.raw(delta_text, delta_token_ids, ended=finished), request, finished)
        delta = self.coat.step(delta_text, delta_token_ids)
        if finished:
            return self._last(delta, request)
        if delta is None:
            return None
        if delta.content:
            self._record_answer()
            content = self._content(delta.text)
            return DeltaMessage(content=content) if content else None
        if not self._shows_reasoning:
            return None
        coat: dict[str, Any] = {"index": delta.number} if delta.number >= 0 else {}
        if self._eta_due is not None:
            coat |= self._eta(self._eta_due)
        self.chunk_coat = coat if delta.number < self._told else coat | self._news(delta.number + 1)
        return _reasoning(delta.text, self.chunk_coat)

    def read(self, text: str, ids: list[int]) -> Delta | None:
        """Return what `parse_delta` shows of text in mid-reply, without a message of vLLM's.

        The first piece must go to `parse_delta`, and so must the last, with all tokens since its call before. Not for tool calls.
        """
        self._read += len(ids)
        if self.coat.off:
            return Delta(True, None, -1, self.coat.raw(text, ids, ended=False))
        delta = self.coat.step(text, ids)
        if delta is None or not (delta.content or self._shows_reasoning):
            return None
        if delta.content:
            self._record_answer()
            return delta if delta.text else None
        return delta

    def unread(self, delta: Delta) -> None:
        """Have the next call of `parse_delta` show this first, which `read` has returned."""
        self.coat.show_again(delta)

    def read_delta(self, text: str, ids: list[int]) -> bytes | None:
        """Return what `read` returns, as the JSON of the message that `parse_delta` returns."""
        delta = self.read(text, ids)
        if delta is None:
            return None
        shown = _json(delta.text)
        if delta.content:
            return b'{"content":%b}' % shown
        return b'{"reasoning":%b,"reasoning_content":%b,"coat":%b}' % (shown, shown, self.coat_of(delta.number))

    def coat_of(self, number: int) -> bytes:
        """Return what a chunk of this segment has under `coat`, as JSON."""
        if number < 0:
            return b"{}"
        if number < self._told:
            return b'{"index":%d}' % number
        return _json({"index": number} | self._news(number + 1))

    def summary(self) -> dict[str, Any]:
        """Return what the client gets under `coat` of the finished reply."""
        answer = {"answer": self.coat.reading.answer}
        return {"segments": self.coat.reading.segments()} | answer if self._shows_reasoning else answer

    def _plant(self, request: Any, prompt: Sequence[int]) -> None:
        if not self._begun:
            self.begin(request)
        self._planted = True
        late = bool(getattr(request, "stop", None)) and not request.include_stop_str_in_output
        formats = self.formats if self.formats and thinks_first(request) else None
        self._choice = calls.choice(request.extract_structured_outputs()) if formats else None
        self._arguments = [] if self._forced or self._choice == calls.FORMAT else None
        may_call = self._choice == calls.TEXT
        self.coat.plant(prompt, echo=getattr(request, "echo", False), late=late, formats=formats, may_call=may_call)

    def _content(self, text: str) -> str:
        """Return what of the answer is content. Calls are held until they are complete."""
        if self._arguments is None:
            return text
        self._arguments.append(text)
        written = "".join(self._arguments)
        if self._forced or not written or calls.OPENING.startswith(written[: len(calls.OPENING)]):
            return ""
        self._arguments = None  # it is no call
        return written

    def _raw(self, text: str, request: Any, finished: bool) -> DeltaMessage | None:
        content = self._content(text)
        if finished and self._arguments is not None:
            return DeltaMessage(tool_calls=calls.chunks(self._calls(request)))
        return None if self._arguments is not None else DeltaMessage(content=content)

    def _calls(self, request: Any) -> list[FunctionCall]:
        """Return the calls of a reply that is complete."""
        written = "".join(self._arguments or ())
        if self._forced:
            found, _ = self._extract_tool_calls(written, request)
            return found or []
        reading = self.coat.reading
        return calls.read(reading.behind if isinstance(reading, ChoosingReading) else written)

    def _last(self, delta: Delta | None, request: Any) -> DeltaMessage:
        reasoning, content = self.coat.rest()
        coat = self.summary()
        actions = len(self.coat.reading.actions)
        index = actions - 1
        if delta is not None and delta.content:
            content = delta.text + (content or "")
        elif delta is not None:
            reasoning, index = delta.text + (reasoning or ""), delta.number
        if self._shows_reasoning:
            self.chunk_coat = ({"index": index} if reasoning and index >= 0 else {}) | self._news(actions)
            coat = self.chunk_coat | coat
        shown = reasoning if self._shows_reasoning else None
        message = _reasoning(shown, coat) if shown else DeltaMessage(coat=coat)
        if content:
            self._record_answer()
        if shown := self._content(content or ""):
            message.content = shown
        if found := self._calls(request):
            message.tool_calls = calls.chunks(found)
        self._count()
        return message

    def _news(self, known: int) -> dict[str, list[str]]:
        """Return the actions that begin with this chunk, as a list: clients that add chunks up get the list of all actions."""
        actions, self._told = self.coat.reading.actions[self._told : known], known
        return {"actions": actions} if actions else {}

    def _eta(self, due: float) -> dict[str, list[float]]:
        """Return how long the reply still takes, if that is known and it is time to say it."""
        reply, now = prospect.current.get(), time.monotonic()
        if reply is None or now < due or (eta_s := reply.eta_s(now)) is None:
            return {}
        self._eta_due = now + ETA_S
        return {"eta_s": eta_s}

    def _record_answer(self) -> None:
        """Record when the answer begins."""
        if self._record.answered is None:
            self._record.answered = time.monotonic()

    def _count(self) -> None:
        if not self.coat.off and not self._vote:  # a vote counts all its chains
            self._record.answer_tokens += count(self._model, self.coat.reading)


def reads_formats(formats: Formats | None, follow: calls.Follow = CoatParser.follow) -> type[CoatParser]:
    """Return the parser of a model that has `formats`; for `follow` see `CoatParser`."""
    return type("FormatsParser", (CoatParser,), {"formats": formats, "follow": staticmethod(follow)})


def count(model: str, reading: Reading, *, complete: bool = True) -> int:
    """Count a reply in the metrics; return the tokens of its answer. Of one that is not complete, only the tokens count."""
    segments = reading.segments()
    for segment in segments:
        metrics.COAT_TOKENS.labels(model, segment["action"]).inc(segment["tokens"])
    answer = len(reading.ids) - reading.thought_tokens
    if before := reading.thought_tokens - sum(segment["tokens"] for segment in segments):
        metrics.COAT_TOKENS.labels(model, "none").inc(before)  # of a thought before its first action
    metrics.COAT_TOKENS.labels(model, "answer").inc(answer)
    if complete:
        written = reading.actions[reading.planted :]
        metrics.REFLECTIONS.labels(model).observe(written.count("reflect"))
        metrics.EXPLORATIONS.labels(model).observe(written.count("explore"))
        metrics.ANSWERS.labels(model, "yes" if reading.answer is not None else "no").inc()
        for action in written:
            metrics.COAT_ACTIONS.labels(model, action).inc()
    return answer


def _reasoning(text: str, coat: dict[str, Any]) -> DeltaMessage:
    """Return a chunk of reasoning; older clients read it under its second name."""
    return DeltaMessage(reasoning=text, reasoning_content=text, coat=coat)
