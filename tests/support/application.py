"""A running application, started as a user starts it, and a long reply of it."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import psutil

from cluster.bench.stack import Stack, command_line, engines, is_engine
from deployments.engine.process import kill
from tests.support.paths import ROOT
from tests.support.ports import listening
from tests.support.processes import output_until

SERVE = str(Path(sys.executable).with_name("serve"))
PORTS = (8000,)
LOGS = ROOT / ".run" / "logs"
STARTED_S, STOPPED_S = 180, 60
READY = "Ctrl-C stops it."


def ours() -> set[int]:
    """Return the ports of an application that somebody listens on."""
    return {port for _, port in listening()} & set(PORTS)


class Served:
    """A running `python -m deployments.launch`, up to its first answer, for which it has `started_s`."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None, started_s: float = STARTED_S) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deployments.launch", *arguments],
            cwd=ROOT,
            env=os.environ | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = output_until(self.process, READY, started_s)
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
        names = " ".join(map(command_line, processes))
        for name in ("haproxy", "raylet", "ServeReplica:default:LLM", "ServeReplica:default:Ingress"):
            assert name in names
        assert any(map(is_engine, processes))
        assert set(PORTS) == ours()
        return processes

    def ends_with_nothing_left(self, processes: list[psutil.Process]) -> None:
        """Wait until it has stopped well, and check that none of these processes of it is left and its ports are free."""
        assert self.process.wait(STOPPED_S) == 0
        assert [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
        assert not ours()

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        """Kill what is left of it: a stop takes seconds, and has tests of its own."""
        if self.process.poll() is None:
            kill(self.process.pid)
        self.process.wait()
        self.process.stdout.close()  # type: ignore[union-attr]


def logged() -> str:
    """Return all that the application and Ray have logged."""
    files = [path for path in LOGS.rglob("*") if path.is_file()]
    assert {"requests_LLM", "requests_Ingress"} <= {path.name.rpartition("_")[0] for path in files}
    return (ROOT / ".run" / "serve.log").read_text() + "".join(path.read_text(errors="replace") for path in files)


class Streaming:
    """A long reply that is being streamed. `error` is what broke the connection, if anything did."""

    def __init__(self, served: Served) -> None:
        self.last = ""
        self.error: httpx.HTTPError | None = None
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(served.url,))
        self._thread.start()
        assert self._first.wait(30), "no token within 30 s"
        assert self.last, f"no token: {self.error!r}"

    def _read(self, url: str) -> None:
        body = {"model": "nano", "prompt": "count", "max_tokens": 2000, "ignore_eos": True, "stream": True}
        try:
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as reply:
                for line in reply.iter_lines():
                    self.last = line or self.last
                    self._first.set()
        except httpx.HTTPError as error:
            self.error = error
            self._first.set()

    def end(self) -> str:
        """Wait for the end; return the last line."""
        self._thread.join(60)
        assert not self._thread.is_alive(), "it goes on after 60 s"
        return self.last
