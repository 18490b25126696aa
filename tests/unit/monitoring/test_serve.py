"""`make monitoring`: however it is told to end, it leaves no server behind. A small web server stands in for Prometheus."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.paths import ROOT
from tests.support.ports import free_ports
from tests.support.processes import output_until
from tests.support.until import until

PROMETHEUS = f"""#!{sys.executable}
import http.server, signal, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/-/ready" else 404)
        self.end_headers()

[address] = [word.partition("=")[2] for word in sys.argv if word.startswith("--web.listen-address=")]
if STUBBORN:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
http.server.HTTPServer(("127.0.0.1", int(address.rpartition(":")[2])), Handler).serve_forever()
"""
MAIN = """
import sys
from pathlib import Path
from monitoring import serve
serve.PROMETHEUS_PORT, serve.ALERTMANAGER_PORT, serve.GRAFANA_PORT = map(int, sys.argv[1:4])
serve.RUN, serve.STOP_S = Path("run"), 1.0
sys.exit(serve.main([]))
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `make monitoring` where nothing but a `prometheus` is installed, which does not end by SIGTERM if it is stubborn."""
    started: list[subprocess.Popen[str]] = []

    def run(stubborn: bool = False, **options: object) -> subprocess.Popen[str]:
        program = tmp_path / "prometheus"
        program.write_text(PROMETHEUS.replace("STUBBORN", str(stubborn)))
        program.chmod(0o755)
        command = [sys.executable, "-c", MAIN, *map(str, free_ports(3))]
        environment = os.environ | {"PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | options
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, **streams)  # type: ignore[call-overload]
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
    for left in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(tmp_path) in " ".join(left.cmdline()):
                left.kill()
    for process in started:
        process.wait()
        if process.stdout:
            process.stdout.close()


def server_of(process: subprocess.Popen[str]) -> psutil.Process:
    """Wait until it is up; return the process of its only server."""
    output = output_until(process, "Ctrl-C stops it", 30)
    assert "  prometheus    http://127.0.0.1:" in output
    assert "  grafana       not installed" in output
    [server] = psutil.Process(process.pid).children()
    return server


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_its_servers(start: Start, number: signal.Signals) -> None:
    process = start()
    server = server_of(process)
    process.send_signal(number)
    assert process.wait(20) == 0
    assert not server.is_running()


def test_a_second_signal_leaves_no_server_behind(start: Start) -> None:
    process = start(stubborn=True)
    server = server_of(process)
    for _ in range(2):
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)  # the server does not end by itself
    assert process.wait(20) == 0
    assert not server.is_running()


def test_a_terminal_that_closes_ends_it_and_its_servers(start: Start) -> None:
    ours, its = os.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(its, termios.TIOCSCTTY, 0)

    process = start(stdin=its, stdout=its, stderr=its, start_new_session=True, preexec_fn=take_terminal)
    os.close(its)
    os.set_blocking(ours, False)
    printed = b""

    def read() -> bytes:
        nonlocal printed
        with contextlib.suppress(BlockingIOError):
            printed += os.read(ours, 1000)
        return printed

    until(read, "it says that it runs", holds=lambda text: b"Ctrl-C stops it" in text)
    [server] = psutil.Process(process.pid).children()
    os.close(ours)
    assert process.wait(20) == 0
    assert not server.is_running()


def test_nohup_outlives_its_terminal(start: Start) -> None:
    process = start(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    server = server_of(process)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    assert server.is_running()
    process.terminate()
    assert process.wait(20) == 0
    assert not server.is_running()


def test_a_server_that_ends_ends_the_others_with_an_error(start: Start) -> None:
    process = start()
    server_of(process).kill()
    assert process.wait(20) == 1
    assert process.stdout is not None
    assert "error: a part has ended; see run" in process.stdout.read()
