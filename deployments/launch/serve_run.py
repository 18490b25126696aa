"""A running `serve run`, and all processes that descend from it."""

import contextlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from deployments.access import keys
from deployments.engine import forkserver
from deployments.engine.process import preloaded
from deployments.errors import SatoriError
from deployments.host import cores
from deployments.host.environment import SERVING, connections, haproxy_files, hard_stop
from deployments.host.folders import TemporaryFolder, make_own
from deployments.host.forked import SOCKET
from deployments.host.run import FOLDER, RUN, marker
from deployments.host.signals import STOPS
from deployments.launch.preflight import IngressPorts, check_port, free_port
from deployments.launch.terminal import report, warn, write
from deployments.observability.startup import MARK
from deployments.settings import ROOT, HttpSettings, Settings

FILES = ROOT / ".run"
LEAN = {
    # Each of Ray's workers imports this before it is given work.
    "RAY_preload_python_modules": "deployments.host.lean",
    # Events of tasks, which nothing here reads: Ray's dashboard would.
    "RAY_task_events_report_interval_ms": "0",
    # What Ray's processes look for 5 to 10 times a second (1 for the first), on a host that shares nothing with others.
    "RAY_gcs_pull_resource_loads_period_milliseconds": "10000",
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_raylet_check_gc_period_milliseconds": "2000",
    "RAY_kill_idle_workers_interval_ms": "2000",
    "RAY_object_manager_timer_freq_ms": "1000",
}
"""Ray on one machine: less memory, and less work while nothing happens."""
# The time for a clean stop. After it, the processes that are left are killed; the whole stop stays under 15 s.
STOP_S = 9.0
GONE_S = 5.0
# The processes that get this time to end by themselves, by words in their names: Serve's actors, engines and proxies.
ENDING = ("ray::Serve", "VLLM::", "haproxy")


def is_alone() -> bool:
    """Return whether the application is to have a Ray of its own, on this host only, instead of one that runs (RAY_ADDRESS)."""
    return os.environ.get("RAY_ADDRESS", "local") == "local"


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for Ray's processes: the caller's, over defaults and `more`, and the variables of this run."""
    # A cluster of its own: Ray would wait for the address that a killed `ray start` has left behind, and the processes of a running
    # cluster do not have this environment.
    defaults = SERVING | (LEAN if is_alone() else {}) | {"RAY_ADDRESS": "local"} | dict(more or {})
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return defaults | os.environ | {RUN: uuid.uuid4().hex, "PYTHONPATH": path}


def remove(path: Path) -> None:
    """Remove a link or a folder, if there is one."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def own_file(name: str, port: int) -> Path:
    """Return the path of a file of the application on this port: `.run/serve.log`, or for another port `.run/serve-8001.log`."""
    path = FILES / name
    return path if port == HttpSettings().port else path.with_stem(f"{path.stem}-{port}")


def of_its_own(settings: Settings, folder: str, ports: IngressPorts) -> dict[str, str]:
    """Return the variables by which an application shares no file and no port with others of this host, of whichever user.

    Where it listens on loopback only, Ray does so, too: with this variable it takes the host's address to be loopback.
    """
    modules = f"deployments.host.loopback,{LEAN['RAY_preload_python_modules']}"  # the first changes what the second imports
    loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_preload_python_modules": modules}
    fallback = {"RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port(settings.http.port))}
    files = {"RAY_TMPDIR": folder, "GRADIO_TEMP_DIR": f"{folder}/gradio"}
    return haproxy_files(folder) | files | fallback | ports.variables() | (loopback if settings.http.is_loopback else {})


def hide_token() -> None:
    """Take Ray's token, which lets in to this user's clusters, from the eyes of others: Ray 2.60.0 lets all users read it."""
    with contextlib.suppress(OSError):
        (Path.home() / ".ray" / "auth_token").chmod(0o600)


def retries(settings: Settings) -> dict[str, str]:
    """Return the variable by which the first failed start of an LLM replica on a CPU is its last: it would fail again.

    On a GPU it may have failed for something that has passed a moment later, such as the memory of an engine that was killed.
    There, Serve's own three attempts stay.
    """
    return {} if settings.llm.num_gpus else {"RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": "1"}


def add_key(variables: dict[str, str]) -> str:
    """Return a key for the launcher's own request, and add it to the `variables` of the processes to start. Nobody else has it."""
    secret, key = keys.make(f"make-serve-{variables[RUN][:8]}")
    variables[keys.ENVIRONMENT] = ",".join(filter(None, [variables.get(keys.ENVIRONMENT), f"{key.name}:{key.sha256}"]))
    return secret


class Application:
    """A running `serve run`, and all processes that descend from it.

    `guarded` says whether it requires API keys; `variables` are more of the environment.
    """

    def __init__(self, arguments: list[str], settings: Settings, guarded: bool, variables: Mapping[str, str] | None = None) -> None:
        self._url = f"http://{settings.http.host.replace('0.0.0.0', '127.0.0.1')}:{settings.http.port}"
        self._settings = settings
        self._folder = TemporaryFolder("satori-run-", "/tmp")
        limits = hard_stop(settings.ingress.graceful_shutdown_timeout_s) | connections(settings.ingress)
        self._ports = IngressPorts()
        own = of_its_own(settings, self._folder.name, self._ports) if is_alone() else {}
        forks = is_alone() and not settings.llm.num_gpus  # a GPU's libraries do not survive a fork
        first = {SOCKET: f"{self._folder.name}/fork.sock"} if forks else {}  # of all variables: it never changes (`become`)
        more = own | limits | retries(settings) | dict(variables or {})
        self._variables = first | environment(more) | cores.variables(settings) | {FOLDER: self._folder.name}
        self._headers = {"content-type": "application/json"}
        if guarded:
            self._headers["authorization"] = f"Bearer {add_key(self._variables)}"
        self._warning = keys.exposed(settings.http, guarded)
        check_port(settings.http.port)
        self._lines: queue.Queue[str] = queue.Queue()
        self._known: set[psutil.Process] = set()
        self._take_place()
        # SCHED_BATCH makes for fewer preemptions: a process that a token has just woken does not push aside the one that sent it.
        # All processes started below inherit it. It saves 6 % of the CPU time that a token costs under load.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        self._forkserver = self._start_forkserver() if forks else None
        command = [sys.executable, "-m", "deployments.launch.driver", "run", "deployments.config", *arguments]
        # A process group of its own, so that only the launcher gets Ctrl-C. Not a session of its own, because Linux divides the CPU
        # by sessions (autogroup): on Linux 6.18, a busy application's session starved others, such as its clients', for seconds.
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=self._variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            process_group=0,
            pass_fds=(self._folder.fileno(),),
            umask=0o077,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _start_forkserver(self) -> subprocess.Popen[bytes]:
        """Start what engines and ingresses are forked from (`deployments.engine.forkserver`). It ends with this process."""
        variables = self._variables | self._settings.llm.env | forkserver.ENVIRONMENT | preloaded()
        with self._log.open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-u", "-m", forkserver.__name__, self._variables[SOCKET]],
                cwd=ROOT,
                env=variables,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
                umask=0o077,
            )

    def _take_place(self) -> None:
        """Show in `.run` of this checkout where the run's files are: its log, its folder and Ray's logs. Raises SatoriError."""
        port = self._settings.http.port
        self._log, self._logs, self._link = (own_file(name, port) for name in ("serve.log", "logs", "run"))
        try:
            make_own(FILES)
        except PermissionError as error:
            raise SatoriError(f"{error}; allowed: a checkout of this user's own") from None
        ray = Path(self._variables.get("RAY_TMPDIR", "/tmp"), "ray", "session_latest", "logs")
        for link, target in ((self._logs, ray), (self._link, Path(self._folder.name))):
            remove(link)
            link.symlink_to(target)
        self._log.touch(0o600)
        self._log.chmod(0o600)
        os.truncate(self._log, 0)
        hide_token()

    def _keep_logs(self) -> None:
        """Move Ray's logs from the run's folder, which goes now, to where the link to them was."""
        self._link.unlink(missing_ok=True)
        target = self._logs.readlink()
        if Path(self._folder.name) in target.parents and target.is_dir():
            self._logs.unlink()
            shutil.move(target.resolve(), self._logs)

    def _read(self) -> None:
        with self._log.open("a") as log:
            for line in self._process.stdout or ():
                log.write(line)
                log.flush()
                if MARK in line:
                    self._lines.put(line)

    def wait_ready(self) -> None:
        """Show the phases until the first answer has come. Raises SatoriError if the application ends first or does not answer."""
        began = time.monotonic()
        ui_reported = not self._settings.ui.enabled
        while not self._get("/ready"):
            self._show_phases()
            if not ui_reported and self._get("/ui/"):
                report("ui", f"{self._url}/ui is open; the API comes later", time.monotonic() - began)
                ui_reported = True
            if self._process.poll() is not None:
                self._reader.join(5)
                raise SatoriError("the application did not start; the end of its log:\n" + _tail(self._log, 40))
            time.sleep(0.2)
        self._show_phases()
        first = time.monotonic()
        body = {"model": self._settings.served_model_name, "prompt": "1", "max_tokens": 1}
        if not self._get("/v1/completions", body):
            raise SatoriError("the application is up but gave no answer; the end of its log:\n" + _tail(self._log, 40))
        report("warm-up", "first answer through the whole path", time.monotonic() - first)
        if both := self._variables.get(cores.VARIABLE):  # not earlier: a start uses both
            cores.pin_to_last(self._descendants(), both)
        report("ready", "", time.monotonic() - began)
        ui = f"\n  UI    {self._url}/ui" if self._settings.ui.enabled else ""
        warn(self._warning)
        write(f"{ui}\n  API   {self._url}/v1   (docs: {self._url}/docs)\n  log   {self._log}\n  Ctrl-C stops it.\n")

    def wait_gone(self) -> None:
        """Return when the application has been shut down from elsewhere (`serve shutdown`), or its process has ended."""
        gone_since: float | None = None
        controller: psutil.Process | None = None
        while self._process.poll() is None:
            if controller is None or not _alive(controller):  # searching all processes every time took 3 % of a core
                controller = next((process for process in self._descendants() if "ServeController" in _name(process)), None)
            alive = controller is not None or self._get("/-/healthz")
            gone_since = None if alive else gone_since or time.monotonic()
            if gone_since and time.monotonic() - gone_since > GONE_S:
                return
            time.sleep(2)

    def drain(self) -> None:
        """Wait until the ongoing requests have ended, at most `llm.graceful_shutdown_timeout_s`; new ones are refused meanwhile."""
        mark = marker(self._variables)
        mark.touch()
        began, left, reported = time.monotonic(), {}, -1
        try:
            while time.monotonic() - began < self._settings.llm.graceful_shutdown_timeout_s:
                if (ingress := self._ingress()) is None:
                    return
                left[ingress["id"]] = ingress["requests"]
                if len(left) == self._settings.ingress.num_replicas and not any(left.values()):
                    return
                if (count := sum(left.values())) and count != reported:
                    report("draining", f"{count} to answer; a second Ctrl-C stops now", time.monotonic() - began)
                    reported = count
                time.sleep(0.2)
        finally:
            mark.unlink(missing_ok=True)

    def _ingress(self) -> dict[str, Any] | None:
        """Return what one of the ingresses reports of itself; None if none answers."""
        try:
            with urllib.request.urlopen(self._url + "/ready", timeout=10) as response:
                body = response.read()
        except urllib.error.HTTPError as error:
            body = error.read()
        except OSError:
            return None
        try:
            found: dict[str, Any] = json.loads(body)["ingress"]
        except (ValueError, KeyError):
            return None
        return found

    def stop(self, now: bool = False) -> None:
        """End all processes of the application: ask them first, then kill them. Returns when none is left."""
        began = time.monotonic()
        with contextlib.suppress(KeyboardInterrupt):
            report("stopping", "")
            self._descendants()  # find them before they lose their parents
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGINT)
            while not now and not self._ended() and time.monotonic() - began < STOP_S:
                time.sleep(0.1)
        if self._forkserver is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._forkserver.communicate(timeout=GONE_S)
        for number in STOPS:  # further signals are ignored: the processes that are left are killed now
            signal.signal(number, signal.SIG_IGN)
        left = self._descendants()
        killed = ", ".join(sorted({_name(process).split(" ")[0].rpartition("/")[2] for process in left}))
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=5)
        report("stopped", f"killed: {killed}"[:52] if left else "", time.monotonic() - began)
        with contextlib.suppress(OSError):
            self._keep_logs()
        self._folder.cleanup()
        self._ports.close()

    def _ended(self) -> bool:
        """Return whether no process is left that must end by itself. Ray's own processes take long, and may be killed then."""
        left = [_name(process) for process in self._descendants()]
        return not any(word in name for name in left for word in ENDING)

    def _descendants(self) -> list[psutil.Process]:
        """Return the live processes that carry this run's name or descend from one seen before, including `serve run` itself.

        Both are checked, because a process that renames itself, as vLLM's do, can overwrite the environment that others read.
        """
        pids = {process.pid for process in self._known}
        for process in psutil.process_iter():  # parents come before their children, nearly always
            with contextlib.suppress(psutil.Error):
                if process.pid not in pids and (process.ppid() in pids or process.environ().get(RUN) == self._variables[RUN]):
                    pids.add(process.pid)
                    self._known.add(process)
        self._known = {process for process in self._known if _alive(process)}
        return list(self._known)

    def _show_phases(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                if found := re.search(rf"{MARK} (\w+): (.+) ([\d.]+) s$", self._lines.get_nowait().rstrip()):
                    report(found[1], found[2], float(found[3]))

    def _get(self, path: str, body: Any = None) -> bool:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, self._headers)
        try:
            with urllib.request.urlopen(request, timeout=30):
                return True
        except (urllib.error.URLError, OSError):
            return False


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _tail(path: Path, lines: int) -> str:
    return "".join(path.read_text().splitlines(keepends=True)[-lines:])
