"""Streams of the in-process ingress over real connections, on a core whose engine steps the test makes."""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from vllm.v1.engine import (
    EngineCoreEvent,
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
)

from tests.support.in_process import Core, Server, served
from tests.support.until import TIMEOUT_S, until_async

EVENT = re.compile(rb".+?\n\n", re.DOTALL)
ROUNDS = 16
"""Of the event loop: in so many, all is done that a step has caused."""


@dataclass
class Script:
    """A reply: its tokens, by step, and why it ends with the last of them."""

    steps: list[list[int]]
    ends: FinishReason = FinishReason.STOP
    sent: int = 0


class SteppedCore(Core):
    """A core that has a script for each request. The test makes the steps."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.script: Callable[[EngineCoreRequest], Script] = lambda request: Script([[100], [101]])
        self.open: dict[str, Script] = {}
        self.aborted: list[str] = []

    @property
    def behind(self) -> bool:
        return not self._outputs.empty()

    def answer(self, request: EngineCoreRequest) -> None:
        """Open a request."""
        self.open[request.request_id] = self.script(request)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        self.aborted += [request_id for request_id in request_ids if self.open.pop(request_id, None)]

    async def step(self, steps: int = 1) -> None:
        """Send each open request the tokens of a step, or of some that arrive together, and wait for all that this causes."""
        for _ in range(steps):
            now, outputs = time.monotonic(), []
            for name, script in list(self.open.items()):
                tokens, script.sent = script.steps[script.sent], script.sent + 1
                events = [EngineCoreEvent(kind, now) for kind in (EngineCoreEventType.QUEUED, EngineCoreEventType.SCHEDULED)]
                output = EngineCoreOutput(name, list(tokens), events=events if script.sent == 1 else None)
                if script.sent == len(script.steps):
                    output.finish_reason = script.ends
                    del self.open[name]
                outputs.append(output)
            self._outputs.put_nowait(EngineCoreOutputs(outputs=outputs, timestamp=now, weight_version="default"))
        await rounds()

    async def run(self, until: Callable[[], bool]) -> None:
        """Make steps as long as requests are open, or come."""
        async with asyncio.timeout(TIMEOUT_S):
            while not until():
                if self.open:
                    await self.step()
                else:
                    await asyncio.sleep(0.001)


async def rounds() -> None:
    """Let the event loop do all that is waiting, and what that causes."""
    for _ in range(ROUNDS):
        await asyncio.sleep(0)


class Reply:
    """A response over a connection of its own: its status, and the events of its stream; any other body is one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.status = 0
        self.events: list[bytes] = []

    async def read(self, events: int | None = None) -> list[bytes]:
        """Read to the end of the body, or until there are so many events; return all."""
        if not self.status:
            head = await self.reader.readuntil(b"\r\n\r\n")
            self.status = int(head.split()[1])
            if b"content-length: " in head:
                length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.events.append(await self.reader.readexactly(length))
                return self.events
        while events is None or len(self.events) < events:
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            data = await self.reader.readexactly(size + 2)
            if not size:
                break
            self.events += EVENT.findall(data[:-2])
        return self.events

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


class Streams:
    """An ingress that listens on a port. `core` makes its steps."""

    def __init__(self, server: Server, running: uvicorn.Server) -> None:
        self.server, self._running = server, running
        self.port = int(running.servers[0].sockets[0].getsockname()[1])
        self._replies: list[Reply] = []
        self.core: SteppedCore = server.core  # type: ignore[assignment]

    async def ask(self, path: str, body: dict[str, Any], limit: int = 2**24, **headers: str) -> Reply:
        """Send a request, by a client that reads `limit` bytes ahead."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=limit)
        written = json.dumps({"model": "nano", "stream": True} | body).encode()
        lines = [
            f"POST {path} HTTP/1.1",
            f"host: 127.0.0.1:{self.port}",
            "content-type: application/json",
            f"content-length: {len(written)}",
        ]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + written)
        self._replies.append(reply := Reply(reader, writer))
        return reply

    async def close(self) -> None:
        """Close all connections of clients."""
        while self._replies:
            await self._replies.pop().close()

    def connections(self) -> list[Any]:
        """Return uvicorn's open connections."""
        return list(self._running.server_state.connections)

    async def opened(self, count: int = 1) -> None:
        """Wait until the engine has so many requests, and their streams wait for it."""
        await until_async(lambda: len(self.core.open), f"{count} requests are open", holds=lambda found: found >= count)
        await rounds()


@asynccontextmanager
async def streaming(direct: bool, core: Any = SteppedCore, **arguments: Any) -> AsyncIterator[Streams]:
    """Serve the in-process ingress, with direct streams or without, on a core that the test steps, or on what `core` makes."""
    async with served(core, ingress__direct_streams=direct, **arguments) as server:
        config = uvicorn.Config(server.app, port=0, lifespan="off", access_log=False, log_config=None, timeout_graceful_shutdown=1)
        running = uvicorn.Server(config)
        task = asyncio.create_task(running._serve())
        await until_async(lambda: running.started, "the server listens")
        try:
            streams = Streams(server, running)
            yield streams
            await streams.close()
        finally:
            running.should_exit = True
            await task
