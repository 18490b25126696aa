"""The Ingress deployment: vLLM's own OpenAI server, on an AsyncLLM whose engine is the set of LLM replicas."""

import asyncio
import contextlib
import os
import types
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import ray
from fastapi import FastAPI
from fastapi.responses import JSONResponse, RedirectResponse
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle
from starlette.middleware import Middleware

from deployments import exposition, logs, metrics
from deployments.bridge import UIBridge
from deployments.draining import RUN, Draining, draining
from deployments.errors import SatoriError
from deployments.garbage import no_collecting
from deployments.hardware import lacking
from deployments.keys import open_store
from deployments.measuring import Measuring
from deployments.phases import Phases
from deployments.settings import Settings, is_path, port_range
from deployments.status import Status

if TYPE_CHECKING:
    from deployments.channel import Address

logger = logs.logger("ingress")
READY_S = 2.0
# From the inside out: the last sees a request first, before any of vLLM's own.
MIDDLEWARE = [
    f"deployments.{name}"
    for name in (
        "intake.Intake",
        "deadline.Deadline",
        "keepalive.KeepAlive",
        "draining.Draining",
        "access.Access",
        "overload.RetryAfter",
        "measuring.Measuring",
    )
]


class Ingress:
    """The application's front door. It is up before any LLM replica is, and keeps requests until one can take them."""

    def __init__(self, settings: Settings, llm: DeploymentHandle, ui: DeploymentHandle | None, api_keys: str | None) -> None:
        """Take what is bound; `api_keys` is SATORI_API_KEYS as the application's builder found it (see `deployments.keys`)."""
        self._settings = settings
        self._llm = llm
        self._ui = ui
        self._api_keys = api_keys
        self._replicas = exposition.Replicas()
        self._status = Status(llm, self._replicas, settings.autoscaling.enabled)

    async def __serve_build_asgi_app__(self) -> FastAPI:
        from deployments.engine import download, prepare, sparing_logging

        phases = Phases("ingress")
        if self._settings.measuring.enabled:
            logs.write_requests("Ingress")
        exposition.show(metrics.INGRESS, self._settings)
        if lack := await asyncio.to_thread(self._lacking):
            logger.warning("%s", lack)
        prepare({"VLLM_TARGET_DEVICE": "cpu"})  # whatever vLLM's build and this host's devices, nothing here runs on one
        with phases.reported():
            with phases("import vllm"), sparing_logging(), no_collecting():
                await asyncio.to_thread(_import_vllm)
            settings = self._settings
            if not is_path(settings.model):
                with phases("download"):
                    settings = await asyncio.to_thread(download, settings, phases.tell, weights=False)
            with phases("API server"):
                app = await self._build(settings.model)
        phases.done("start")
        if self._settings.measuring.enabled and self._settings.tracing.otlp_endpoint is not None:
            from deployments.tracing import Tracer

            Measuring.tracer = Tracer(self._settings.tracing, serve.get_replica_context().replica_id.unique_id)
        metrics.ONGOING.labels().set_function(lambda: Draining.active)
        metrics.UNASSIGNED.labels().set_function(lambda: self._client.unassigned)
        self._replicas.watch()
        self._lag = asyncio.create_task(exposition.watch_loop())
        return app

    async def _build(self, model: str) -> FastAPI:
        """Return the API server of a model, whose files are in this directory."""
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app
        from vllm.v1.executor import Executor

        from deployments import access, answers, chat, chunks, plain_text, routes
        from deployments.body import BodyLimit
        from deployments.client import ServeEngineClient, used_by_async_llm
        from deployments.engine import TASKS, frontend_config, server_arguments, tune_process, writes_coat
        from deployments.measuring import Writer
        from deployments.overload import BoundedLLM, RetryAfter
        from deployments.replies import CoatServing
        from deployments.vllm_metrics import FrontendMetrics

        chunks.make_without_check()
        arguments = await asyncio.to_thread(server_arguments, self._settings.model_copy(update={"model": model}))
        config = await asyncio.to_thread(frontend_config, arguments)
        coat = await asyncio.to_thread(writes_coat, arguments, config)
        llm = self._settings.llm
        self._client = ServeEngineClient(
            LLMReplicas(self._llm, carries=llm.max_ongoing_requests is None),
            channel_host(),
            llm.wait_s,
            self._refuse,
            llm.beat_s,
            port_range(self._settings.ports.tokens),
        )
        with used_by_async_llm(self._client):
            self._engine = BoundedLLM(
                config,
                Executor,
                log_stats=not arguments.disable_log_stats,
                log_requests=arguments.enable_log_requests,
                stat_loggers=None if arguments.disable_log_stats else [FrontendMetrics],
            )
        if self._settings.measuring.enabled:
            Measuring.writer = Writer(self._settings.served_model_name, self._settings.slo)
        RetryAfter.pace_s = lambda _: self._client.pace_s
        access.install(open_store(self._settings.access.keys, self._api_keys))
        arguments.middleware += MIDDLEWARE
        app = build_app(arguments, TASKS, config.model_config)
        routes.keep_allowed(app)
        app.user_middleware += [Middleware(BodyLimit, settings=self._settings.http), Middleware(answers.Misread)]  # the innermost
        plain_text.install(self._engine.renderer)
        answers.install(app)
        await init_app_state(self._engine, app.state, arguments, TASKS)
        answers.check_early(self._engine, app.state.openai_serving_responses)
        chat.mount(app)
        if coat:
            CoatServing.adopt(app.state.openai_serving_chat, self._settings.coat)
        app.state.server = types.SimpleNamespace()  # vLLM's own launcher puts its uvicorn server here
        app.get("/ready")(self.ready)
        app.get("/status")(self.status)
        app.get("/metrics/targets")(self.targets)
        app.router.routes.insert(0, app.router.routes.pop())  # before vLLM's mount of /metrics
        if self._ui is not None:
            app.mount("/ui", UIBridge(self._ui))
            app.get("/", include_in_schema=False)(lambda: RedirectResponse("/ui/"))
        app.middleware_stack = None  # built already, by vLLM; again at the first request, with what was added since
        tune_process()
        # What `make serve` starts is under SCHED_BATCH (see deployments.launch). The ingress is what clients wait for: it may
        # push others aside.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        return app

    async def status(self) -> dict[str, Any]:
        """Which LLM replicas there are, their state and load, what is waited for, and the autoscaler's last decisions."""
        return await self._status.tell(self._client.unassigned)

    async def targets(self) -> list[dict[str, Any]]:
        """Return all processes that have metrics, for Prometheus' `http_sd_configs`."""
        return await asyncio.to_thread(self._replicas.targets)

    def _refuse(self, request_id: str, error: SatoriError) -> None:
        """Let vLLM's server answer a request with this error."""
        if (state := self._engine.output_processor.request_states.get(request_id)) is not None and state.queue is not None:
            from vllm.exceptions import GracefulHTTPError

            state.queue.put(GracefulHTTPError(f"{error.code}: {error}", HTTPStatus(error.status)))

    async def ready(self) -> JSONResponse:
        """Whether a request would be answered now: 200 with the state of an LLM replica, or 503. Both with this ingress's."""
        mine = {
            "id": serve.get_replica_context().replica_id.unique_id,
            "open": len(self._client.open_requests),
            "carriers": self._client.carriers,
            "states": self._engine.get_num_unfinished_requests(),
            "requests": Draining.active,
        }
        if draining():
            return JSONResponse({"ready": False, "reason": "draining", "ingress": mine}, 503)
        if self._status.running():
            with contextlib.suppress(TimeoutError, RayActorError):
                replica = await asyncio.wait_for(self._llm.state.remote(), READY_S)
                return JSONResponse({"ready": True, "replica": replica, "ingress": mine})
        reason = await self._status.waits_for()
        if lack := await asyncio.to_thread(self._lacking):
            reason += f"; {lack}"
        return JSONResponse({"ready": False, "reason": reason, "asleep": self._status.asleep(), "ingress": mine}, 503)

    def _lacking(self) -> str | None:
        return lacking(self._settings.llm, ray.cluster_resources())


class LLMReplicas:
    """The LLM replicas, through their Serve handle and where the router put requests; see `deployments.client.Replicas`.

    `carries` tells whether requests may be carried. To Serve what is carried is one call, whose bound it would not keep.
    """

    def __init__(self, llm: DeploymentHandle, carries: bool) -> None:
        from deployments.placement import PLACEMENT

        self._llm = llm
        self._carries = carries
        self._placement = PLACEMENT
        self._handles: dict[str, DeploymentHandle] = {}
        self.assigned, self.ended, self.lost, self.left = PLACEMENT.assigned, PLACEMENT.ended, PLACEMENT.lost, PLACEMENT.left

    async def generate(self, group: str, request_id: str, address: "Address", encoded: list[bytes], client: str | None) -> None:
        """Run a request on a replica to its end."""
        await self._handle("generate").remote(group, request_id, address, encoded, client)

    async def carry(self, replica: str, address: "Address") -> None:
        """Have a replica take requests over its lane."""
        await self._handle("carry").remote(replica, address)

    def choose(self, group: str) -> str | None:
        """Return the id of the replica that should get a request, None where none is known or requests are not carried."""
        chosen = self._placement.choose(group, list(self._placement.known.values())) if self._carries else None
        return None if chosen is None else chosen.replica_id.unique_id

    def assign(self, request_id: str, replica: str, group: str) -> None:
        """Count a request on a replica, by its id."""
        self._placement.assign(request_id, self._placement.known[replica].replica_id, group)

    def _handle(self, method: str) -> DeploymentHandle:
        if method not in self._handles:  # not before: making it starts the handle's router
            self._handles[method] = self._llm.options(method_name=method, request_serialization="pickle")
        return self._handles[method]


def channel_host() -> str:
    """Return the address to which replicas send tokens: loopback where `make serve` started Ray, for this machine alone, else Ray's
    own of this node.
    """
    return "127.0.0.1" if RUN in os.environ else ray.util.get_node_ip_address()


def _import_vllm() -> None:
    import vllm.entrypoints.launchers.api_server.app_state
    import vllm.v1.engine.async_llm  # noqa: F401
