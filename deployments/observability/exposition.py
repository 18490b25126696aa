"""Where metrics are scraped: each process serves its own on a port of its own, and the ingress lists them all for Prometheus.

A process writes its address into Ray's internal key-value store when it starts. Serve's controller knows which replicas there are.
The list, `/metrics/targets`, has those that are known to both, in the format of Prometheus' HTTP service discovery. So one scrape
configuration finds all replicas on all nodes, as they come and go.
"""

import asyncio
import contextlib
import json
import os
import socketserver
import threading
import time
from functools import cache
from typing import Any
from wsgiref import simple_server

import psutil
import ray
from prometheus_client import generate_latest, make_wsgi_app
from ray import serve
from ray.experimental import internal_kv

from deployments.errors import PortInUseError
from deployments.observability import logs, metrics
from deployments.observability.pauses import PAUSES
from deployments.settings import Settings, port_range

NAMESPACE = "satori-metrics"
SAMPLE_S = 0.5
ELSEWHERE = """\
# These are the metrics of one ingress. vLLM's gauges of an engine, such as vllm:num_requests_running and vllm:kv_cache_usage_perc,
# are served by its LLM replica: /metrics/targets lists the addresses of all replicas, also for Prometheus (http_sd_configs).
"""
"""A comment of Prometheus' text format."""
logger = logs.logger("metrics")


def show(part: str, settings: Settings) -> None:
    """Serve this process's metrics, including those of `part`, and register its address.

    A second call, as by a new deploy, only registers it again.
    """
    metrics.keep(part)
    node = ray.util.get_node_ip_address()
    head = ray.get_runtime_context().gcs_address.rpartition(":")[0]
    # An application on the loopback interface only is scraped from the head node, which reaches other nodes by their address.
    host = "127.0.0.1" if node == head and settings.http.is_loopback else node
    server = _serve(host, port_range(settings.ports.metrics))
    replica = part if part == metrics.CONTROLLER else serve.get_replica_context().replica_id.unique_id
    metrics.NODE_CPU.labels().set_function(CpuShare())
    metrics.NODE_MEMORY.labels().set_function(lambda: psutil.virtual_memory().available)
    metrics.MEMORY.labels().set_function(lambda: _memory(os.getpid()))
    labels = {"deployment": part, "replica": replica, "node": node, "model": settings.served_model_name}
    if part == metrics.LLM:
        labels["__meta_satori_gpus"] = f"{settings.llm.num_gpus:g}"
    entry = {"targets": [f"{host}:{server.server_port}"], "labels": labels}
    internal_kv._internal_kv_put(replica, json.dumps(entry | {"since": time.time()}), namespace=NAMESPACE)


class CpuShare:
    """A call returns the share of the node's CPU time in use since the previous call.

    This replaces psutil's `cpu_percent`, which counts from the previous call of the same thread: each scrape has a thread of its
    own, and a new thread gets 0.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle, self._all = _cpu_times()
        self._share = 0.0

    def __call__(self) -> float:
        """Return the share, from 0 to 1; if no CPU time has passed, the previous one."""
        with self._lock:
            idle, total = _cpu_times()
            if total > self._all:
                self._share = max(0.0, 1 - (idle - self._idle) / (total - self._all))
                self._idle, self._all = idle, total
            return self._share


def _cpu_times() -> tuple[float, float]:
    """Return the node's idle and total CPU seconds. On Linux, the user's time includes that of guests."""
    times = psutil.cpu_times()
    return times.idle + times.iowait, sum(times) - times.guest - times.guest_nice


class _Server(socketserver.ThreadingMixIn, simple_server.WSGIServer):
    daemon_threads = True


class _QuietHandler(simple_server.WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@cache
def _serve(host: str, ports: range) -> simple_server.WSGIServer:
    """Serve all metrics of this process on the first free one of `ports`, in a thread; return the server.

    Raises PortInUseError when none is free.

    The format is always Prometheus' text format. If asked for OpenMetrics, as Prometheus asks, prometheus-client 0.26.0 writes
    vLLM's names with an underscore in place of the colon. Goes when it keeps the colon.
    """
    chosen = make_wsgi_app()

    def plain(environ: dict[str, Any], start_response: Any) -> Any:
        return chosen(environ | {"HTTP_ACCEPT": "text/plain"}, start_response)

    for port in ports:
        with contextlib.suppress(OSError):
            server = simple_server.make_server(host, port, plain, _Server, _QuietHandler)
            break
    else:
        raise PortInUseError(f"no port from {ports.start} to {ports.stop - 1} is free for metrics; allowed: more in ports.metrics")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def of_ingress() -> bytes:
    """Return the metrics of this process, an ingress, in Prometheus' text format, with a comment that says where the others are."""
    return ELSEWHERE.encode() + generate_latest()


def count_memory_of(pid: int) -> None:
    """Count the memory of another process as this one's, too: of its engine, which may be no child of it."""
    metrics.MEMORY.labels().set_function(lambda: _memory(os.getpid(), pid))


def _memory(*pids: int) -> int:
    """Return the resident bytes of processes and their descendants."""
    members = set()
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            members |= {psutil.Process(pid), *psutil.Process(pid).children(recursive=True)}
    total = 0
    for member in members:
        with contextlib.suppress(psutil.Error):
            total += member.memory_info().rss
    return total


def count_tasks() -> None:
    """Keep the number of tasks of the running event loop as a metric."""
    loop = asyncio.get_running_loop()
    metrics.ASYNCIO_TASKS.labels().set_function(lambda: len(asyncio.all_tasks(loop)))


async def watch_loop() -> None:
    """Measure how late this process's event loop is, and notice pauses, until cancelled."""
    series = metrics.LOOP_LAG.labels()
    ended, cpu_s = time.monotonic(), time.process_time()
    while True:
        began, cpu_before_s = ended, cpu_s  # one time after the other: a pause may also come between two lines
        await asyncio.sleep(SAMPLE_S)
        ended, cpu_s = time.monotonic(), time.process_time()
        lag_s = max(0.0, ended - began - SAMPLE_S)
        PAUSES.note(lag_s, cpu_s - cpu_before_s)
        series.observe(lag_s)
