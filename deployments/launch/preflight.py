"""The checks before anything is started: ports, GPUs, and the model's files."""

import contextlib
import os
import time

import psutil

from deployments.errors import PortInUseError, SettingsError
from deployments.host import cards
from deployments.host.gpus import lacking
from deployments.launch.terminal import report, warn
from deployments.settings import ROOT, Settings, is_path
from deployments.weights.download import download

VLLM_UTILIZATION = 0.92
"""vLLM's own default of `gpu_memory_utilization` (0.32.0)."""
HAPROXY_PORTS = {"RAY_SERVE_HAPROXY_METRICS_PORT": 9101, "RAY_SERVE_HAPROXY_STATS_PORT": 8404}


def check_ports(settings: Settings, variables: dict[str, str]) -> None:
    """Raise PortInUseError, naming the owner, when a port that the proxy needs is taken."""
    ports = [settings.http.port, *(int(variables.get(name, port)) for name, port in HAPROXY_PORTS.items())]
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port in ports:
            raise PortInUseError(
                f"port {connection.laddr.port} is taken by {_owner(connection.pid)}; stop it, or choose another: make serve"
                " ARGS=http.port=8001"
            )


def check_gpus(settings: Settings, address: str, gpus: int) -> None:
    """Raise SettingsError when LLM replicas ask for more GPUs than this machine has, if it is to be the whole cluster.

    `address` is Ray's address. Only Ray knows the types of GPUs, so the ingress checks them (`/ready`).
    """
    if address == "local" and (problem := lacking(settings.llm.model_copy(update={"accelerator_type": None}), {"GPU": gpus})):
        raise SettingsError(problem.replace("the cluster", "this machine"))
    if address == "local":
        _check_cards(settings)


def _check_cards(settings: Settings) -> None:
    """Raise SettingsError when vLLM cannot run on what its replicas get here; warn of cards that others use too much of."""
    wanted = settings.llm.num_gpus
    if wanted and not cards.cuda_build():
        raise SettingsError(f"llm.num_gpus={wanted:g}, but vLLM's CPU build is installed here; allowed: 0, or make serve EXTRA=gpu")
    if problem := cards.unfit(wanted):
        raise SettingsError(problem)
    crowded = cards.crowded(settings.engine.get("gpu_memory_utilization") or VLLM_UTILIZATION) if wanted else []
    if crowded and len(crowded) >= cards.cards():
        raise SettingsError("\n".join(crowded))
    warn(crowded)


def _owner(pid: int | None) -> str:
    with contextlib.suppress(psutil.Error):
        if pid is not None:
            return f"process {pid} ({' '.join(psutil.Process(pid).cmdline())[:100]})"
    return "a process of another user"


def fetch_model(settings: Settings) -> None:
    """Download what is missing of a model's files from the Hugging Face hub (or its mirror), and show the progress.

    Raises SatoriError when files are missing and cannot be downloaded.
    """
    if is_path(settings.model):
        report("model", os.path.relpath(settings.model, ROOT))
        return
    report("model", f"{settings.model}, from the hub or its cache")
    began = time.monotonic()
    download(settings, lambda progress: report("model", progress, time.monotonic() - began))
    report("model", "complete", time.monotonic() - began)
