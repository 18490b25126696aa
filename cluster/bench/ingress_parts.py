"""The processes of `cluster.bench.ingress`: a scripted engine, and the two API servers before it.

    python -m cluster.bench.ingress_parts engine FOLDER STEP_S
    python -m cluster.bench.ingress_parts bare|ours FOLDER SOCKET [key=value ...]

Both servers get the same tokens in the same steps, each over its own way: bare vLLM's API server over ZMQ sockets as vLLM's own
client has them, ours over the token channel, encrypted, as from an LLM replica. Ours is the app that an ingress builds, in uvicorn
and below the tasks that Ray Serve's replica has for each request. The sockets to the engine lie in FOLDER;
SOCKET is the number of a listening one that the process inherits.
"""

import asyncio
import contextlib
import logging
import math
import os
import pickle
import socket
import sys
import time
import types
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec
import uvicorn
import uvloop
import zmq
import zmq.asyncio

from cluster.bench.stepping import Stepping
from deployments.engine.config import TASKS, frontend_config, prepare, tune_process
from deployments.host.run import RUN
from deployments.routing.score import Work
from deployments.settings import Settings, load
from deployments.transport import wire
from deployments.transport.channel import CANCEL, HELLO, LAST, Address, on_readable
from deployments.transport.sender import Lane, Sender

REPLICA = "scripted"
TEXT = (
    "<|continue|>The product comes first: 47 * 6 = 282. Then 282 - 100 = 182.\n"
    "<|reflect|>I check: 182 + 100 = 282, and 282 / 6 = 47. That is right.\n"
    "<|explore|>Another way: 50 * 6 - 3 * 6 = 300 - 18 = 282, less 100 is 182.\n"
)
"""What the engine writes, again and again."""


class Reply:
    """An open request: the tokens it is still to get, and where they go."""

    def __init__(self, send: Callable[[list[bytes]], object], left: int) -> None:
        self.send, self.left, self.written = send, left, 0


class Engine(Stepping[Reply]):
    """Sends each request a token a step, and makes a step every `step_s` while there are requests."""

    def __init__(self, folder: str, step_s: float, tokens: list[int]) -> None:
        super().__init__(step_s)
        self._tokens = tokens
        self._encode = msgspec.msgpack.Encoder().encode
        context: zmq.Context[Any] = zmq.Context.instance()
        loop = asyncio.get_running_loop()
        self._in, self._out, self._calls = (context.socket(kind) for kind in (zmq.PULL, zmq.PUSH, zmq.PULL))
        self._in.bind(f"ipc://{folder}/in")
        self._out.set_hwm(0)
        self._out.bind(f"ipc://{folder}/out")
        self._calls.bind(f"ipc://{folder}/calls")
        self._sender = Sender(on_message=self._from_ours)
        on_readable(loop, self._in, self._from_bare)
        on_readable(loop, self._calls, self._call)

    def _from_bare(self) -> None:
        kind, *frames = self._in.recv_multipart(zmq.NOBLOCK)
        if kind == wire.ADD:
            self._add(msgspec.msgpack.decode(frames[0]), lambda parts: self._out.send_multipart(parts, zmq.NOBLOCK))
        else:
            self._abort(msgspec.msgpack.decode(frames[0]))

    def _call(self) -> None:
        """Take a handle call: of a carrier, or of one request."""
        address, frames = pickle.loads(self._calls.recv(zmq.NOBLOCK))
        lane = self._sender.open(address)
        if frames is None:
            lane.send([REPLICA.encode()], HELLO)
        else:
            self._add(msgspec.msgpack.decode(frames[0]), lane.send)

    def _from_ours(self, lane: Lane, frames: list[bytes]) -> None:
        kind, *rest = frames
        if kind == CANCEL:
            self._abort([rest[0].decode()])
        elif kind != LAST:
            self._add(msgspec.msgpack.decode(rest[1]), lane.send)

    def _add(self, request: list[Any], send: Callable[[list[bytes]], object]) -> None:
        self._open(request[0], Reply(send, request[3].get("max_tokens", 16)))

    def _abort(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._replies.pop(request_id, None)

    def _step(self) -> None:
        parts: dict[Any, list[wire.Output]] = {}
        now = time.monotonic()
        for request_id, reply in list(self._replies.items()):
            token = self._tokens[reply.written % len(self._tokens)]
            events = None if reply.written else [wire.Event(wire.QUEUED, now), wire.Event(wire.SCHEDULED, now)]
            reply.written, reply.left = reply.written + 1, reply.left - 1
            if reply.left <= 0:
                del self._replies[request_id]
            ends = None if reply.left > 0 else wire.LENGTH
            parts.setdefault(reply.send, []).append(wire.Output(request_id, [token], finish_reason=ends, events=events))
        for send, outputs in parts.items():
            send([self._encode(wire.Step(outputs=outputs, timestamp=now, weight_version="default"))])


class Replicas:
    """Stands in for `deployments.engine_client.replicas.LLMReplicas`: one replica, the scripted engine."""

    def __init__(self, folder: str) -> None:
        self._calls: zmq.Socket[Any] = zmq.Context.instance().socket(zmq.PUSH)
        self._calls.connect(f"ipc://{folder}/calls")
        self._ended: dict[str, asyncio.Future[None]] = {}
        self._assigned: dict[str, int] = {}

    def look_up(
        self, cached: Callable[[Any], Mapping[str, float] | None], coming: Callable[[Any, str], Callable[[], None] | None]
    ) -> None:
        """Do nothing: there is no choice."""

    def idle(self, kept: float) -> float:
        """Return that there is room."""
        return math.inf

    def known(self) -> list[str]:
        """Return the only replica's id."""
        return [REPLICA]

    def expect(self, request_id: str, work: Work) -> None:
        """Do nothing: there is no choice."""

    def choose(self, group: str, request_id: str) -> str:
        """Return the only replica's id."""
        return REPLICA

    def unread(self, request_id: str) -> float:
        """Return none."""
        return 0.0

    def progressed(self, request_id: str, expected_tokens: float) -> None:
        """Do nothing."""

    def assign(self, request_id: str, replica: str, group: str) -> None:
        """Count a request."""
        self._assigned[request_id] = 1

    def assigned(self, request_id: str) -> int:
        """Return whether the replica has a request."""
        return self._assigned.get(request_id, 0)

    def ended(self, request_id: str) -> None:
        """End the call of a request that has its last token."""
        if (waiting := self._ended.pop(request_id, None)) is not None:
            waiting.set_result(None)

    def lost(self, request_id: str) -> None:
        """Do nothing: the engine is not lost."""

    def left(self, request_id: str) -> None:
        """Count a request no more."""
        self._assigned.pop(request_id, None)

    async def carry(self, replica: str, address: Address) -> None:
        """Have the engine take requests over its lane."""
        self._calls.send(pickle.dumps((address, None)))
        await asyncio.Event().wait()

    async def generate(self, group: str, request_id: str, address: Address, encoded: list[bytes], client: str | None) -> None:
        """Run a request to its end."""
        waiting = self._ended[request_id] = asyncio.get_running_loop().create_future()
        self.assign(request_id, REPLICA, group)
        self._calls.send(pickle.dumps((address, encoded)))
        await waiting


async def ours(folder: str, settings: Settings) -> Any:
    """Return the app that an ingress builds, below what Serve's replica does for each request."""
    from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy

    from deployments.engine_client import carrier
    from deployments.ingress import server

    carrier.IDLE_S = 1e6  # the stand-in's call has no end
    built = await server.build(settings, cast(Any, Replicas(folder)), "127.0.0.1", None)

    async def replica(scope: Any, receive: Any, send: Any) -> None:
        """Serve a request as Ray Serve 2.60 does (`_direct_ingress_asgi`): two tasks, and a wrapped `send`."""
        proxy = ASGIDIReceiveProxy(scope, receive, asyncio.get_running_loop())
        receiving = proxy.fetch_until_disconnect_task()

        finished = False

        async def send_user_message(message: Any) -> None:
            nonlocal finished
            await send(message)
            finished = message["type"] == "http.response.body" and not message.get("more_body")

        serving = asyncio.create_task(cast(Any, built.app(scope, proxy, send_user_message)))
        await asyncio.wait([serving, receiving], return_when=asyncio.FIRST_COMPLETED)
        if not (serving.done() or finished):
            serving.cancel()
        receiving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving

    return replica


async def bare(folder: str, settings: Settings) -> Any:
    """Return vLLM's own API server, on an engine client as its own."""
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.core_client import EngineCoreClient
    from vllm.v1.executor import Executor
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    from deployments.engine.arguments import server_arguments
    from deployments.engine_client.client import used_by_async_llm

    class Client(EngineCoreClient):
        """Sends and receives as vLLM's `AsyncMPClient` does."""

        engine_ranks_managed = (0,)

        def __init__(self) -> None:
            self.resources = types.SimpleNamespace(engine_dead=False)
            context = zmq.asyncio.Context(io_threads=2)
            self._in, self._out = context.socket(zmq.PUSH), context.socket(zmq.PULL)
            self._out.set_hwm(0)
            self._in.connect(f"ipc://{folder}/in")
            self._out.connect(f"ipc://{folder}/out")
            self._encoder, self._decoder = MsgpackEncoder(), MsgpackDecoder(EngineCoreOutputs)
            self._outputs: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()
            self._receiving = asyncio.create_task(self._receive())

        async def _receive(self) -> None:
            while True:
                self._outputs.put_nowait(self._decoder.decode(await self._out.recv_multipart(copy=False)))

        async def get_output_async(self) -> EngineCoreOutputs:
            return await self._outputs.get()

        async def get_supported_tasks_async(self) -> tuple[Any, ...]:
            return TASKS

        async def add_request_async(self, request: EngineCoreRequest) -> None:
            await self._in.send_multipart([wire.ADD, *self._encoder.encode(request)], copy=False)

        async def abort_requests_async(self, request_ids: list[str]) -> None:
            if request_ids:
                await self._in.send_multipart([wire.CANCEL, msgspec.msgpack.encode(list(request_ids))])

        def shutdown(self, timeout: float | None = None) -> None: ...

    arguments = server_arguments(settings)
    config = frontend_config(arguments)
    with used_by_async_llm(Client()):
        engine = AsyncLLM(config, Executor, log_stats=not arguments.disable_log_stats)
    app = build_app(arguments, TASKS, config.model_config)
    await init_app_state(engine, app.state, arguments, TASKS)
    app.state.server = types.SimpleNamespace()
    tune_process()  # vLLM's own launcher does as much
    return app


async def serve(kind: str, folder: str, listening: int, words: list[str]) -> None:
    """Serve one of the two apps on an open socket."""
    os.environ.setdefault(RUN, "bench")
    prepare({"VLLM_TARGET_DEVICE": "cpu"})
    settings = load(dict(word.split("=", 1) for word in words))
    app = await (ours if kind == "ours" else bare)(folder, settings)
    logging.getLogger("uvicorn.error").level = logging.CRITICAL
    config = uvicorn.Config(lambda: app, factory=True, lifespan="off", access_log=False, log_level=None, log_config=None)
    await uvicorn.Server(config).serve([socket.socket(fileno=listening)])


async def engine(folder: str, step_s: float) -> None:
    """Run the scripted engine until it is killed."""
    from tokenizers import Tokenizer

    settings = load({"preset": "nano-cpu"})
    tokens = Tokenizer.from_file(f"{settings.model}/tokenizer.json").encode(TEXT).ids
    _running = Engine(folder, step_s, tokens)
    await asyncio.Event().wait()


def main() -> None:
    """Run the part that the command line names."""
    kind, folder, number, *words = sys.argv[1:]
    uvloop.run(engine(folder, float(number)) if kind == "engine" else serve(kind, folder, int(number), words))


if __name__ == "__main__":
    main()
