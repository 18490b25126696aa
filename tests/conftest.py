"""What the end-to-end tests share: a running application a module, started as a user starts it."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from hypothesis import settings

from cluster.chaos import Stack, engines, is_engine, words
from deployments.engine_process import kill

ROOT = Path(__file__).parent.parent
SERVE = str(Path(sys.executable).with_name("serve"))
PORTS = (8000, 9101, 8404)
STOPPED_S = 15
# Machines are busy: a test that blows up runs into its own time limit. Examples are the same in every run; others are looked for
# with `make unit ARGS=--hypothesis-profile=random`.
settings.register_profile("random", deadline=None)
settings.register_profile("same", deadline=None, derandomize=True)
settings.load_profile("same")


def free_ports(number: int) -> list[int]:
    """Return ports of this machine that nobody listens on."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def listening() -> set[int]:
    """Return the ports of ours that somebody listens on."""
    connections = psutil.net_connections("tcp")
    found = {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN and connection.laddr}
    return found & set(PORTS)


class Served:
    """A running `python -m deployments.launch`, up to its first answer."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deployments.launch", *arguments],
            cwd=ROOT,
            env=os.environ | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""
        while "Ctrl-C stops it." not in self.output:
            line = self.process.stdout.readline()  # type: ignore[union-attr]
            if not line:
                raise RuntimeError(f"the application did not start:\n{self.output}")
            self.output += line
        self.url = re.search(r"(http://\S+)/v1", self.output)[1]  # type: ignore[index]

    def processes(self) -> list[psutil.Process]:
        """Return all live processes of this application but the launcher itself."""
        return [process for process in psutil.Process(self.process.pid).children(recursive=True) if process.is_running()]

    @property
    def stack(self) -> Stack:
        """The application as the chaos runs see it."""
        return Stack(self.url, psutil.Process(self.process.pid))

    def engine(self) -> psutil.Process:
        """Return the process of the engine of the only LLM replica."""
        [replica] = self.stack.llm_replicas()
        [found] = engines(replica)
        return found

    def all_processes(self) -> list[psutil.Process]:
        """Return them, seen to be complete."""
        processes = self.processes()
        names = " ".join(map(words, processes))
        for name in ("haproxy", "raylet", "ServeReplica:default:LLM", "ServeReplica:default:Ingress"):
            assert name in names
        assert any(map(is_engine, processes))
        assert set(PORTS) == listening()
        return processes

    def ends_with_nothing_left(self, processes: list[psutil.Process]) -> None:
        """Wait until it has stopped well, and check that none of these processes of it is left and its ports are free."""
        assert self.process.wait(STOPPED_S) == 0
        assert [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
        assert not listening()

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        """Kill what is left of it: a stop takes seconds, and has tests of its own."""
        if self.process.poll() is None:
            kill(self.process.pid)
        self.process.wait()
        self.process.stdout.close()  # type: ignore[union-attr]


class Streaming:
    """A long reply that is being streamed."""

    def __init__(self, served: Served) -> None:
        self.last = ""
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(served.url,))
        self._thread.start()
        assert self._first.wait(30)

    def _read(self, url: str) -> None:
        body = {"model": "nano", "prompt": "count", "max_tokens": 2000, "ignore_eos": True, "stream": True}
        with contextlib.suppress(httpx.HTTPError), httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as reply:
            for line in reply.iter_lines():
                self.last = line or self.last
                self._first.set()

    def end(self) -> str:
        """Wait for the end; return the last line."""
        self._thread.join()
        return self.last


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    """A running application with the settings of the module's `ARGUMENTS`, and the default preset."""
    with Served(*getattr(request.module, "ARGUMENTS", ())) as application:
        yield application


@pytest.fixture(scope="session")
def nano() -> Path:
    """The embedded model's directory."""
    return ROOT / "models" / "nano"
