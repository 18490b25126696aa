"""The ingress without Ray: its real app (vLLM's server, our middlewares and checks) in this process, on a scripted engine core."""

import asyncio
import math
import types
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from unittest import mock

import httpx
from vllm.renderers.base import BaseRenderer
from vllm.renderers.registry import RENDERER_REGISTRY
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.core_client import EngineCoreClient

from deployments.engine import config
from deployments.engine_client.client import Hooks
from deployments.errors import SatoriError
from deployments.ingress import server as server_module
from deployments.ingress.deployment import Ingress
from deployments.settings import load


class Core(EngineCoreClient):
    """Stands in for the engine client: answers every request with the same `tokens`, and keeps what it was sent.

    While `holds` is set, requests wait for `answer` or `fail`. `clients` are those whose the requests are.
    """

    engine_ranks_managed = (0,)

    def __init__(self, *_: Any, hooks: Hooks, **__: Any) -> None:
        self.resources = types.SimpleNamespace(engine_dead=False)
        self.pace_s = 0.0
        self.holds = False
        self.tokens, self.reason = [100, 101], FinishReason.LENGTH
        self.requests: list[EngineCoreRequest] = []
        self.clients: list[str] = []
        self._hooks = hooks
        self._outputs: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()

    def idle(self, kept: float) -> float:
        return math.inf

    async def get_supported_tasks_async(self) -> tuple[Any, ...]:
        return config.TASKS

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        self._hooks.prepared()
        self.requests.append(request)
        self.clients.append(self._hooks.client_name())
        if not self.holds:
            self.answer(request)

    def answer(self, request: EngineCoreRequest) -> None:
        """End a request with its tokens, two in each step."""
        tokens = self.tokens
        self._hooks.charge(self.clients[self.requests.index(request)], len(tokens))
        for at in range(0, len(tokens) - 2, 2):
            output = EngineCoreOutput(request.request_id, tokens[at : at + 2])
            self._outputs.put_nowait(EngineCoreOutputs(outputs=[output]))
        self._end(request, tokens[-2 + len(tokens) % 2 :], self.reason)

    def fail(self, request: EngineCoreRequest, error: SatoriError) -> None:
        """End a request with an error."""
        self._hooks.refuse(request.request_id, error)
        self._end(request, [], FinishReason.ERROR)

    def _end(self, request: EngineCoreRequest, tokens: list[int], reason: FinishReason) -> None:
        output = EngineCoreOutput(request.request_id, tokens, finish_reason=reason)
        self._outputs.put_nowait(EngineCoreOutputs(outputs=[output]))

    async def get_output_async(self) -> EngineCoreOutputs:
        return await self._outputs.get()

    async def abort_requests_async(self, request_ids: list[str]) -> None: ...

    def shutdown(self, timeout: float | None = None) -> None: ...


class Server:
    """An ingress's app with an HTTP client for it, and the core that gets its requests."""

    def __init__(self, ingress: Ingress, app: Any) -> None:
        self.app = app
        self.core: Core = ingress._server.client  # type: ignore[assignment]
        self.engine = ingress._server.engine
        self.ongoing = ingress._server.ongoing
        self.responses = ingress._server.responses
        self.batches = ingress._server.batches
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://localhost")

    async def chat(self, *messages: dict[str, Any], **fields: Any) -> httpx.Response:
        """Ask for a chat completion; a message may be its content, said by the user."""
        return await self.http.post("/v1/chat/completions", json={"model": "nano", "messages": list(messages)} | fields)


@contextmanager
def vllm_restored() -> Iterator[None]:
    """Undo afterwards what a server does to vLLM in its process: the renderer.

    Chunks stay without their check (`make_chunks_without_check`): no client sees a difference.
    """
    with (
        mock.patch.dict(RENDERER_REGISTRY.renderers),
        mock.patch.object(BaseRenderer, "_tokenize_prompt", BaseRenderer._tokenize_prompt),
    ):
        yield


@asynccontextmanager
async def served(core: Any = Core, **arguments: Any) -> AsyncIterator[Server]:
    """Make the app that the ingress makes for these settings, on a scripted core, or on what `core` makes."""
    settings = load({"preset": "nano-cpu"} | {name.replace("__", "."): value for name, value in arguments.items()})
    config.prepare({"VLLM_TARGET_DEVICE": "cpu"})
    ingress = Ingress(settings, mock.MagicMock(), None, None)
    with (
        vllm_restored(),
        mock.patch.object(server_module, "ServeEngineClient", core),
        mock.patch.object(server_module, "tune_process"),
    ):
        server = Server(ingress, await ingress._build(settings))
        try:
            yield server
        finally:
            await server.http.aclose()
            if (chains := getattr(server.app.state.openai_serving_chat, "chains", None)) is not None:
                chains.comparer.close()
            server.app.state.grammars.close()
            server.engine.shutdown()
