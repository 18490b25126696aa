"""Stored responses and a batch on the real start: the only ingress is killed, then every process, and the server is started again.

The clients are OpenAI's own, and plain readers of event streams: all that they do is ask for the events after the last one, or how
the batch is.
"""

import io
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
from deployments.access import keys as access
from tests.support.application import Served
from tests.support.until import until

STREAMS, CHATS, TOKENS = 6, 4, 900
NO_END = {"0": -100, "1": -100, "2": -100}
"""nano's tokens that end a reply, or are shown to nobody."""
SOME = 40
"""How many more events each client has had before the next fault."""
TAKES_S = 560
SUMS, BAD = 37, 2
"""How many short lines a batch has, and how many that no server takes; one more is longer than all streams."""
KEYS = {name: access.make(name) for name in ("ada", "eve")}
ENVIRONMENT = {"SATORI_API_KEYS": ",".join(f"{key.name}:{key.sha256}" for _, key in KEYS.values())}


def written(events: Iterable[openai.types.responses.ResponseStreamEvent]) -> str:
    """Return the text of a response's events, its thought included."""
    return "".join(event.delta for event in events if event.type.endswith(".delta"))


def client(url: str, name: str = "ada", retries: int = 0) -> openai.OpenAI:
    """Return OpenAI's client with a key."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEYS[name][0], max_retries=retries, timeout=30)


class Batch:
    """A batch, whose client asks again where it cannot be answered."""

    def __init__(self, url: str) -> None:
        self.client = client(url, retries=5)
        lines = [self.line(number, max_tokens=12) for number in range(SUMS)]
        lines += [self.line(number, max_tokens=-number) for number in range(SUMS, SUMS + BAD)]
        lines.insert(1, self.line(99, max_tokens=TOKENS + 200, logit_bias=NO_END))
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        self.file = self.client.files.create(file=("sums.jsonl", io.BytesIO(data)), purpose="batch")
        assert self.client.files.content(self.file.id).content == data
        self.made = self.make()

    @staticmethod
    def line(number: int, **fields: Any) -> dict[str, Any]:
        """Return a question; a third of them ask for a thought with a limit, a third for log probabilities."""
        asked = [{}, {"coat": {"max_reasoning_tokens": 8}}, {"logprobs": True}][number % 3]
        body = {"model": "nano", "messages": [{"role": "user", "content": f"What is {number} + 30?"}], "temperature": 0}
        return {"custom_id": f"sum {number}", "method": "POST", "url": "/v1/chat/completions", "body": body | asked | fields}

    def make(self) -> openai.types.Batch:
        return self.client.batches.create(
            input_file_id=self.file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"of": "ada"}
        )

    def now(self) -> openai.types.Batch:
        return self.client.batches.retrieve(self.made.id)

    def done(self) -> int:
        """Return how many lines are done; the long one is not yet."""
        now = self.now()
        assert now.status in ("validating", "in_progress")
        return now.request_counts.completed if now.request_counts is not None else 0

    def read(self, file: str | None) -> dict[str, dict[str, Any]]:
        """Return a file's lines by `custom_id`, each of which is there once."""
        assert file is not None
        lines = [json.loads(line) for line in self.client.files.content(file).text.splitlines()]
        found = {line["custom_id"]: line for line in lines}
        assert len(found) == len(lines)
        return found

    def check(self) -> None:
        """Wait for the end, and look at all of it; then cancel another one, which asks the same."""
        done = until(self.now, "the batch ends", TAKES_S, holds=lambda now: now.status not in RUNNING, every_s=1)
        assert done.status == "completed"
        counts = done.request_counts
        assert counts is not None
        assert (counts.total, counts.completed, counts.failed) == (SUMS + 1 + BAD, SUMS + 1, BAD)
        output, errors = self.read(done.output_file_id), self.read(done.error_file_id)
        assert sorted(output) == sorted(f"sum {number}" for number in (*range(SUMS), 99))
        assert {name: line["response"]["status_code"] for name, line in errors.items()} == {"sum 37": 400, "sum 38": 400}
        assert output["sum 99"]["response"]["body"]["usage"]["completion_tokens"] == TOKENS + 200
        for number in range(3):
            alone = self.client.chat.completions.create(**without_extras(self.line(number, max_tokens=12)["body"]))
            texts = [choice["message"]["reasoning"] for choice in output[f"sum {number}"]["response"]["body"]["choices"]]
            assert texts == [choice.message.model_dump()["reasoning"] for choice in alone.choices]
        second = self.make()
        until(lambda: self.client.batches.retrieve(second.id).status, "it runs", 60, holds=lambda now: now == "in_progress")
        assert self.client.batches.cancel(second.id).status in ("cancelling", "cancelled")
        until(lambda: self.client.batches.retrieve(second.id).status, "it ends", 60, holds=lambda now: now == "cancelled")
        assert [batch.id for batch in self.client.batches.list(limit=1)] == [second.id, self.made.id]
        eve = client(str(self.client.base_url).removesuffix("/v1/"), "eve")
        for asked in (eve.batches.retrieve, eve.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                asked(self.made.id)
        for name in (self.file.id, done.output_file_id):
            with pytest.raises(openai.NotFoundError):
                eve.files.content(name)
        assert [*eve.files.list()] == []


RUNNING = ("validating", "in_progress", "finalizing")


def without_extras(body: dict[str, Any]) -> dict[str, Any]:
    """Return a request as OpenAI's client takes it."""
    return {name: value for name, value in body.items() if name != "coat"} | {"extra_body": {"coat": body.get("coat")}}


class Watcher(threading.Thread):
    """A client that wants all events of a response in the background. `attempts` is how often it has asked for them."""

    def __init__(self, url: str, number: int) -> None:
        super().__init__(daemon=True)
        self.client = client(url)
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
        options["headers"] = options.get("headers", {}) | {"authorization": f"Bearer {KEYS['ada'][0]}"}
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
def test_killed_ingresses_and_servers_lose_no_token_and_no_line(tmp_path: Path) -> None:
    arguments = (f"store.url={tmp_path / 'responses.sqlite'}", "ui.enabled=false")

    def some_more(watchers: list[Watcher | ChatWatcher]) -> None:
        had = [len(watcher.events) for watcher in watchers]
        until(
            lambda: [len(watcher.events) - before for watcher, before in zip(watchers, had, strict=True)],
            "all streams go on",
            180,
            holds=lambda more: min(more) >= SOME,
        )
        assert not any(watcher.ended() for watcher in watchers)

    with Served(*arguments, environment=ENVIRONMENT) as served:
        responses = [Watcher(served.url, number) for number in range(STREAMS)]
        chats = [ChatWatcher(served.url, number) for number in range(CHATS)]
        watchers: list[Watcher | ChatWatcher] = [*responses, *chats]
        for watcher in watchers:
            watcher.start()
        some_more(watchers)
        batch = Batch(served.url)
        before = until(batch.done, "lines are done", 180, holds=lambda done: done > 0)
        [ingress] = served.stack.named("ServeReplica:default:Ingress")
        kill([ingress])
        some_more(watchers)
        assert batch.done() >= before
        kill(served.stack.processes())
    with Served(*arguments, environment=ENVIRONMENT) as served:
        some_more(watchers)
        for watcher in watchers:
            watcher.join(TAKES_S)
        batch.check()
        with ThreadPoolExecutor() as pool:
            texts = list(pool.map(lambda watcher: watcher.undisturbed(), watchers))
        for watcher, undisturbed in zip(watchers, texts, strict=True):
            assert watcher.ended()
            assert watcher.attempts >= 3
            assert watcher.text == undisturbed
        for chat in chats:
            assert [number for number, _ in chat.events] == list(range(len(chat.events)))
            assert len(chat.events) > TOKENS / 2
        asking = responses[0].client
        for response in responses:
            assert [event.sequence_number for event in response.events] == list(range(len(response.events)))
            last = response.events[-1]
            assert last.type == "response.incomplete"
            assert last.response.usage is not None
            assert last.response.usage.output_tokens == TOKENS
            assert asking.responses.retrieve(last.response.id) == last.response
        assert psutil.pid_exists(served.process.pid)
