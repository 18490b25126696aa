"""Different chats that stream at once, for runs that break something meanwhile: what is asked, and what a client received."""

import asyncio
import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import httpx

STREAMS = 50
TOKENS = 160
PATIENCE_S, AGAIN_S = 300.0, 0.2
"""How long a client goes on to resume a stream, and how long it waits before it asks again."""
UNSTORABLE = ("n", "logprobs", "top_logprobs")
"""What a chat that can be resumed must not ask for."""


def question(number: int) -> dict[str, Any]:
    """Return chat `number` of a mixed load. For some of its kinds an engine keeps state besides the tokens."""
    body: dict[str, Any] = {"model": "nano", "temperature": 0, "stream": True, "max_tokens": TOKENS}
    body["messages"] = [{"role": "user", "content": f"What is {100 + number} * 6 - {3 * number}?"}]
    kinds: list[dict[str, Any]] = [
        {"ignore_eos": True, "coat": {"parse": False}},
        {"min_tokens": TOKENS - 10, "logprobs": True, "top_logprobs": 2},
        {"temperature": 1, "seed": number, "ignore_eos": True},
        {"frequency_penalty": 0.2, "presence_penalty": 0.2, "ignore_eos": True},
        {"structured_outputs": {"regex": f"[0-9 ]{{{TOKENS - 20}}}"}, "coat": {"parse": False}},
        {"ignore_eos": True, "coat": {"max_reasoning_tokens": TOKENS // 2, "max_reflections": 1}},
        {"n": 2, "temperature": 0.7, "seed": number, "ignore_eos": True, "stop": ["expected 7"]},
    ]
    return body | kinds[number % len(kinds)]


@dataclass
class Reply:
    """What a client received of a stream."""

    choices: int = 1
    chunks: int = 0
    text: dict[int, str] = field(default_factory=dict)
    reasoning: dict[int, str] = field(default_factory=dict)
    logprobs: list[str] = field(default_factory=list)
    finish: dict[int, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    @property
    def well(self) -> bool:
        """Whether all its choices have ended, without an error."""
        return len(self.finish) == self.choices and not self.errors

    def same(self, other: "Reply") -> bool:
        """Return whether two replies have the same content, however it was split into chunks."""
        return all(getattr(self, name) == getattr(other, name) for name in ("text", "reasoning", "logprobs", "finish", "errors"))

    async def read(self, http: httpx.AsyncClient, body: dict[str, Any]) -> None:
        """Send the request, and read the stream to its end."""
        self.choices = body.get("n", 1)
        try:
            async with http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    self.errors.append((await response.aread()).decode())
                    return
                done = False
                async for line in response.aiter_lines():
                    done |= line == "data: [DONE]"
                    if line.startswith("data: {"):
                        self._add(json.loads(line.removeprefix("data: ")))
                if not done:
                    self.errors.append("the stream ended short")
        except httpx.HTTPError as error:
            self.errors.append(repr(error))

    def _add(self, event: dict[str, Any]) -> None:
        if "error" in event:
            self.errors.append(event["error"]["message"])
            return
        for choice in event["choices"]:
            self.chunks += 1
            index, delta = choice["index"], choice["delta"]
            self.text[index] = self.text.get(index, "") + (delta.get("content") or "")
            self.reasoning[index] = self.reasoning.get(index, "") + (delta.get("reasoning") or "")
            self.logprobs += [item["token"] for item in (choice.get("logprobs") or {}).get("content", [])]
            if choice["finish_reason"]:
                self.finish[index] = choice["finish_reason"]


def storable(number: int) -> dict[str, Any]:
    """Return chat `number` without what a chat that can be resumed must not ask for."""
    return {name: value for name, value in question(number).items() if name not in UNSTORABLE}


@dataclass
class StoredReply(Reply):
    """What a client received of a stored stream, which it resumes wherever it breaks.

    `last` is the number of the last event, `resumed` how often the client asked for those after it.
    """

    last: int = -1
    resumed: int = 0
    done: bool = False

    async def read(self, http: httpx.AsyncClient, body: dict[str, Any]) -> None:
        """Send the request, and read the stream to its end, however often it breaks."""
        path, name = "/v1/chat/completions", uuid.uuid4().hex
        begin: dict[str, Any] = {"headers": {"x-satori-resume": "1", "x-request-id": name}, "json": body}
        ends, begun, status = time.monotonic() + PATIENCE_S, False, 0
        while not self.done and time.monotonic() < ends:
            after = {} if self.last < 0 else {"starting_after": self.last}
            asked = http.stream("GET", f"{path}/{name}", params=after) if begun else http.stream("POST", path, **begin)
            self.resumed += begun
            try:
                async with asked as response:
                    status = response.status_code
                    begun = status in (200, 409) or (begun and status != 404)
                    if status == 200:
                        await self._events(response)
                        continue
            except httpx.HTTPError:
                pass
            await asyncio.sleep(AGAIN_S)
        if not self.done:
            self.errors.append(f"no end after {PATIENCE_S:g} s; status {status}")

    async def _events(self, response: httpx.Response) -> None:
        """Read events to the end of the stream, or to an error that has no number: the client may go on later."""
        number = None
        async for line in response.aiter_lines():
            kind, _, said = line.partition(": ")
            if kind == "id":
                number = int(said)
            elif kind == "data":
                if number is None:
                    return
                if number != self.last + 1:
                    self.errors.append(f"event {number} comes after event {self.last}")
                self.last, number = number, None
                if said == "[DONE]":
                    self.done = True
                else:
                    self._add(json.loads(said))


def client(url: str) -> httpx.AsyncClient:
    """Return an HTTP client with a connection for each stream."""
    return httpx.AsyncClient(base_url=url, timeout=900, limits=httpx.Limits(max_connections=STREAMS + 4), trust_env=False)
