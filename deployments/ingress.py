"""The Ingress deployment: vLLM's own OpenAI server, on an AsyncLLM whose engine is the set of LLM replicas."""

import asyncio
import os
import types
from typing import TYPE_CHECKING

import ray
from fastapi import FastAPI
from fastapi.responses import JSONResponse, RedirectResponse
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle

from deployments.bridge import UIBridge
from deployments.phases import Phases
from deployments.settings import Settings

if TYPE_CHECKING:
    from deployments.channel import Address

READY_S = 2.0


class Ingress:
    """The application's front door. It is up before any LLM replica is, and keeps requests until one can take them."""

    def __init__(self, settings: Settings, llm: DeploymentHandle, ui: DeploymentHandle | None) -> None:
        self._settings = settings
        self._llm = llm
        self._ui = ui

    async def __serve_build_asgi_app__(self) -> FastAPI:
        from deployments.engine import prepare

        phases = Phases("ingress")
        prepare({"VLLM_TARGET_DEVICE": "cpu"})  # whatever vLLM's build and this host's devices, nothing here runs on one
        with phases.reported():
            with phases("import vllm"):
                await asyncio.to_thread(_import_vllm)
            with phases("API server"):
                return await self._build()

    async def _build(self) -> FastAPI:
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.executor import Executor

        from deployments import chat
        from deployments.client import ServeEngineClient, used_by_async_llm
        from deployments.engine import TASKS, frontend_config, server_arguments, tune_process, writes_coat
        from deployments.replies import CoatServing
        from deployments.routing import LOAD

        arguments = await asyncio.to_thread(server_arguments, self._settings)
        config = await asyncio.to_thread(frontend_config, arguments)
        coat = await asyncio.to_thread(writes_coat, arguments, config)
        self._client = ServeEngineClient(self._generate, ray.util.get_node_ip_address(), LOAD.ended)
        with used_by_async_llm(self._client):
            self._engine = AsyncLLM(
                config, Executor, log_stats=not arguments.disable_log_stats, log_requests=arguments.enable_log_requests
            )
        arguments.middleware.append("deployments.intake.Intake")
        app = build_app(arguments, TASKS, config.model_config)
        await init_app_state(self._engine, app.state, arguments, TASKS)
        chat.mount(app)
        if coat:
            CoatServing.adopt(app.state.openai_serving_chat, self._settings.coat)
        app.state.server = types.SimpleNamespace()  # vLLM's own launcher puts its uvicorn server here
        app.get("/ready")(self.ready)
        if self._ui is not None:
            app.mount("/ui", UIBridge(self._ui))
            app.get("/", include_in_schema=False)(lambda: RedirectResponse("/ui/"))
        tune_process()
        # What `make serve` starts is under SCHED_BATCH (see deployments.launch). The ingress is what clients wait for: it may
        # push others aside.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        return app

    async def _generate(self, group: str, request_id: str, address: "Address", encoded: list[bytes]) -> None:
        await self._llm.generate.remote(group, request_id, address, encoded)

    async def ready(self) -> JSONResponse:
        """Whether a request would be answered now: 200 with the state of an LLM replica, or 503. Both with this ingress's."""
        mine = {
            "id": serve.get_replica_context().replica_id.unique_id,
            "open": len(self._client.open_requests),
            "states": self._engine.get_num_unfinished_requests(),
        }
        try:
            replica = await asyncio.wait_for(self._llm.state.remote(), READY_S)
        except (TimeoutError, RayActorError):
            return JSONResponse({"ready": False, "reason": "no LLM replica is up", "ingress": mine}, 503)
        return JSONResponse({"ready": True, "replica": replica, "ingress": mine})


def _import_vllm() -> None:
    import vllm.entrypoints.launchers.api_server.app_state
    import vllm.v1.engine.async_llm  # noqa: F401
