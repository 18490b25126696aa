"""The real fork server, with vLLM imported: what is forked from it is like a process that is started anew."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from deployments.engine import forkserver
from deployments.engine.process import preloaded
from deployments.host import forked
from deployments.host.forked import SOCKET, Forked
from tests.support.paths import ROOT
from tests.support.until import until

Running = tuple[subprocess.Popen[bytes], str]
"""A fork server, and the path of its socket."""
SCRIPT = """
import json, os, pathlib, resource, sys
pathlib.Path(sys.argv[1]).write_text(json.dumps({
    "argv": sys.argv, "name": __name__, "folder": os.getcwd(), "environment": dict(os.environ), "path": sys.path,
    "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:-1], "files": resource.getrlimit(resource.RLIMIT_NOFILE),
    "score": pathlib.Path("/proc/self/oom_score_adj").read_text(), "imported": "vllm.v1.engine.core" in sys.modules,
    "ray": "ray" in sys.modules, "read": sys.stdin.read(),
}))
print("printed"), print("wrong", file=sys.stderr)
sys.exit(7)
"""
SLEEPS = "import time, sys; print('here', flush=True); time.sleep(1000)"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = str(tmp_path_factory.mktemp("fork") / "fork.sock")
    variables = (
        {SOCKET: path} | os.environ | forkserver.ENVIRONMENT | preloaded() | {"VLLM_TARGET_DEVICE": "cpu", "ONLY_THE_SERVERS": "1"}
    )
    with subprocess.Popen(
        [sys.executable, "-u", "-m", forkserver.__name__, path], cwd=ROOT, env=variables, stdin=subprocess.PIPE
    ) as process:
        until(Path(path).exists, "the fork server listens", 60)
        yield process, path
        process.kill()


def found_in(command: list[str], script: Path, environment: dict[str, str], limit: tuple[int, int]) -> tuple[Any, str, str, int]:
    """Run the script that writes what its process has; return that, its outputs, and its status."""
    result = script.with_suffix(".json")
    reader, writer = os.pipe()
    done = subprocess.run(
        [*command, str(script), str(result), "two words"],
        env=environment,
        input="some text",
        text=True,
        capture_output=True,
        check=False,
        cwd=script.parent,
        pass_fds=(writer,),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limit),
    )
    os.close(reader)
    os.close(writer)
    return json.loads(result.read_text()), done.stdout, done.stderr, done.returncode


def running(server: Running) -> list[psutil.Process]:
    """Return the forked processes that have not ended."""
    return psutil.Process(server[0].pid).children()


def test_a_forked_process_is_like_one_that_is_started(server: Running, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = dict(os.environ) | {SOCKET: server[1], "HOME": "/elsewhere", "ADDED": "ä"}
    limit = (333, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    started, *rest = found_in([sys.executable], script, environment, limit)
    same, *others = found_in([sys.executable, "-IS", forked.__file__], script, environment, limit)
    assert (started.pop("imported"), same.pop("imported"), same["ray"]) == (False, True, False)
    assert set(same.pop("path")) >= set(started.pop("path"))
    assert same == started
    assert rest == ["printed\n", "wrong\n", 7]
    assert others == ["printed\n", "wrong\n", 0], "its status is not known"


def test_a_module_is_run_and_is_told_from_the_server(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SOCKET, server[1])
    reader, writer = os.pipe()
    source, stdin = os.pipe()
    process = Forked(["-m", "timeit", "-n1", "-r1", "import sys; sys.stdin.read()"], os.environ, {0: source, 1: writer, 2: 2})
    os.close(writer)
    title = psutil.Process(process.pid)
    until(lambda: "python -m timeit" in " ".join(title.cmdline()), "the process has its title")
    assert os.getpgid(process.pid) == process.pid
    os.close(stdin)
    os.close(source)
    process.wait()
    assert process.ended
    with os.fdopen(reader) as output:
        assert "1 loop" in output.read()


def test_a_forked_process_ends_with_its_client(server: Running, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SLEEPS)
    environment = dict(os.environ) | {SOCKET: server[1]}
    command = [sys.executable, "-IS", forked.__file__, str(script)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "here\n"
        (child,) = running(server)
        client.kill()
    until(lambda: child not in running(server), "it has ended")


def test_a_process_that_is_killed_has_ended_and_is_no_zombie(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SOCKET, server[1])
    script = tmp_path / "script.py"
    script.write_text(SLEEPS)
    process = Forked([str(script)], os.environ, {0: 0, 1: 1, 2: 2})
    os.kill(process.pid, signal.SIGTERM)
    process.wait()
    until(lambda: not psutil.pid_exists(process.pid), "it is gone")


def test_who_orders_nothing_disturbs_nobody(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SOCKET, server[1])
    for text in (b"", b"\0\0\0\x05abc", b"\0\0\0\x02{}", b"\0\0\0\x03abc"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(server[1])
            client.sendall(text)
            client.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""
    Forked(["-m", "this"], os.environ, {0: 0, 1: os.open(os.devnull, os.O_WRONLY), 2: 2}).wait()


def test_a_process_outlives_the_server_which_ends_with_its_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "fork.sock")
    monkeypatch.setenv(SOCKET, path)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    script = tmp_path / "script.py"
    script.write_text(SLEEPS)
    with subprocess.Popen([sys.executable, "-m", forkserver.__name__, path], cwd=ROOT, stdin=subprocess.PIPE) as process:
        until(Path(path).exists, "the fork server listens", 60)
        other = Forked([str(script)], os.environ, {0: 0, 1: 1, 2: 2})
        process.communicate()
        assert process.returncode == 0
    child = psutil.Process(other.pid)
    assert child.status() != psutil.STATUS_ZOMBIE
    child.kill()
    other.wait()
    assert other.ended
    with pytest.raises(OSError, match="refused"):
        Forked([str(script)], os.environ, {})
