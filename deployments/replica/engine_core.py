"""A replica's view of its engine core, which is a process of its own.

It speaks vLLM's protocol without vLLM (`deployments.transport.wire`).
"""

import asyncio
import contextlib
import itertools
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import msgspec
import psutil
import zmq
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from deployments.engine.process import BY_POSITION, CONFIGURED, IMPORTED, kill, kill_all, preloaded, started_by
from deployments.errors import EngineLostError
from deployments.host.cores import ENGINE_MODULE
from deployments.host.folders import TemporaryFolder
from deployments.host.forked import Forked
from deployments.settings import Settings
from deployments.transport import wire
from deployments.transport.cache_events import EngineBatch
from deployments.transport.channel import on_readable

READY_S = 600
"""How long an engine may take from its configuration to its first request: vLLM's own VLLM_ENGINE_READY_TIMEOUT_S."""
LOOK_MS = 1000
"""How often an engine that starts is searched for the processes that it has started: its workers, if it has several GPUs."""
GAUGES_S = 2.0
"""How long a scrape waits for an engine that is in the middle of a step."""


class EngineProxy:
    """An engine core. Make and start it in a thread; `attach` begins its use on the event loop."""

    def __init__(self, cpu: bool) -> None:
        """Start the process with this process's environment. It then waits for its settings."""
        self._folder = TemporaryFolder("satori-engine-")
        self._context = zmq.Context()
        self._handshake, handshake = self._bind(zmq.ROUTER, "handshake")
        self._input, inputs = self._bind(zmq.ROUTER, "input")
        self._output, outputs = self._bind(zmq.PULL, "output")
        self._cache, self._cache_address = self._bind(zmq.PULL, "cache")
        self._addresses = {"handshake": handshake, "inputs": [inputs], "outputs": [outputs]}
        self._engine = b""
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(wire.Step)
        self._cache_decoder = msgspec.msgpack.Decoder(EngineBatch)
        self._steps: asyncio.Queue[tuple[wire.Step, list[bytes]] | Exception] = asyncio.Queue()
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pipe, pipe = os.pipe()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | (preloaded() if cpu else {})
        source, stdin = os.pipe()
        self._process = _start(environment, source, pipe)
        self._stdin = os.fdopen(stdin, "wb")
        os.close(source)
        os.close(pipe)
        self._workers: set[psutil.Process] = set()
        self.seeded_by_position = False
        """Whether a seeded request's tokens depend on nothing but its seed and what is before them."""

    def _bind(self, kind: int, name: str) -> tuple[zmq.Socket[Any], str]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        address = f"ipc://{self._folder.name}/{name}"
        socket.bind(address)
        return socket, address

    @property
    def pid(self) -> int:
        """The number of the engine's process."""
        return self._process.pid

    def imported(self) -> None:
        """Wait until the process has imported vLLM. Raises EngineLostError if it has ended."""
        self._expect(IMPORTED)

    def configure(self, settings: Settings) -> None:
        """Send it the settings, for a model on this host, and wait until it has made vLLM's configuration from them."""
        with contextlib.suppress(BrokenPipeError):  # `_expect` raises the reason
            cache = self._cache_address if settings.routing.cache_events else None
            pickle.dump((settings, self._addresses.pop("handshake"), cache), self._stdin)
            self._stdin.flush()
        self.seeded_by_position = self._expect(CONFIGURED, BY_POSITION) == BY_POSITION

    def _expect(self, *words: bytes) -> bytes:
        if (word := os.read(self._pipe, 1)) not in words:
            self._raise_failure()
        return word

    def _raise_failure(self) -> NoReturn:
        """Raise the error with which the process has ended, as far as it could report it."""
        with open(self._pipe, closefd=False, errors="replace") as pipe:
            failure = pipe.read()
        raise EngineLostError(failure or f"the engine's process ended during its start{_with(self._process.wait())}")

    def load(self) -> None:
        """Wait until it has loaded the model and takes requests."""
        self._engine, _ = self._next_message(self._handshake)
        metadata = {"addresses": self._addresses, "parallel_config": {}}
        self._handshake.send_multipart((self._engine, self._encoder.encode(metadata)))
        self._next_message(self._handshake)
        self._next_message(self._input)
        self._handshake.close(linger=0)

    def _next_message(self, socket: zmq.Socket[Any]) -> list[bytes]:
        """Return the next message. Raises EngineLostError when the process ends, which closes its pipe, or takes too long."""
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._pipe, zmq.POLLIN)
        began = time.monotonic()
        events: dict[Any, int] = {}
        while not events and time.monotonic() - began < READY_S:
            events = dict(poller.poll(LOOK_MS))
            self._workers.update(started_by(self._process.pid))
        if socket in events:
            return socket.recv_multipart()
        if events:
            os.read(self._pipe, 1)
            self._raise_failure()
        raise EngineLostError(f"the engine did not start in {READY_S} s")

    def attach(self, on_cache: Callable[[EngineBatch], None] = lambda batch: None) -> None:
        """Receive the engine's steps, and notice its end, on this event loop. `on_cache` gets what changes in its KV cache."""
        loop = self._loop = asyncio.get_running_loop()
        on_readable(loop, self._output, self._receive)
        on_readable(loop, self._cache, lambda: on_cache(self._cache_decoder.decode(self._cache.recv(zmq.NOBLOCK))))
        threading.Thread(target=self._wait, args=(loop,), daemon=True).start()

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        status = self._process.wait()
        kill_all(self._workers)
        with contextlib.suppress(RuntimeError):  # the loop has ended, too
            loop.call_soon_threadsafe(self._end, f"its process ended{_with(status)}")

    def _end(self, why: str) -> None:
        error = EngineLostError(f"the engine is dead: {why}")
        self._steps.put_nowait(error)
        for call in self._calls.values():
            if not call.done():
                call.set_exception(error)

    def _receive(self) -> None:
        main, *rest = self._output.recv_multipart(zmq.NOBLOCK)
        if main == wire.DEAD:
            self._end("it reported its end")
            return
        step = self._decoder.decode(main)
        if step.utility_output is not None:
            number, failure, result = step.utility_output
            if (call := self._calls.get(number)) is not None and not call.done():
                if failure is not None:
                    call.set_exception(EngineLostError(failure))
                else:
                    call.set_result(result[1])
        elif step.outputs or step.scheduler_stats:
            self._steps.put_nowait((step, rest))

    async def step(self) -> tuple[wire.Step, list[bytes]]:
        """Return the next step, and the further frames that it refers to. Raises EngineLostError when the engine has died."""
        step = await self._steps.get()
        if isinstance(step, Exception):
            raise step
        return step

    def add(self, request: wire.Request, rest: list[bytes]) -> None:
        """Give the engine a request, and the further frames that it refers to."""
        self._send(wire.ADD, self._encoder.encode(request), *rest)

    def abort(self, request_ids: list[str]) -> None:
        """Abort requests in the engine."""
        self._send(wire.CANCEL, self._encoder.encode(request_ids))

    async def call(self, method: str, *arguments: Any) -> Any:
        """Return the result of an engine's method, which it runs between two steps. Raises EngineLostError when that fails."""
        number = next(self._numbers)
        self._calls[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(wire.UTILITY, self._encoder.encode((0, number, method, arguments)))
            return await self._calls[number]
        finally:
            del self._calls[number]

    def _send(self, *frames: bytes) -> None:
        """Queue a message; it goes nowhere when the engine has ended."""
        self._input.send_multipart((self._engine, *frames), zmq.NOBLOCK)

    def kill(self) -> None:
        """Kill the engine's processes: one that hangs would not end by itself.

        Also those that it left behind when something else had killed it: a worker keeps its GPU's memory.
        """
        if not (self._process.ended if isinstance(self._process, Forked) else self._process.returncode is not None):
            kill(self._process.pid)
        kill_all(self._workers)

    def close(self) -> None:
        """Kill the engine, which has nothing left to do: a regular shutdown would take it seconds."""
        self.kill()
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        self._process.wait()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._output.fileno())
            self._loop.remove_reader(self._cache.fileno())
        self._context.destroy(linger=0)
        os.close(self._pipe)
        self._folder.cleanup()


def _start(environment: dict[str, str], stdin: int, pipe: int) -> subprocess.Popen[bytes] | Forked:
    """Start the process of an engine with its standard input and its pipe, two file descriptors. It is forked where it can be."""
    try:
        return Forked(["-m", ENGINE_MODULE, str(pipe)], environment, {0: stdin, 1: 1, 2: 2, pipe: pipe})
    except OSError:
        return subprocess.Popen([sys.executable, "-m", ENGINE_MODULE, str(pipe)], stdin=stdin, pass_fds=(pipe,), env=environment)


def _with(status: int | None) -> str:
    """Return words for a status, where it is known: nobody knows that of a forked process."""
    return "" if status is None else f" with status {status}"


class Gauges(Collector):
    """vLLM's own gauges of an engine, fetched from it at each scrape. If it does not answer in time, the previous ones stay."""

    def __init__(self, core: EngineProxy, rank: Callable[[], int], latest: Callable[[], dict[str, Any] | None]) -> None:
        """Set up the gauges of `core`; `rank` and `latest` return its rank and its latest statistics."""
        self._core, self._rank, self._latest = core, rank, latest
        self._loop = asyncio.get_running_loop()
        self._latest_metrics: list[Metric] = []

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the metrics are only known at a scrape."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Return the metrics as they are now. Call it in another thread than the event loop's."""
        call = asyncio.run_coroutine_threadsafe(self._core.call("satori_gauges", self._rank(), self._latest()), self._loop)
        try:
            self._latest_metrics = list(text_string_to_metric_families(call.result(GAUGES_S)))
        except TimeoutError:
            call.cancel()
        except EngineLostError:
            self._latest_metrics = []
        return self._latest_metrics
