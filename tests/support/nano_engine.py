"""The real engine with the nano model, in this process: for an ingress without Ray (`tests.support.in_process`)."""

import asyncio
import os
import queue
import threading
import types
from collections.abc import Callable
from typing import Any

from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.core_client import EngineCoreClient, InprocClient
from vllm.v1.executor import Executor

from deployments.engine import grammar_budget
from deployments.engine.arguments import server_arguments
from deployments.engine.config import TASKS, engine_config, prepare
from deployments.engine_client.client import Hooks
from deployments.settings import load


class NanoEngine(EngineCoreClient):
    """Stands in for the engine client: one engine core, stepped by a thread of its own. `settings` are those of an application."""

    engine_ranks_managed = (0,)

    def __init__(self, *_: Any, hooks: Hooks, **__: Any) -> None:
        self.resources = types.SimpleNamespace(engine_dead=False)
        self.pace_s = 0.0
        self.settings = load({"preset": "nano-cpu"})
        self._hooks = hooks
        self._loop = asyncio.get_running_loop()
        self._outputs: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()
        self._commands: queue.Queue[Callable[[InprocClient], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    async def get_supported_tasks_async(self) -> tuple[Any, ...]:
        return TASKS

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        self._hooks.prepared()
        self._commands.put(lambda engine: engine.add_request(request))

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        self._commands.put(lambda engine: engine.abort_requests(request_ids))

    async def get_output_async(self) -> EngineCoreOutputs:
        return await self._outputs.get()

    def shutdown(self, timeout: float | None = None) -> None:
        self._commands.put(None)
        self._thread.join()

    def _run(self) -> None:
        os.environ.update(self.settings.llm.env)
        prepare({})
        grammar_budget.install()
        config = engine_config(server_arguments(self.settings))
        engine = InprocClient(config, Executor.get_class(config), log_stats=False)
        scheduler = engine.engine_core.scheduler
        while True:
            try:
                command = self._commands.get(block=not scheduler.has_requests())
            except queue.Empty:
                outputs = engine.get_output()
                self._loop.call_soon_threadsafe(self._outputs.put_nowait, outputs)
                continue
            if command is None:
                engine.shutdown()
                return
            command(engine)
