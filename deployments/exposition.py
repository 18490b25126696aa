"""Where metrics are scraped: each process serves its own on a small port, and the ingress lists them all for Prometheus.

A process writes its address into Ray's internal key-value store when it starts, and Serve's controller knows which replicas there
are: what is in both is in the list, `/metrics/targets`, in the format of Prometheus' HTTP service discovery. So one scrape
configuration finds all replicas on all nodes, as they come and go.
"""

import asyncio
import contextlib
import ipaddress
import json
import socketserver
import threading
import time
from collections import Counter
from functools import cache
from typing import Any
from wsgiref import simple_server

import psutil
import ray
from prometheus_client import make_wsgi_app
from ray import serve
from ray.experimental import internal_kv
from ray.serve._private.common import ReplicaState
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

from deployments import logs, metrics
from deployments.errors import PortInUseError
from deployments.settings import Settings, port_range

NAMESPACE = "satori-metrics"
STATES = ("STARTING", "RUNNING", "UPDATING", "RECOVERING", "STOPPING")
POLL_S = 2.0
LOOK_S = 0.5
ANSWER_S = 10.0
FORGET_S = 600.0

logger = logs.logger("metrics")


def show(part: str, settings: Settings) -> None:
    """Serve this process's metrics, those of `part` among them, and tell where. Once more, as by a new deploy: tell it anew."""
    metrics.keep(part)
    node = ray.util.get_node_ip_address()
    head = ray.get_runtime_context().gcs_address.rpartition(":")[0]
    # Who serves on the loopback interface only is scraped on the head node; other nodes can be reached from it by their address.
    host = "127.0.0.1" if node == head and _is_loopback(settings.http.host) else node
    server = _serve(host, port_range(settings.ports.metrics))
    replica = part if part == metrics.CONTROLLER else serve.get_replica_context().replica_id.unique_id
    process = psutil.Process()
    metrics.NODE_CPU.labels().set_function(CpuShare())
    metrics.NODE_MEMORY.labels().set_function(lambda: psutil.virtual_memory().available)
    metrics.MEMORY.labels().set_function(lambda: _memory(process))
    labels = {"deployment": part, "replica": replica, "node": node, "model": settings.served_model_name}
    if part == metrics.LLM:
        labels["__meta_satori_gpus"] = f"{settings.llm.num_gpus:g}"
    entry = {"targets": [f"{host}:{server.server_port}"], "labels": labels}
    internal_kv._internal_kv_put(replica, json.dumps(entry | {"since": time.time()}), namespace=NAMESPACE)


class CpuShare:
    """The share of the node's CPU time in use since the last look, as a call returns it.

    Not psutil's `cpu_percent`, which counts from the last look of the same thread: each scrape has a thread of its own, and to a
    new one it says 0.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle, self._all = _cpu_times()
        self._share = 0.0

    def __call__(self) -> float:
        """Return the share, from 0 to 1; after no time that of before."""
        with self._lock:
            idle, total = _cpu_times()
            if total > self._all:
                self._share = max(0.0, 1 - (idle - self._idle) / (total - self._all))
                self._idle, self._all = idle, total
            return self._share


def _cpu_times() -> tuple[float, float]:
    """Return the node's idle and whole CPU seconds. Guests' time is in the user's (Linux)."""
    times = psutil.cpu_times()
    return times.idle + times.iowait, sum(times) - times.guest - times.guest_nice


class _Server(socketserver.ThreadingMixIn, simple_server.WSGIServer):
    daemon_threads = True


class _Silent(simple_server.WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@cache
def _serve(host: str, ports: range) -> simple_server.WSGIServer:
    """Serve all metrics of this process on the first free one of `ports`, in a thread; return the server.

    Raises PortInUseError when there is none.

    Always in Prometheus' text format: asked for OpenMetrics, as Prometheus does, prometheus-client 0.26.0 writes vLLM's names with
    an underscore in place of the colon. Goes when it does not.
    """
    chosen = make_wsgi_app()

    def plain(environ: dict[str, Any], start_response: Any) -> Any:
        return chosen(environ | {"HTTP_ACCEPT": "text/plain"}, start_response)

    for port in ports:
        with contextlib.suppress(OSError):
            server = simple_server.make_server(host, port, plain, _Server, _Silent)
            break
    else:
        raise PortInUseError(f"no port from {ports.start} to {ports.stop - 1} is free for metrics; allowed: more in ports.metrics")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _memory(process: psutil.Process) -> int:
    """Return the resident bytes of a process and its children, an engine's among them."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            total += one.memory_info().rss
    return total


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (host[:1].isdigit() and ipaddress.ip_address(host).is_loopback)


async def watch_loop() -> None:
    """Measure how late this process's event loop is, until cancelled."""
    series = metrics.LOOP_LAG.labels()
    while True:
        began = time.monotonic()
        await asyncio.sleep(LOOK_S)
        series.observe(max(0.0, time.monotonic() - began - LOOK_S))


class Replicas:
    """The replicas as Serve's controller knows them: kept in metrics, and as targets."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}
        self._deployments: dict[str, dict[str, Any]] = {}
        self._task: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """Begin to ask the controller, all the time."""
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            try:
                controller = await asyncio.to_thread(ray.get_actor, SERVE_CONTROLLER_NAME, SERVE_NAMESPACE)
                self.take(await asyncio.wait_for(controller.get_serve_instance_details.remote(), ANSWER_S))
                metrics.CLUSTER_GPUS.labels().set((await asyncio.to_thread(ray.cluster_resources)).get("GPU", 0))
            except (TimeoutError, ValueError, ray.exceptions.RayError) as error:
                logger.warning("Serve's controller does not say which replicas there are (%s)", type(error).__name__)
            await asyncio.sleep(POLL_S)

    def take(self, details: dict[str, Any]) -> None:
        """Take what the controller says (`ServeInstanceDetails` of Ray 2.60.0, as a dictionary)."""
        states: dict[str, str] = {}
        for application in details["applications"].values():
            for name, deployment in application["deployments"].items():
                replicas = {replica["replica_id"]: ReplicaState(replica["state"]).value for replica in deployment["replicas"]}
                count = Counter(replicas.values())
                for state in STATES:
                    metrics.REPLICAS.labels(name, state).set(count[state])
                metrics.REPLICAS_TARGET.labels(name).set(deployment["target_num_replicas"])
                self._deployments[name] = deployment
                states |= replicas
        self._states = states

    def of(self, deployment: str) -> dict[str, Any] | None:
        """Return what Serve's controller said last of a deployment (a `DeploymentDetails`); None before it has."""
        return self._deployments.get(deployment)

    def targets(self) -> list[dict[str, Any]]:
        """Return the processes to scrape, in the format of Prometheus' `http_sd_configs`."""
        found = []
        for key in internal_kv._internal_kv_list("", namespace=NAMESPACE):
            name = key.decode()
            entry = json.loads(internal_kv._internal_kv_get(key, namespace=NAMESPACE) or "{}")
            if name in self._states or name == metrics.CONTROLLER:
                found.append({"targets": entry["targets"], "labels": entry["labels"]})
            elif self._states and time.time() - entry.get("since", 0) > FORGET_S:
                internal_kv._internal_kv_del(key, namespace=NAMESPACE)
        return found
