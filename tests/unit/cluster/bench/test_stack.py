"""How the bench finds, pauses and ends the processes of a server; with small processes in place of servers."""

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.bench import stack
from cluster.bench.stack import Server, Stack
from deployments.errors import PortInUseError
from deployments.host import cores
from deployments.host.run import RUN
from deployments.host.signals import interrupt_by_signals
from deployments.replica.engine_core import EngineProxy
from deployments.settings import load
from tests.support.ports import free_ports
from tests.support.until import until

SLEEP = "import time; print(flush=True); time.sleep(60)"
PARENT = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {SLEEP!r}, *sys.argv[1:]], stdout=subprocess.PIPE)
child.stdout.readline()
print(flush=True)
time.sleep(60)
"""
"""Starts one more process, with the words that it is given."""
HTTP = "import http.server, sys; http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind='127.0.0.1')"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + HTTP


@pytest.fixture
def processes() -> Iterator[list[psutil.Popen]]:
    """Processes that are killed at the end of a test, with their children."""
    started: list[psutil.Popen] = []
    yield started
    for process in started:
        for one in (*process.children(recursive=True), process):
            one.kill()
        process.wait()
        process.stdout.close()


def start(processes: list[psutil.Popen], code: str, *words: str, **variables: str) -> psutil.Process:
    environment = {name: value for name, value in os.environ.items() if name != RUN} | variables
    process = psutil.Popen([sys.executable, "-c", code, *words], env=environment, stdout=subprocess.PIPE)
    processes.append(process)
    process.stdout.readline()
    return psutil.Process(process.pid)


def test_the_process_that_a_replica_starts_is_an_engine_to_all_who_look_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command is the real one. The module that it runs is another one of the same name, which waits for its end."""
    assert importlib.util.find_spec(cores.ENGINE_MODULE)
    module = tmp_path / Path(*cores.ENGINE_MODULE.split(".")).with_suffix(".py")
    module.parent.mkdir(parents=True)
    module.write_text("import sys; sys.stdin.read()")
    monkeypatch.chdir(tmp_path)
    engine = EngineProxy(cpu=False)
    try:
        [found] = stack.engines(psutil.Process())
        assert found.cmdline()[1:3] == ["-m", cores.ENGINE_MODULE]
        everywhere = found.cpu_affinity()
        cores.pin_to_last([found], f"{everywhere[0]},{everywhere[-1]}")
        assert found.cpu_affinity() == everywhere
    finally:
        engine.close()


def test_an_engine_with_vllms_title_is_one_too_and_others_are_not(processes: list[psutil.Popen]) -> None:
    engine, other = (start(processes, SLEEP, word) for word in ("VLLM::EngineCore", "ServeReplica:default:LLM"))
    assert stack.engines(psutil.Process()) == [engine]
    assert other.pid != engine.pid


@pytest.mark.parametrize(
    ("command", "part"),
    [
        ("VLLM::EngineCore", "engine"),
        (f"python -m {cores.ENGINE_MODULE}", "engine"),
        ("ray::ServeReplica:default:Ingress.serve", "API server"),
        ("python -m vllm.entrypoints.launchers.api_server.entry --model nano", "API server"),
        ("haproxy -db -f /tmp/haproxy.cfg", "proxy"),
        ("ray::ServeReplica:default:LLM", "LLM replica"),
        ("ray::ServeReplica:default:UI", "rest"),
        ("gcs_server --log_dir=x", "rest"),
        ("", "rest"),
    ],
)
def test_the_part_of_a_process(command: str, part: str) -> None:
    assert stack.part_of(command) == part


def test_a_server_is_its_descendants_and_its_run(processes: list[psutil.Popen]) -> None:
    root = start(processes, PARENT, **{RUN: "this"})
    orphan = start(processes, PARENT, **{RUN: "this"})
    other = start(processes, PARENT, **{RUN: "another"})
    found = set(Stack("", root).processes())
    assert found == {root, *root.children(), orphan, *orphan.children()}
    assert len(found) == 4
    assert set(Stack("", other).processes()) == {other, *other.children()}


def test_a_pause_stops_all_processes_of_a_server_and_of_no_other(processes: list[psutil.Popen]) -> None:
    root, other = start(processes, PARENT), start(processes, PARENT)
    all_, others = [root, *root.children()], [other, *other.children()]
    Stack("", root).pause()
    until(lambda: {process.status() for process in all_}, "all are stopped", holds=lambda states: states == {psutil.STATUS_STOPPED})
    assert psutil.STATUS_STOPPED not in {process.status() for process in others}
    Stack("", root).resume()
    until(
        lambda: {process.status() for process in all_}, "none is stopped", holds=lambda states: psutil.STATUS_STOPPED not in states
    )


def test_what_lasts_is_missed_once_it_is_gone(processes: list[psutil.Popen]) -> None:
    root = start(processes, PARENT, "ServeReplica:default:LLM")
    [child] = root.children()
    assert Stack("", root).lasting() == {root, child}, "both have the words"
    child.kill()
    until(child.status, "the child has ended", holds=lambda status: status == psutil.STATUS_ZOMBIE)
    assert Stack("", root).lasting() == {root}
    assert Stack("", start(processes, PARENT, "ray::IDLE")).lasting() == set()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns a small web server that runs `code`, on a port of its own."""
    monkeypatch.setattr(stack, "ROOT", tmp_path)
    port, *others = free_ports(1 + len(stack.PROXY_PORTS))
    settings = load({"preset": "nano-cpu", "http.port": port})
    environment = dict(os.environ) | dict(zip(stack.PROXY_PORTS, map(str, others), strict=True))

    def make(*codes: str) -> Server:
        commands = tuple([sys.executable, "-c", code, str(port)] for code in codes)
        return Server("small", settings, commands, environment, lambda: stack.answers(f"http://127.0.0.1:{port}"), tmp_path)

    return make


def test_a_server_runs_as_long_as_the_block(server: Any, tmp_path: Path) -> None:
    with stack.running(server(SLEEP, HTTP)) as running:
        assert stack.answers(running.url)
        assert running.root.cmdline()[2] == HTTP, "the last one listens"
        started = psutil.Process().children()
        assert len(started) == 2
        assert set(running.processes()) == set(started)
        running.pause()
    assert not [process for process in started if process.is_running()]
    assert "GET / HTTP" in (tmp_path / ".run" / "bench-small.log").read_text()


def test_a_server_that_does_not_end_is_killed_with_all_that_it_started(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "STOP_S", 0.2)
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); " + STUBBORN
    with pytest.raises(KeyboardInterrupt), stack.running(server(code)) as running:  # noqa: PT012
        started = running.processes()
        assert len(started) == 2
        raise KeyboardInterrupt
    assert not [process for process in started if process.is_running()]


def test_what_a_killed_process_leaves_behind_is_killed(server: Any) -> None:
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); " + HTTP
    with stack.running(server(code)) as running:
        _, child = started = running.processes()
        running.root.kill()
        until(child.ppid, "the child has another parent", holds=lambda pid: pid != running.root.pid)
    assert not [process for process in started if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_a_server_that_ends_at_its_start_ends_the_program(server: Any) -> None:
    with pytest.raises(SystemExit, match=r"small did not start; see .*bench-small\.log"), stack.running(server("raise OSError")):
        pass


def test_a_server_that_is_not_ready_in_time_ends_the_program_and_is_ended(server: Any) -> None:
    slow = server(SLEEP)
    object.__setattr__(slow, "ready_s", 0.1)
    with pytest.raises(SystemExit, match="small did not start"), stack.running(slow):
        pass
    assert psutil.Process().children() == []


def test_another_servers_port_is_not_taken_for_ones_own(server: Any) -> None:
    with stack.running(server(HTTP)):  # noqa: SIM117
        with pytest.raises(PortInUseError, match=r"http\.server"), stack.running(server(HTTP)):
            pass


def test_servers_have_ports_apart() -> None:
    first, second = stack.apart(0), stack.apart(1)
    assert first.keys() == second.keys() > stack.PROXY_PORTS.keys()
    assert not set(first.values()) & set(second.values())
    assert {name: int(first[name]) for name in stack.PROXY_PORTS} == stack.PROXY_PORTS
    low, high = "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT", "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"
    ranges = [range(int(stack.apart(number)[low]), int(stack.apart(number)[high]) + 1) for number in range(5)]
    assert len({port for ports in ranges for port in ports}) == sum(map(len, ranges)) == len(stack.INGRESS_PORTS)


def test_ports_that_the_caller_chose_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_HAPROXY_STATS_PORT", "9404")
    ports = [stack.environment(number)["RAY_SERVE_HAPROXY_STATS_PORT"] for number in (0, 1)]
    assert ports == ["9404", "9405"]


def test_the_variables_are_rays_own() -> None:
    from ray.serve._private import constants

    for name, port in stack.apart(0).items():
        assert name == "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT" or getattr(constants, name) == int(port)
    assert stack.INGRESS_PORTS.stop == constants.RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT


def test_an_application_of_another_checkout_runs_there_with_its_own_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN, "of the bench")
    settings = load({"preset": "nano-cpu", "http.port": 8100})
    here = stack.ours("ours", settings, ["preset=nano-cpu"])
    assert here.commands == ([sys.executable, "-m", "deployments.launch", "preset=nano-cpu", "http.port=8100"],)
    assert (here.folder, here.url, RUN in here.environment) == (stack.ROOT, "http://127.0.0.1:8100", False)
    there = stack.ours("before", settings, [], 1, tmp_path)
    assert there.commands[0][0] == sys.executable, "which it shares where it has none"
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    there = stack.ours("before", settings, [], 1, tmp_path)
    assert there.commands == ([str(python), "-m", "deployments.launch", "http.port=8101"],)
    assert (there.folder, there.url) == (tmp_path, "http://127.0.0.1:8101")
    assert there.environment.items() >= stack.apart(1).items()


@pytest.fixture
def handlers() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_signals_end_the_program_as_ctrl_c_does(handlers: None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    interrupt_by_signals()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


def test_nohup_outlives_its_terminal(handlers: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupt_by_signals()
    signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_figures_come_with_hardware_and_versions() -> None:
    printed = stack.machine()
    for words in (f"{os.cpu_count()} cores", "Linux ", "Python 3.", "ray 2.", "vllm", "torch "):
        assert words in printed
