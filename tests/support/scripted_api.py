"""The public API with scripted replies, in the format of the real one.

    python -m tests.support.scripted_api [--port 7990] [--pace 0.05]

A reply's text depends on the question alone (`SCRIPTS`), its course on the switches of `ScriptedApi`: not ready, errors, a
connection that breaks, and a gate that lets tokens through one by one. Where it `stores`, a reply is written on while nobody reads
it, and also by a server that is started anew.
"""

import argparse
import asyncio
import itertools
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.support.until import until, until_async

ACTIONS = ("continue", "continue", "reflect", "explore", "continue")
HELD_S, STOPPED_S = 120, 10
Segments = list[tuple[str, str]]

DEFAULT: tuple[Segments, str, str] = (
    [
        ("continue", "First the product: \\(47 \\times 6 = 282\\).\nThen the difference: $282 - 100 = 182$."),
        ("reflect", "Let me check that. Going back, \\(182 + 100 = 282\\), and \\[\\frac{282}{6} = 47.\\]\nThat is right."),
        ("explore", "Another way: $47 \\cdot 6 = 50 \\cdot 6 - 3 \\cdot 6 = 300 - 18 = 282$, less 100 is 182."),
        ("continue", "Both ways agree."),
    ],
    "The final answer is \\boxed{182}.",
    "182",
)
SCRIPTS: dict[str, tuple[Segments, str, str]] = {
    "half": ([("continue", "Half of one.")], "The final answer is \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
    "evil": (
        [("continue", '<img src=x onerror="window.evil=1"> <script>window.evil=1</script> [a](javascript:window.evil=1)')],
        "The final answer is \\boxed{<img src=x onerror=window.evil=1>}.",
        "<img src=x onerror=window.evil=1>",
    ),
    "9.11": (
        [
            ("continue", "比较 9.11 和 9.9，先看整数部分：都是 9。"),
            ("continue", "再看小数部分：$0.11$ 和 $0.9 = 0.90$。"),
            ("reflect", "检查一下：$0.90 > 0.11$，所以 $9.9 > 9.11$。"),
        ],
        "最终答案是 \\boxed{9.9}。",
        "9.9",
    ),
}
MARKDOWN = r"""# Plan

*First* the ~~old~~ **new** `price`, see [the rules](https://example.org/rules) and https://example.org.

- one
  - two, with \(a_1\)
    1. three
- four costs \$5, and six $7 or $8 each

| item | cost |
|---|---|
| pen | $ x = 5 $ |

> Quoted, $y_{2} < 3$.

```python
print("<b>1 * 2 * 3</b>")
```

\begin{align*}
a &= 1 \\

b &= 2
\end{align*}

Then $$c = 3$$ and \[
d = 4
\]
![picture](https://example.org/a.png) <u>not markup</u> שלום"""
SCRIPTS["markdown"] = ([("continue", MARKDOWN)], "The *final* answer is \\boxed{4}.", "4")
SCRIPTS["hundred"] = (
    [(action, f"Step {n}: \\({n} \\times 6 = {6 * n}\\), so $x_{{{n}}} = {6 * n}$.") for n, action in enumerate(20 * ACTIONS)],
    "The final answer is \\boxed{7}.",
    "7",
)
SCRIPTS["set aside"] = (
    [
        ("continue", "47 * 6 = 283."),
        ("continue", "283 - 100 = 183."),
        ("reflect", "Let me check: 7 * 6 = 42. Wrong."),
        ("explore", "Let me try again: 47 * 6 = 282."),
        ("continue", "282 - 100 = 182."),
        ("reflect", "Let me check: 182 + 100 = 282. Right."),
        ("continue", "So it is 182."),
        ("explore", "Another way: 47 * 6 - 100 = 40 * 6 + 42 - 100 = 182."),
    ],
    "The final answer is \\boxed{182}.",
    "182",
)
ERRORS: dict[str, tuple[int, dict[str, str], str]] = {
    "queue_full": (429, {"Retry-After": "7"}, "too many requests"),
    "too_long": (400, {}, "This model's maximum context length is 4096 tokens. However, you requested 9000 tokens."),
    "key": (401, {}, "Unauthorized"),
    "failed": (500, {}, "the engine fell over"),
}


class Gate:
    """How many pieces of its reply each stream may send: all of them, or as many as `open` has allowed. Set from another thread."""

    def __init__(self) -> None:
        self.allowed: float = float("inf")

    def close(self) -> None:
        """Let nothing through from now on."""
        self.allowed = 0

    def open(self, pieces: float = float("inf")) -> None:
        """Let each stream send so many more pieces."""
        self.allowed += pieces

    async def pass_piece(self, number: int) -> None:
        """Wait for leave to send the piece of this number, from 0."""
        await until_async(lambda: number < self.allowed, f"the gate opens for piece {number}", HELD_S, every_s=0.005)


class Stored:
    """A reply that is kept. `events` are those that there are, `ended` says that there will be no more."""

    def __init__(self, made: Callable[[], AsyncIterator[str]], owner: str | None) -> None:
        self.made, self.owner = made, owner
        self.events: list[str] = []
        self.ended = False
        self.writer: asyncio.Task[None] | None = None

    def write(self) -> None:
        """Have the reply written on, if nobody does so: its writer may have gone with its server."""
        if not self.ended and (self.writer is None or self.writer.get_loop().is_closed()):
            self.writer = asyncio.create_task(self._write(len(self.events)))

    async def _write(self, known: int) -> None:
        async for number, event in aenumerate(self.made()):
            if number >= known:
                self.events.append(f"id: {number}\n{event}")
        self.ended = True

    async def read(self, after: int) -> AsyncIterator[str]:
        """Yield the events after a number, those to come among them."""
        for number in itertools.count(after + 1):
            await until_async(lambda number=number: number < len(self.events) or self.ended, "it goes on", HELD_S, every_s=0.005)
            if number >= len(self.events):
                return
            yield self.events[number]


class ScriptedApi:
    """The server's switches, and what it was asked. A question that holds `trouble: NAME` has trouble of its own."""

    def __init__(self, pace_s: float = 0.0) -> None:
        self.pace_s = pace_s
        self.ready = True
        self.trouble: str | None = None
        self.models = ["nano"]
        self.gate = Gate()
        self.asked: list[dict[str, Any]] = []
        self.open_streams = 0
        self.keys: list[str | None] = []
        self.taken: list[str | None] = []  # the keys of the questions that got a stream
        self.stores = False
        self.stored: dict[str, Stored] = {}
        self.endings: list[tuple[str, int]] = []  # of the next readers of what is stored: "cut" or "event", after so many events
        self.reading = self.most_reading = 0
        self.read_by: list[str | None] = []  # the keys with which stored replies were read
        self.deleted: list[str] = []
        self.app = Starlette(
            routes=[
                Route("/ready", self._ready),
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/chat/completions/{id}", self._resume, methods=["GET"]),
                Route("/v1/chat/completions/{id}", self._delete, methods=["DELETE"]),
            ]
        )

    async def _ready(self, request: Request) -> Response:
        if self.ready:
            return JSONResponse({"ready": True})
        return JSONResponse({"ready": False, "reason": "no LLM replica is up"}, 503)

    async def _models(self, request: Request) -> Response:
        models = [{"id": name, "object": "model", "max_model_len": 4096} for name in self.models]
        return JSONResponse({"object": "list", "data": models})

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        storing = request.headers.get("x-satori-resume") == "1"
        if storing and (not self.stores or "vote" in body.get("coat", {})):
            return refused("x-satori-resume: replies are not kept here (store.url), so none can be resumed", 400, 400)
        name = request.headers.get("x-request-id", "")
        if storing and name in self.stored:
            return refused("a stored chat has this id", 409, "already_stored")
        self.asked.append(body)
        self.keys.append(request.headers.get("authorization"))
        question = next(one["content"] for one in reversed(body["messages"]) if one["role"] == "user")
        named = re.search(r"trouble: (\w+)", question)
        trouble = named[1] if named else self.trouble
        if trouble in ERRORS:
            status, headers, message = ERRORS[trouble]
            return JSONResponse({"error": {"message": message, "type": "error", "code": status}}, status, headers)
        if not self.ready:
            return JSONResponse({"error": {"message": "no LLM replica is up", "code": 503}}, 503)
        self.taken.append(self.keys[-1])
        if storing:
            self.stored[name] = Stored(lambda: self._stream(body, question, trouble), self.keys[-1])
            return self._read(self.stored[name], -1)
        return StreamingResponse(self._stream(body, question, trouble), media_type="text/event-stream")

    async def _resume(self, request: Request) -> Response:
        self.read_by.append(request.headers.get("authorization"))
        stored = self.stored.get(request.path_params["id"])
        if stored is None or stored.owner != self.read_by[-1]:
            return refused("there is no stored chat of this id; it may have expired", 404, "chat_not_found")
        return self._read(stored, int(request.query_params.get("starting_after", -1)))

    async def _delete(self, request: Request) -> Response:
        name = request.path_params["id"]
        if (stored := self.stored.pop(name, None)) is None:
            return refused("there is no stored chat of this id; it may have expired", 404, "chat_not_found")
        self.deleted.append(name)
        stored.ended = True
        if stored.writer is not None and not stored.writer.get_loop().is_closed():
            stored.writer.cancel()
        return JSONResponse({"id": name, "object": "chat.completion.deleted", "deleted": True})

    def _read(self, stored: Stored, after: int) -> Response:
        stored.write()
        kind, count = self.endings.pop(0) if self.endings else ("", -1)

        async def events() -> AsyncIterator[str]:
            self.reading += 1
            self.most_reading = max(self.reading, self.most_reading)
            try:
                async for number, event in aenumerate(stored.read(after)):
                    if number == count and kind == "cut":
                        raise ConnectionError("scripted")
                    if number == count:
                        yield sse({"error": {"message": "this ingress ends", "type": "EngineLostError", "code": 503}})
                        return
                    yield event
            finally:
                self.reading -= 1

        return StreamingResponse(events(), media_type="text/event-stream")

    async def _stream(self, body: dict[str, Any], question: str, trouble: str | None) -> AsyncIterator[str]:
        self.open_streams += 1
        try:
            async for event in self._events(body, question, trouble):
                yield event
        finally:
            self.open_streams -= 1

    async def _events(self, body: dict[str, Any], question: str, trouble: str | None) -> AsyncIterator[str]:
        segments, statement, answer = next((script for mark, script in SCRIPTS.items() if mark in question), DEFAULT)
        if body.get("continue_final_message"):  # with `echo`, what was planted comes again
            planted = re.findall(r"<\|(\w+)\|>([^<]*)", body["messages"][-1]["content"])
            segments = [*planted, *segments[len(planted) :]] if body["echo"] else segments[len(planted) - 1 :]
        coat = body.get("coat") or {}
        vote: dict[str, Any] | None = None
        numbers = itertools.count()
        for vote in votes(coat["vote"], answer) if "vote" in coat else []:
            await self._turn(next(numbers))
            index = vote["counted"] - 1
            last = {"chains": [chain(index, segments, statement, answer)]} if coat["vote"].get("chains") else {}
            yield sse({"choices": [], "coat": {"vote": vote | last}})
            if vote["decided"] and "stop early" in question:
                break
        if vote:  # the winner's whole chain is in one chunk
            if coat["vote"].get("chains"):
                left = range(vote["counted"], vote["samples"])
                vote = vote | {"winner": 0, "chains": [chain(index, segments, "", None) for index in left]}
            summary = [{"action": action, "text": text, "tokens": len(text.split())} for action, text in segments]
            thought = "\n".join(text for _, text in segments)
            told = {"index": len(segments) - 1, "actions": [action for action, _ in segments]}
            told |= {"segments": summary, "answer": answer, "vote": vote}
            whole = {"reasoning": thought, "reasoning_content": thought, "content": statement, "coat": told}
            yield sse(chunk({"role": "assistant", "content": ""}, usage=usage(0, 0)))
            yield sse(chunk(whole, "stop", usage(560, 0)))
            yield sse({"choices": [], "usage": usage(560, 512)})
            yield "data: [DONE]\n\n"
            return
        tokens, reasoning = 0, 0
        yield sse(chunk({"role": "assistant", "content": ""}, usage=usage(0, 0)))
        summary = []
        for index, (action, text) in enumerate(segments):
            tokens += 1  # the action's own
            pieces = re.findall(r"[\u3000-\u9fff]|[^\s\u3000-\u9fff]+\s*|\s+", text)
            for number, piece in enumerate(pieces):
                await self._turn(next(numbers))
                tokens += 1
                begun: dict[str, Any] = {} if number else {"actions": [action]}
                if coat.get("eta") and number:
                    begun["eta_s"] = [3.4, 8.0, 21.2]
                delta = {"reasoning": piece, "reasoning_content": piece, "coat": {"index": index} | begun}
                yield sse(chunk(delta, usage=usage(tokens, 0)))
                if trouble == "broken" and index == 1:
                    raise ConnectionError("scripted")
                if trouble == "event" and index == 1:
                    yield sse({"error": {"message": "the engine died", "type": "InternalServerError", "code": 500}})
                    return
            reasoning += len(pieces) + 1
            summary.append({"action": action, "text": text, "tokens": len(pieces) + 1})
        await self._turn(next(numbers))
        tokens += 6
        yield sse(chunk({"content": statement, "coat": {"segments": summary, "answer": answer}}, "stop"))
        yield sse({"choices": [], "usage": usage(tokens, reasoning)})
        yield "data: [DONE]\n\n"

    async def _turn(self, number: int) -> None:
        await self.gate.pass_piece(number)
        if self.pace_s:
            await asyncio.sleep(self.pace_s)


def refused(message: str, status: int, code: str | int) -> JSONResponse:
    """Return an error in the form of OpenAI's API."""
    return JSONResponse({"error": {"message": message, "type": "error", "code": code}}, status)


async def aenumerate(items: AsyncIterator[str]) -> AsyncIterator[tuple[int, str]]:
    """Yield each item with its number, from 0."""
    number = 0
    async for item in items:
        yield number, item
        number += 1


def votes(asked: dict[str, Any], answer: str) -> Iterator[dict[str, Any]]:
    """Yield the progress of a vote in which every fourth attempt is wrong."""
    samples, groups = asked["samples"], {answer: list[int](), "181": list[int]()}
    for index in range(samples):
        groups["181" if is_wrong(index) else answer].append(index)
        tally = [
            {"answer": key, "votes": len(those)} | ({"indices": list(those)} if asked.get("chains") else {})
            for key, those in sorted(groups.items(), key=lambda item: -len(item[1]))
            if those
        ]
        yield {"samples": samples, "counted": index + 1, "votes": tally, "decided": len(groups[answer]) * 2 > samples}


def is_wrong(index: int) -> bool:
    """Return whether this attempt of a vote is wrong."""
    return index % 4 == 2


def chain(index: int, segments: Segments, statement: str, answer: str | None) -> dict[str, Any]:
    """Return a chain of a vote. A wrong one leaves the others' way at its second step; one without an answer was stopped there."""
    if answer is None:
        segments = segments[:1]
    elif is_wrong(index):
        segments, answer, statement = [segments[0], ("continue", "So it is $181$.")], "181", "The final answer is \\boxed{181}."
    told = [{"action": action, "text": text, "tokens": len(text.split())} for action, text in segments]
    finish = None if answer is None else "stop"
    return {"index": index, "finish_reason": finish, "answer": answer, "segments": told, "content": statement}


def chunk(delta: dict[str, Any], finish: str | None = None, usage: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a chunk with one choice."""
    made: dict[str, Any] = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    return made | ({"usage": usage} if usage else {})


def usage(tokens: int, reasoning: int) -> dict[str, Any]:
    """Return a usage of 30 prompt tokens."""
    details = {"completion_tokens_details": {"reasoning_tokens": reasoning}} if reasoning else {}
    return {"prompt_tokens": 30, "completion_tokens": tokens, "total_tokens": 30 + tokens} | details


def sse(data: dict[str, Any]) -> str:
    """Return a chunk as a server-sent event."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": int(time.time()), "model": "nano"}
    return f"data: {json.dumps((head | data) if 'error' not in data else data, ensure_ascii=False)}\n\n"


class Background:
    """An ASGI app served on a free (or the given) port by a thread."""

    def __init__(self, app: Any, port: int = 0) -> None:
        config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        until(lambda: self._server.started or not self._thread.is_alive(), "the server starts")
        assert self._server.started, "the server did not start"
        self.port = int(self._server.servers[0].sockets[0].getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Stop, and wait for the end."""
        self._server.should_exit = True
        self._thread.join(STOPPED_S)
        assert not self._thread.is_alive(), f"the server goes on after {STOPPED_S} s"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=7990)
    parser.add_argument("--pace", type=float, default=0.05)
    options = parser.parse_args()
    uvicorn.run(ScriptedApi(options.pace).app, host="127.0.0.1", port=options.port, log_level="warning")
