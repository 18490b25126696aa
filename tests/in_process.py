"""The ingress without Ray: its real app (vLLM's server, our middlewares and checks) in this process, on a scripted engine core."""

import asyncio
import types
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest import mock

import httpx
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.core_client import EngineCoreClient

from deployments import client, engine, intake
from deployments.ingress import Ingress
from deployments.settings import load


class Core(EngineCoreClient):
    """Answers every request with the same tokens, and keeps what it was sent."""

    engine_ranks_managed = (0,)

    def __init__(self, *_: Any) -> None:
        self.resources = types.SimpleNamespace(engine_dead=False)
        self.requests: list[EngineCoreRequest] = []
        self._outputs: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()

    async def get_supported_tasks_async(self) -> tuple[Any, ...]:
        return engine.TASKS

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        intake.prepared()
        self.requests.append(request)
        output = EngineCoreOutput(request.request_id, [100, 101], finish_reason=FinishReason.LENGTH)
        self._outputs.put_nowait(EngineCoreOutputs(outputs=[output]))

    async def get_output_async(self) -> EngineCoreOutputs:
        return await self._outputs.get()

    async def abort_requests_async(self, request_ids: list[str]) -> None: ...

    def shutdown(self, timeout: float | None = None) -> None: ...


class Server:
    """An ingress's app with an HTTP client for it, and the core that gets its requests."""

    def __init__(self, ingress: Ingress, app: Any) -> None:
        self.app = app
        self.core: Core = ingress._client  # type: ignore[assignment]
        self.engine = ingress._engine
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://test")

    async def chat(self, *messages: dict[str, Any], **fields: Any) -> httpx.Response:
        """Ask for a chat completion; a message may be its content, said by the user."""
        return await self.http.post("/v1/chat/completions", json={"model": "nano", "messages": list(messages)} | fields)


@asynccontextmanager
async def served(**arguments: Any) -> AsyncIterator[Server]:
    """Make the app that the ingress makes for these settings, on a scripted core."""
    settings = load({"preset": "nano-cpu"} | {name.replace("__", "."): value for name, value in arguments.items()})
    engine.prepare({"VLLM_TARGET_DEVICE": "cpu"})
    ingress = Ingress(settings, mock.MagicMock(), None, None)
    with mock.patch.object(client, "ServeEngineClient", Core), mock.patch.object(engine, "tune_process"):
        server = Server(ingress, await ingress._build(settings.model))
    try:
        yield server
    finally:
        await server.http.aclose()
        server.engine.shutdown()
