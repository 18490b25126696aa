"""Stored responses on the real start: the only ingress is killed, then every process, and the server is started again.

The clients are OpenAI's own, and plain readers of event streams: all that they do is ask for the events after the last one.
"""

import json
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from cluster.bench.stack import kill
from tests.support.application import Served
from tests.support.until import until

STREAMS, CHATS, TOKENS = 6, 4, 900
NO_END = {"0": -100, "1": -100, "2": -100}
"""nano's tokens that end a reply, or are shown to nobody."""
SOME = 40
"""How many more events each client has had before the next fault."""
TAKES_S = 560


def written(events: Iterable[openai.types.responses.ResponseStreamEvent]) -> str:
    """Return the text of a response's events, its thought included."""
    return "".join(event.delta for event in events if event.type.endswith(".delta"))


class Watcher(threading.Thread):
    """A client that wants all events of a response in the background. `attempts` is how often it has asked for them."""

    def __init__(self, url: str, number: int) -> None:
        super().__init__(daemon=True)
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30)
        self.asked = {
            "model": "nano",
            "input": f"What is {100 + number} + {20 + 3 * number}?",
            "max_output_tokens": TOKENS,
            "temperature": 0,
            "extra_body": {"logit_bias": NO_END},
        }
        self.events: list[openai.types.responses.ResponseStreamEvent] = []
        self.attempts = 0
        self.began = time.monotonic()

    @property
    def text(self) -> str:
        return written(self.events)

    def undisturbed(self) -> str:
        """Return the text of the same request, unstored."""
        return written(self.client.responses.create(**self.asked, stream=True))  # type: ignore[call-overload]

    def run(self) -> None:
        while time.monotonic() < self.began + TAKES_S and not self.ended():
            self.attempts += 1
            try:
                for event in self.stream():
                    self.events.append(event)
            except (openai.APIConnectionError, openai.APIStatusError, openai.APIError):
                time.sleep(0.5)

    def stream(self) -> openai.Stream[openai.types.responses.ResponseStreamEvent]:
        if not self.events:
            return self.client.responses.create(**self.asked, background=True, stream=True)  # type: ignore[call-overload,no-any-return]
        first = self.events[0]
        assert first.type == "response.created"
        return self.client.responses.retrieve(first.response.id, stream=True, starting_after=self.events[-1].sequence_number)

    def ended(self) -> bool:
        return bool(self.events) and self.events[-1].type == "response.incomplete"


class ChatWatcher(threading.Thread):
    """A client that wants all events of a streamed chat, which are numbers and data."""

    def __init__(self, url: str, number: int) -> None:
        super().__init__(daemon=True)
        self.url, self.name = f"{url}/v1/chat/completions", f"chat-{number}"
        question = {"role": "user", "content": f"What is {100 + number} + {20 + 3 * number}?"}
        self.asked = {"model": "nano", "messages": [question], "max_tokens": TOKENS, "temperature": 0, "logit_bias": NO_END}
        self.events: list[tuple[int, str]] = []
        self.attempts = 0
        self.began = time.monotonic()

    @property
    def text(self) -> str:
        return said(data for _, data in self.events)

    def undisturbed(self) -> str:
        return said(data for _, data in self.read("POST", self.url, json=self.asked | {"stream": True}))

    def run(self) -> None:
        while time.monotonic() < self.began + TAKES_S and not self.ended():
            self.attempts += 1
            try:
                if self.events:
                    more = self.read("GET", f"{self.url}/{self.name}", params={"starting_after": self.events[-1][0]})
                else:
                    headers = {"x-satori-resume": "1", "x-request-id": self.name}
                    more = self.read("POST", self.url, json=self.asked | {"stream": True}, headers=headers)
                self.events.extend(more)
            except httpx.HTTPError:
                time.sleep(0.5)

    def read(self, method: str, url: str, **options: Any) -> Iterator[tuple[int, str]]:
        number = -1
        with httpx.stream(method, url, timeout=60, **options) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                kind, _, value = line.partition(": ")
                if kind == "id":
                    number = int(value)
                elif kind == "data":
                    yield number, value

    def ended(self) -> bool:
        return bool(self.events) and self.events[-1][1] == "[DONE]"


def said(chunks: Iterable[str]) -> str:
    """Return the text of a chat's chunks, its thought included."""
    deltas = [choice["delta"] for chunk in chunks if chunk != "[DONE]" for choice in json.loads(chunk)["choices"]]
    return "".join((delta.get("reasoning") or "") + (delta.get("content") or "") for delta in deltas)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_killed_ingresses_and_servers_lose_no_token(tmp_path: Path) -> None:
    arguments = (f"store.url={tmp_path / 'responses.sqlite'}", "ui.enabled=false")

    def some_more(watchers: list[Watcher | ChatWatcher]) -> None:
        had = [len(watcher.events) for watcher in watchers]
        until(
            lambda: min(len(watcher.events) - before for watcher, before in zip(watchers, had, strict=True)),
            "all streams go on",
            180,
            holds=lambda more: more >= SOME,
        )
        assert not any(watcher.ended() for watcher in watchers)

    with Served(*arguments) as served:
        responses = [Watcher(served.url, number) for number in range(STREAMS)]
        chats = [ChatWatcher(served.url, number) for number in range(CHATS)]
        watchers: list[Watcher | ChatWatcher] = [*responses, *chats]
        for watcher in watchers:
            watcher.start()
        some_more(watchers)
        [ingress] = served.stack.named("ServeReplica:default:Ingress")
        kill([ingress])
        some_more(watchers)
        kill(served.stack.processes())
    with Served(*arguments) as served:
        some_more(watchers)
        for watcher in watchers:
            watcher.join(TAKES_S)
        with ThreadPoolExecutor() as pool:
            texts = list(pool.map(lambda watcher: watcher.undisturbed(), watchers))
        for watcher, undisturbed in zip(watchers, texts, strict=True):
            assert watcher.ended()
            assert watcher.attempts >= 3
            assert watcher.text == undisturbed
        for chat in chats:
            assert [number for number, _ in chat.events] == list(range(len(chat.events)))
            assert len(chat.events) > TOKENS / 2
        client = responses[0].client
        for response in responses:
            assert [event.sequence_number for event in response.events] == list(range(len(response.events)))
            last = response.events[-1]
            assert last.type == "response.incomplete"
            assert last.response.usage is not None
            assert last.response.usage.output_tokens == TOKENS
            assert client.responses.retrieve(last.response.id) == last.response
        assert psutil.pid_exists(served.process.pid)
