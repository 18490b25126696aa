"""The Ingress deployment: vLLM's own OpenAI server, on an AsyncLLM whose engine is the set of LLM replicas."""

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any

import ray
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle

from deployments.access.keys import open_store
from deployments.host.environment import cut_replies, haproxy_processes
from deployments.host.garbage import no_collecting
from deployments.host.gpus import lacking
from deployments.host.run import RUN, draining
from deployments.ingress.status import Status
from deployments.observability import discovery, exposition, logs, metrics
from deployments.observability.startup import Phases
from deployments.settings import Settings, is_path
from deployments.ui.bridge import UIBridge

if TYPE_CHECKING:  # it imports vLLM
    from deployments.ingress.server import Server

logger = logs.logger("ingress")
READY_S = 2.0


class Ingress:
    """The application's front door. It is up before any LLM replica, and holds requests until a replica can take them."""

    _server: "Server"

    def __init__(self, settings: Settings, llm: DeploymentHandle, ui: DeploymentHandle | None, api_keys: str | None) -> None:
        """Store the arguments; `api_keys` is SATORI_API_KEYS as the application's builder found it (`deployments.access.keys`)."""
        self._settings = settings
        self._llm = llm
        self._ui = ui
        self._api_keys = api_keys
        self._replicas = discovery.Replicas()
        self._status = Status(llm, self._replicas, settings.autoscaling.enabled)

    async def __serve_build_asgi_app__(self) -> FastAPI:
        from deployments.engine.config import prepare, sparing_logging

        phases = Phases("ingress")
        if self._settings.measuring.enabled:
            logs.write_requests("Ingress")
        exposition.show(metrics.INGRESS, self._settings)
        if warning := cut_replies(self._settings.ingress.graceful_shutdown_timeout_s):
            logger.warning("%s", warning)
        if missing := await asyncio.to_thread(self._missing_gpus):
            logger.warning("%s", missing)
        prepare({"VLLM_TARGET_DEVICE": "cpu"})  # nothing here runs on a device, whatever vLLM's build and this host have
        with phases.printing_errors():
            with phases("import vllm"), sparing_logging(), no_collecting():
                await asyncio.to_thread(_import_server)
            settings = self._settings
            if not is_path(settings.model):
                with phases("download"):
                    settings = await asyncio.to_thread(self._download, phases)
            with phases("API server"):
                app = await self._build(settings)
        phases.done("start")
        metrics.ONGOING.labels().set_function(lambda: self._server.ongoing.count)
        metrics.UNASSIGNED.labels().set_function(lambda: self._server.client.unassigned)
        metrics.STRAYS.labels().set_function(lambda: self._server.strays())
        node = ray.get_runtime_context().get_node_id()
        metrics.HAPROXIES.labels().set_function(lambda: haproxy_processes(node))
        self._replicas.watch()
        exposition.count_tasks()
        self._lag = asyncio.create_task(exposition.watch_loop())
        return app

    def _download(self, phases: Phases) -> Settings:
        from deployments.weights.download import download
        from deployments.weights.peers import from_cluster

        return download(self._settings, phases.report, weights=False, fetch=from_cluster)

    async def _build(self, settings: Settings) -> FastAPI:
        """Return the app for a model whose files are in the directory `settings.model`."""
        from deployments.engine_client.replicas import LLMReplicas
        from deployments.ingress.server import build
        from deployments.routing.placement import PLACEMENT

        tracer = None
        if settings.measuring.enabled and settings.tracing.otlp_endpoint is not None:
            from deployments.observability.tracing import Tracer

            tracer = Tracer(settings.tracing, serve.get_replica_context().replica_id.unique_id)
        keys = open_store(settings.access.keys, self._api_keys)
        PLACEMENT.set_up(settings)
        replicas = LLMReplicas(self._llm, carries=settings.llm.max_ongoing_requests is None)
        self._server = await build(settings, replicas, channel_host(), keys, tracer)
        app = self._server.app
        app.get("/ready")(self.ready)
        app.get("/status")(self.status)
        app.get("/metrics/targets")(self.targets)
        app.get("/metrics")(_own_metrics)
        if self._ui is not None:
            app.mount("/ui", UIBridge(self._ui))
            app.get("/", include_in_schema=False)(_to_the_page)
        return app

    async def status(self) -> dict[str, Any]:
        """Return the LLM replicas with state and load, how many requests wait for one, and the autoscaler's last decisions.

        `left_s` are quantiles of the seconds that the replies of this ingress still take.
        """
        return await self._status.report(self._server.client.unassigned, self._server.client.left_s())

    async def targets(self) -> list[dict[str, Any]]:
        """Return all processes that have metrics, for Prometheus' `http_sd_configs`."""
        return await asyncio.to_thread(self._replicas.targets)

    async def ready(self) -> JSONResponse:
        """Return whether a request would be answered now: 200 with an LLM replica's state, or 503. Both add the ingress's state."""
        mine = {
            "id": serve.get_replica_context().replica_id.unique_id,
            "open": len(self._server.client.open_requests),
            "carriers": self._server.client.carriers,
            "states": self._server.engine.get_num_unfinished_requests(),
            "strays": self._server.strays(),
            "requests": self._server.ongoing.count,
            "direct_chunks": self._server.direct_chunks,
        }
        if draining():
            return JSONResponse({"ready": False, "reason": "draining", "ingress": mine}, 503)
        if self._status.running():
            with contextlib.suppress(TimeoutError, RayActorError):
                replica = await asyncio.wait_for(self._llm.state.remote(), READY_S)
                return JSONResponse({"ready": True, "replica": replica, "ingress": mine})
        reason = await self._status.waits_for()
        if missing := await asyncio.to_thread(self._missing_gpus):
            reason += f"; {missing}"
        return JSONResponse({"ready": False, "reason": reason, "asleep": self._status.asleep(), "ingress": mine}, 503)

    def _missing_gpus(self) -> str | None:
        return lacking(self._settings.llm, ray.cluster_resources())


def _own_metrics() -> Response:
    """Return this ingress' metrics, for Prometheus."""
    return Response(exposition.of_ingress(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _to_the_page(request: Request) -> RedirectResponse:
    return RedirectResponse(f"{request.scope['root_path']}/ui/")


def channel_host() -> str:
    """Return the address to which replicas send tokens.

    It is loopback where `make serve` started Ray, for this machine alone; otherwise it is this node's address in Ray.
    """
    return "127.0.0.1" if RUN in os.environ else ray.util.get_node_ip_address()


def _import_server() -> None:
    import deployments.ingress.server  # noqa: F401
