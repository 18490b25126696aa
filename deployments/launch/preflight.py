"""The checks before anything is started: ports, GPUs, and the model's files."""

import contextlib
import os
import socket
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
INGRESS_PORTS, RANGES = range(26000, 32400), 16
"""Where ingresses listen, below the ports that Linux gives to clients, and for how many applications of a host."""
STEP = 1000
"""Between the ports that an application tries beside `http.port`, so that applications on neighbouring ports try different ones."""


def check_port(port: int) -> None:
    """Raise PortInUseError, naming the owner, when somebody listens on `http.port`."""
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            raise PortInUseError(
                f"port {port} is taken by {_owner(connection.pid)}; stop it, or choose another: make serve"
                f" ARGS=http.port={port + 1 if port < 65535 else port - 1}"
            )


def free_port(beside: int) -> int:
    """Return a free port for the application on the port `beside`: half a thousand above it, or thousands further, or below.

    Raises PortInUseError when none of them is free.
    """
    tried = [*range(beside + STEP // 2, 65536, STEP), *range(beside - STEP // 2, 1024, -STEP)]
    taken = {found.laddr.port for found in psutil.net_connections("tcp") if found.status == psutil.CONN_LISTEN and found.laddr}
    for port in tried:
        if port not in taken:
            return port
    raise PortInUseError(f"none of the {len(tried)} ports is free that the application on {beside} may use beside it")


class IngressPorts:
    """A range of ports for the ingresses of one application, which no other of this host has, of whichever user.

    Serve (Ray 2.60.0) gives the first ingress of each application the same port. Until the second one's ingress finds it taken, its
    proxy would send requests to the first one's. The range is held by a name in Linux's abstract namespace of sockets: it needs
    no file, all users see it, and it goes with this process.
    """

    def __init__(self) -> None:
        """Take the first free range. Raises PortInUseError when there is none."""
        taken = {found.laddr.port for found in psutil.net_connections("tcp") if found.status == psutil.CONN_LISTEN and found.laddr}
        self._held = socket.socket(socket.AF_UNIX)
        for first in INGRESS_PORTS[:: len(INGRESS_PORTS) // RANGES]:
            self.ports = range(first, first + len(INGRESS_PORTS) // RANGES)
            with contextlib.suppress(OSError):
                if taken.isdisjoint(self.ports):
                    self._held.bind(f"\0satori-ingress-{first}")
                    return
        self._held.close()
        raise PortInUseError(f"all {RANGES} ranges of ports from {INGRESS_PORTS.start} to {INGRESS_PORTS.stop - 1} are taken")

    def variables(self) -> dict[str, str]:
        """Return the variables by which Serve uses the range. Its own end is exclusive."""
        return {
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(self.ports.start),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(self.ports.stop),
        }

    def close(self) -> None:
        """Give the range back."""
        self._held.close()


def check_gpus(settings: Settings, address: str, gpus: int) -> dict[str, str]:
    """Return the variables by which the cards that others use are left alone, if this machine is to be the whole cluster.

    Raises SettingsError when LLM replicas ask for more GPUs than it has left, or when vLLM cannot run on what they get here.
    `address` is Ray's address. Only Ray knows the types of GPUs, so the ingress checks them (`/ready`).
    """
    if address != "local":
        return {}
    if problem := _lacking(settings, gpus):
        raise SettingsError(problem)
    wanted = settings.llm.num_gpus
    if wanted and not cards.cuda_build():
        raise SettingsError(f"llm.num_gpus={wanted:g}, but vLLM's CPU build is installed here; allowed: 0, or make serve EXTRA=gpu")
    if problem := cards.unfit(wanted):
        raise SettingsError(problem)
    crowded = cards.crowded(settings.engine.get("gpu_memory_utilization") or VLLM_UTILIZATION) if wanted else {}
    if cards.VISIBLE in os.environ:  # whoever chose the cards knows them
        warn([line for number, line in crowded.items() if str(number) in os.environ[cards.VISIBLE].split(",")])
        return {}
    free = [number for number in range(gpus) if number not in crowded]
    if crowded and (problem := _lacking(settings, len(free), " left")):
        raise SettingsError("\n".join([problem, *crowded.values()]))
    warn([f"left alone: {line}" for line in crowded.values()])
    return {cards.VISIBLE: ",".join(map(str, free)), cards.ORDER: "PCI_BUS_ID"} if crowded else {}


def _lacking(settings: Settings, gpus: int, left: str = "") -> str | None:
    problem = lacking(settings.llm.model_copy(update={"accelerator_type": None}), {"GPU": gpus})
    return problem and problem.replace("the cluster has", f"this machine has{left}")


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
