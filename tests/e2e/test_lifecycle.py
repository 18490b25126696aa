"""Start and stop as a user does: nothing is left, ports are free, and a taken port or a wrong setting is told at once.

The third way to stop, `serve shutdown`, is what ends the application of the folder `default`.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from conftest import PORTS, ROOT, SERVE, Served, listening

from cluster.chaos import words


class Streaming:
    """A long reply that is being streamed."""

    def __init__(self, application: Served) -> None:
        self.last = ""
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(application.url,))
        self._thread.start()
        assert self._first.wait(30)

    def _read(self, url: str) -> None:
        body = {"model": "nano", "prompt": "count", "max_tokens": 3000, "ignore_eos": True, "stream": True}
        with contextlib.suppress(httpx.HTTPError), httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as reply:
            for line in reply.iter_lines():
                self.last = line or self.last
                self._first.set()

    def end(self) -> str:
        """Wait for the end; return the last line."""
        self._thread.join()
        return self.last


def drained_when_nobody_reads(application: Served) -> None:
    """The reply that is streamed ends well, new requests are refused, and the launcher's output is lost."""
    streaming = Streaming(application)
    application.process.stdout.close()  # type: ignore[union-attr]
    os.kill(application.process.pid, signal.SIGTERM)
    while httpx.get(f"{application.url}/ready").json().get("reason") != "draining":
        pass
    refused = httpx.post(f"{application.url}/v1/completions", json={"model": "nano", "prompt": "1", "max_tokens": 1})
    assert (refused.status_code, int(refused.headers["retry-after"]) > 0) == (503, True)
    assert streaming.end() == "data: [DONE]"


def at_once_by_a_second_signal(application: Served) -> None:
    streaming = Streaming(application)
    os.kill(application.process.pid, signal.SIGINT)
    assert "1 to answer" in next(line for line in application.process.stdout if "draining" in line)  # type: ignore[union-attr]
    os.kill(application.process.pid, signal.SIGINT)
    assert streaming.end() != "data: [DONE]"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("stop", [drained_when_nobody_reads, at_once_by_a_second_signal])
def test_a_stop_leaves_nothing_and_the_next_start_works(stop) -> None:  # type: ignore[no-untyped-def]
    with Served(*([] if stop is drained_when_nobody_reads else ["ui.enabled=false"])) as application:
        processes = application.processes()
        names = " ".join(map(words, processes))
        for name in ("haproxy", "raylet", "ServeReplica:default:LLM", "ServeReplica:default:Ingress"):
            assert name in names
        assert application.engine() in processes
        assert set(PORTS) == listening()
        stop(application)
        application.ends_with_nothing_left(processes)


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deployments.launch", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_a_taken_port_is_told_with_its_owner() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 8000))
        taken.listen()
        done = launch()
    assert done.returncode == 1
    assert f"error: port 8000 is taken by process {os.getpid()}" in done.stderr


def test_wrong_settings_end_make_serve_at_once() -> None:
    done = launch("preset=nano-cpu", "engine.max_model_len=long")
    assert done.returncode == 1
    assert done.stderr.startswith("error: engine.max_model_len='long'")


def test_a_model_that_cannot_be_downloaded_is_told() -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "deployments.launch", "preset=satori-7b-4090", "llm.num_gpus=0", "model=nobody/no-such-model"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "nobody/no-such-model, from the hub or its cache" in done.stdout
    assert "error: model='nobody/no-such-model': could not be downloaded" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["preset=none-such"], "preset='none-such': no such preset; allowed: nano-cpu"),
        (["engin.max_model_len=1"], "unknown key; allowed: preset, model"),
        (["engine.max_model_len=long"], "engine.max_model_len='long'"),
        (["model=models/none-such"], "model='models/none-such'"),
    ],
)
def test_wrong_settings_end_serve_run_with_one_message(arguments: list[str], words: str) -> None:
    done = subprocess.run([SERVE, "run", "deployments.config", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_build_writes_a_config_of_the_default_application(tmp_path: Path) -> None:
    built = tmp_path / "serve.yaml"
    subprocess.run([SERVE, "build", "deployments:default", "-o", str(built)], cwd=ROOT, check=True, capture_output=True, timeout=60)
    assert "import_path: deployments:default" in built.read_text()
    assert "name: LLM" in built.read_text()
    assert "name: Ingress" in built.read_text()
