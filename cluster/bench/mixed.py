"""Requests of every kind that clients make, and what came of each: the load of `cluster.bench.soak`."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

TOKENS = 96
QUESTIONS = 24
JSON_SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
PAGES = ("/", "/ui/", "/ui/config", "/ui/page/main.js", "/docs", "/openapi.json", "/status", "/v1/models", "/health", "/metrics")
ABORTED_AFTER = 5
"""How many lines of a stream a client reads that then leaves."""


def question(number: int) -> str:
    """Return question `number`."""
    return f"What is {100 + number} * 6 - {3 * number}?"


def chat(number: int, **more: Any) -> dict[str, Any]:
    """Return the body of a greedy chat."""
    return {"messages": [{"role": "user", "content": question(number)}], "max_tokens": TOKENS, "temperature": 0} | more


def schema(number: int) -> dict[str, Any]:
    """Return the body of a chat whose reply is JSON of a schema."""
    return chat(number, response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": JSON_SCHEMA}})


def tool(number: int) -> dict[str, Any]:
    """Return the body of a chat that must call a function."""
    function = {"type": "function", "function": {"name": "add", "parameters": JSON_SCHEMA}}
    return chat(number, tools=[function], tool_choice={"type": "function", "function": {"name": "add"}})


@dataclass(frozen=True)
class Kind:
    """A kind of request: its route, its body, the lines that may end its stream, and whether its text is the same every time."""

    path: str
    body: Callable[[int], dict[str, Any]]
    last: tuple[str, ...] = ()
    repeats: bool = True
    weight: int = 4


def _completion(number: int) -> dict[str, Any]:
    return {"prompt": question(number), "max_tokens": TOKENS, "temperature": 0}


def _response(number: int) -> dict[str, Any]:
    return {"input": question(number), "max_output_tokens": TOKENS, "temperature": 0, "store": False}


def _message(number: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question(number)}], "max_tokens": TOKENS, "temperature": 0}


CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
DONE, STOP = ("data: [DONE]",), ("event: message_stop",)
ENDED = ("event: response.completed", "event: response.incomplete")
VOTE = {"coat": {"vote": {"samples": 4}}}
KINDS: Mapping[str, Kind] = {
    "chat": Kind(CHAT, chat),
    "chat stream": Kind(CHAT, chat, DONE, weight=12),
    "chat stream, four samples": Kind(CHAT, lambda n: chat(n, n=4, temperature=0.8, seed=n), DONE, repeats=False),
    "completion": Kind(COMPLETIONS, _completion),
    "completion stream": Kind(COMPLETIONS, _completion, DONE),
    "response": Kind(RESPONSES, _response, repeats=False),
    "response stream": Kind(RESPONSES, _response, ENDED, repeats=False),
    "message": Kind(MESSAGES, _message, repeats=False),
    "message stream": Kind(MESSAGES, _message, STOP, repeats=False),
    "vote": Kind(CHAT, lambda n: chat(n, temperature=0.7) | VOTE, repeats=False, weight=2),
    "vote stream": Kind(CHAT, lambda n: chat(n, temperature=0.7) | VOTE, DONE, repeats=False, weight=2),
    "JSON of a schema": Kind(CHAT, schema),
    "function call": Kind(CHAT, tool),
}
PAGE, ABORT = "page", "aborted stream"
WEIGHTS = {name: kind.weight for name, kind in KINDS.items()} | {PAGE: 8, ABORT: 4}
"""How often each kind comes, of the sum of all."""


@dataclass
class Outcome:
    """A request's kind, its times on the monotonic clock, and what was wrong with it: "" if nothing.

    `broken` says that the connection ended before the reply did, as when its ingress is killed.
    """

    kind: str
    began: float
    ended: float = 0.0
    wrong: str = ""
    broken: bool = False

    @property
    def streams(self) -> bool:
        """Whether its reply was a stream."""
        return self.kind == ABORT or (self.kind in KINDS and bool(KINDS[self.kind].last))


@dataclass
class Clients:
    """Clients that make requests one after the other, until they are cancelled; what came of all in `outcomes`."""

    url: str
    model: str
    seed: int
    pause_s: float
    outcomes: list[Outcome] = field(default_factory=list)
    texts: dict[tuple[str, int], str] = field(default_factory=dict)

    async def run(self, clients: int, until: asyncio.Event) -> None:
        """Make requests by so many clients until the event is set, and let the last ones end."""
        await asyncio.gather(*(self._client(random.Random(self.seed + number), until) for number in range(clients)))

    async def _client(self, rng: random.Random, until: asyncio.Event) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=300, trust_env=False, follow_redirects=True) as http:
            while not until.is_set():
                [kind] = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
                await self._ask(http, kind, rng)
                await asyncio.sleep(rng.expovariate(1 / self.pause_s))

    async def _ask(self, http: httpx.AsyncClient, name: str, rng: random.Random) -> None:
        outcome = Outcome(name, time.monotonic())
        self.outcomes.append(outcome)
        try:
            if name == PAGE:
                outcome.wrong = await self._page(http, rng.choice(PAGES))
            elif name == ABORT:
                outcome.wrong = await self._abort(http, rng.randrange(QUESTIONS))
            else:
                outcome.wrong = await self._complete(http, name, rng.randrange(QUESTIONS))
        except httpx.TransportError as error:
            outcome.broken, outcome.wrong = True, repr(error)
        outcome.ended = time.monotonic()

    async def _page(self, http: httpx.AsyncClient, path: str) -> str:
        response = await http.get(path)
        return "" if response.status_code == 200 else f"{path}: {response.status_code} {response.text[:200]}"

    async def _abort(self, http: httpx.AsyncClient, number: int) -> str:
        body = chat(number, stream=True, model=self.model, max_tokens=1000, ignore_eos=True)
        async with http.stream("POST", CHAT, json=body) as response:
            if response.status_code != 200:
                return f"{response.status_code} {(await response.aread()).decode()[:200]}"
            count = 0
            async for _ in response.aiter_lines():
                if (count := count + 1) == ABORTED_AFTER:
                    return ""
        return "its stream ended early"

    async def _complete(self, http: httpx.AsyncClient, name: str, number: int) -> str:
        kind = KINDS[name]
        body = kind.body(number) | {"model": self.model, "stream": bool(kind.last)}
        lines = []
        async with http.stream("POST", kind.path, json=body) as response:
            async for line in response.aiter_lines():
                lines.append(line)
        if response.status_code != 200:
            return f"{response.status_code} {' '.join(lines)[:200]}"
        if kind.last and not set(kind.last) & set(lines):
            return f"its stream ended with {' '.join(lines)[-200:]!r}"
        if error := next((line for line in lines if line.startswith('data: {"error"')), ""):
            return error[:300]
        text = _text(lines, bool(kind.last))
        if not text:
            return f"an empty reply: {' '.join(lines)[-200:]!r}"
        first = self.texts.setdefault((name, number), text) if kind.repeats else text
        return "" if text == first else f"another text than the first time: {text!r}, not {first!r}"


def _text(lines: list[str], streamed: bool) -> str:
    """Return what a reply says; of the APIs other than OpenAI's older ones, only that it says something."""
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")] if streamed else [json.loads("".join(lines))]
    found = []
    for event in events:
        for choice in event.get("choices", []):
            part = choice.get("delta") or choice.get("message") or choice
            calls = [call["function"]["arguments"] for call in part.get("tool_calls") or []]
            found += [part.get(name) or "" for name in ("reasoning", "content", "text")] + calls
        if "choices" not in event:
            found.append(json.dumps(event))
    return "".join(found)
