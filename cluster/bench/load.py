"""A streaming load client that uses little CPU: it speaks HTTP/1.1 on keep-alive connections, counts events and parses no JSON.

TTFT is the time from sending a request to its first event. ITL is the gap between two events of one stream; events that arrive
together have gaps of zero. The number of tokens is the server's own (`usage`).
"""

import asyncio
import json
import math
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

EVENT = b"data: {"
USAGE = re.compile(rb'"completion_tokens":\s*(\d+)')


@dataclass
class Sample:
    """The measurements of all clients of one level. Times are in seconds."""

    clients: int
    seconds: float = 0.0
    chunks: int = 0
    tokens: int = 0
    ttft: list[float] = field(default_factory=list)
    itl: list[float] = field(default_factory=list)


class Stream(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, sample: Sample) -> None:
        self._sample = sample
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    async def request(self, message: bytes) -> None:
        """Send an HTTP request, and return when its stream has ended. Raises ConnectionError if it is refused or fails."""
        assert self._transport is not None
        self._done = asyncio.get_running_loop().create_future()
        self._tail, self._first, self._answered = b"", True, False
        self._transport.write(message)
        self._last = time.perf_counter()
        await self._done

    def data_received(self, data: bytes) -> None:
        """Count the events in `data`."""
        now, sample = time.perf_counter(), self._sample
        if (events := (self._tail[1 - len(EVENT) :] + data).count(EVENT)) > 0:  # also one that two reads have parts of
            gap, self._last = now - self._last, now
            (sample.ttft if self._first else sample.itl).append(gap)
            sample.itl += [0.0] * (events - 1)
            sample.chunks += events
            self._first = False
        self._tail = (self._tail + data)[-1024:]
        if b"data: [DONE]" in self._tail and self._tail.endswith(b"0\r\n\r\n"):
            if usage := USAGE.findall(self._tail):
                sample.tokens += int(usage[-1])
                self._end(None)
            else:  # as after an error amid the stream
                self._end(ConnectionError(f"a stream ended without its usage: {self._tail!r}"))
        elif not self._answered and not data.startswith(b"HTTP/1.1 200"):
            self._end(ConnectionError(f"the server refused a request: {data[:300]!r}"))
        self._answered = True  # later data may have no event either: comments keep an idle stream open

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the open request, if there is one."""
        self._end(ConnectionError("the connection was lost in mid-stream"))

    def _end(self, error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            if error is None:
                self._done.set_result(None)
            else:
                self._done.set_exception(error)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` of the values do not exceed (nearest rank); NaN if there are none."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)] if values else math.nan


def message(host: str, port: int, model: str, prompt: str, tokens: int, header: str = "") -> bytes:
    """Return an HTTP request for a streaming chat of exactly `tokens` tokens, greedy, with another `header` ("name: value")."""
    body = json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    head += f"{header}\r\n" if header else ""
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


def problem(rng: random.Random) -> str:
    """Return a problem on which nano spends 240 tokens and more; the same one seldom comes twice."""
    first, second, less = (rng.randint(10, 99) for _ in range(3))
    return f"({first} + {second}) * {rng.randint(2, 9)} - {less} = ?"


async def run(host: str, port: int, model: str, clients: int, requests: int, tokens: int, seed: int, header: str = "") -> Sample:
    """Return the measurements of `requests` streams of `tokens` tokens each, over `clients` connections, with another `header`.

    Raises ConnectionError if a request fails. The same seed gives the same requests.
    """
    rng = random.Random(seed)
    messages = [message(host, port, model, problem(rng), tokens, header) for _ in range(requests)]
    sample = Sample(clients)
    loop = asyncio.get_running_loop()

    async def client() -> None:
        transport, stream = await loop.create_connection(lambda: Stream(sample), host, port)
        try:
            while messages:
                await stream.request(messages.pop())
        finally:
            transport.close()

    began = time.perf_counter()
    running = [asyncio.create_task(client()) for _ in range(clients)]
    try:
        await asyncio.gather(*running)
    finally:  # where one has failed, the others end too
        for task in running:
            task.cancel()
    sample.seconds = time.perf_counter() - began
    return sample
