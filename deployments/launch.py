"""`make serve`: run `serve run deployments.config` with a fast environment, say what happens, and leave nothing behind.

    python -m deployments.launch [key=value ...]

Checks settings, ports and model first; then starts `serve run` in a process group of its own, shows the start-up phases with their
seconds, and the addresses when the first answer has come through the whole path. Ctrl-C, SIGTERM or a terminal that closes stop it
as soon as the requests that it has are answered, or `llm.graceful_shutdown_timeout_s` is over; new ones are refused meanwhile. A
second one, or `serve shutdown`, stops it at once.
Everything it started carries the environment variable SATORI_RUN, by which it finds and ends what would have stayed (Ray 2.60
can leave `haproxy` and `VLLM::*` processes behind). All output of Ray and vLLM is in `.run/serve.log`.
"""

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import psutil

from deployments import cores, keys
from deployments import settings as settings_module
from deployments.draining import RUN, marker
from deployments.environment import SERVING
from deployments.errors import PortInUseError, SatoriError, SettingsError
from deployments.hardware import lacking
from deployments.phases import MARK
from deployments.settings import MODEL_FILES, ROOT, Settings, is_path

LOG = ROOT / ".run" / "serve.log"
# Seconds for a clean stop, before what is left is killed; the whole stop stays under 15 s.
STOP_S = 9.0
GONE_S = 5.0
# What ends by itself: Serve's actors, engines and proxies, by words of their names.
WHO_END = ("ray::Serve", "VLLM::", "haproxy")
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What stops the application: the last one is a terminal that closes."""
HAPROXY_PORTS = {"RAY_SERVE_HAPROXY_METRICS_PORT": 9101, "RAY_SERVE_HAPROXY_STATS_PORT": 8404}


def environment() -> dict[str, str]:
    """Return the environment for Ray's processes: ours, over defaults that the caller's own environment wins over."""
    # A cluster of its own: the address that a killed `ray start` leaves behind would be waited for, and a running cluster's
    # processes have not this environment.
    defaults = SERVING | {"RAY_ADDRESS": "local"}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return defaults | os.environ | {RUN: uuid.uuid4().hex, "PYTHONPATH": path}


def say(part: str, what: str, seconds: float | None = None) -> None:
    """Print one progress line."""
    with contextlib.suppress(OSError):  # nobody reads any more; what is to be stopped is still to be stopped
        print(f"  {part:<9} {what:<52}" + ("" if seconds is None else f"{seconds:6.1f} s"), flush=True)


def warn(lines: list[str]) -> None:
    """Print a warning, if there is one."""
    for line in lines:
        say("WARNING", line)


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
    """Raise SettingsError when LLM replicas ask for more GPUs than this machine has, where it is to be the whole cluster.

    `address` is Ray's. GPU types are known to Ray only, so the ingress looks at them (`/ready`).
    """
    if address == "local" and (lack := lacking(settings.llm.model_copy(update={"accelerator_type": None}), {"GPU": gpus})):
        raise SettingsError(lack.replace("the cluster", "this machine"))


def _owner(pid: int | None) -> str:
    with contextlib.suppress(psutil.Error):
        if pid is not None:
            return f"process {pid} ({' '.join(psutil.Process(pid).cmdline())[:100]})"
    return "a process of another user"


def fetch_model(settings: Settings) -> None:
    """Have a model's files here, whole: from the Hugging Face hub (or its mirror) where they lack, with progress shown.

    Raises SatoriError when they lack and cannot be had.
    """
    if is_path(settings.model):
        say("model", os.path.relpath(settings.model, ROOT))
        return
    from deployments.weights import Hub, Store, fetch, paced

    say("model", f"{settings.model}, from the hub or its cache")
    began = time.monotonic()
    revision = settings.engine.get("revision")
    store = Store(settings.model, revision, settings.engine.get("download_dir"))
    hub = Hub(settings.model, revision, settings.weights.mirror)
    fetch(store, hub, MODEL_FILES, paced(lambda progress: say("model", progress, time.monotonic() - began)))
    say("model", "complete", time.monotonic() - began)


def add_key(variables: dict[str, str]) -> str:
    """Return a key for our own request, made valid by the environment of the processes to start; nobody else ever has it."""
    made, key = keys.make(f"make-serve-{variables[RUN][:8]}")
    variables[keys.ENVIRONMENT] = ",".join(filter(None, [variables.get(keys.ENVIRONMENT), f"{key.name}:{key.sha256}"]))
    return made


class Application:
    """A running `serve run`, and all processes that descend from it. `guarded`: whether it asks for API keys."""

    def __init__(self, arguments: list[str], settings: Settings, guarded: bool) -> None:
        self._url = f"http://{settings.http.host.replace('0.0.0.0', '127.0.0.1')}:{settings.http.port}"
        self._settings = settings
        self._variables = environment() | cores.parted(settings)
        self._headers = {"content-type": "application/json"}
        if guarded:
            self._headers["authorization"] = f"Bearer {add_key(self._variables)}"
        self._warning = keys.exposed(settings.http, guarded)
        check_ports(settings, self._variables)
        self._lines: queue.Queue[str] = queue.Queue()
        self._known: set[psutil.Process] = set()
        LOG.parent.mkdir(exist_ok=True)
        # Fewer preemptions: a process that a token has just woken does not push aside the one that sent it. Inherited by
        # all that is started below, and worth 6 % of the CPU time a token costs under load.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        command = [str(Path(sys.executable).with_name("serve")), "run", "deployments.config", *arguments]
        # A group, so that Ctrl-C is the launcher's alone; not a session, for Linux shares the CPU out by sessions (autogroup): its
        # 6.18 let a busy application's session starve others, such as its clients', for seconds.
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=self._variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            process_group=0,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with LOG.open("w") as log:
            for line in self._process.stdout or ():
                log.write(line)
                log.flush()
                if MARK in line:
                    self._lines.put(line)

    def wait_ready(self) -> None:
        """Show the phases until a first answer has come. Raises SatoriError when the application ends before."""
        began = time.monotonic()
        ui_told = not self._settings.ui.enabled
        while not self._get("/ready"):
            self._show_phases()
            if not ui_told and self._get("/ui/"):
                say("ui", f"{self._url}/ui is open and waits with you", time.monotonic() - began)
                ui_told = True
            if self._process.poll() is not None:
                self._reader.join(5)
                raise SatoriError("the application did not start; the end of its log:\n" + _tail(LOG, 40))
            time.sleep(0.2)
        self._show_phases()
        first = time.monotonic()
        body = {"model": self._settings.served_model_name, "prompt": "1", "max_tokens": 1}
        if not self._get("/v1/completions", body):
            raise SatoriError("the application is up but gave no answer; the end of its log:\n" + _tail(LOG, 40))
        say("warm-up", "first answer through the whole path", time.monotonic() - first)
        if both := self._variables.get(cores.VARIABLE):  # not before: a start has use for both
            cores.keep_to_the_last(self._descendants(), both)
        say("ready", "", time.monotonic() - began)
        ui = f"\n  UI    {self._url}/ui" if self._settings.ui.enabled else ""
        warn(self._warning)
        print(f"{ui}\n  API   {self._url}/v1   (docs: {self._url}/docs)\n  log   {LOG}\n  Ctrl-C stops it.\n", flush=True)

    def wait_gone(self) -> None:
        """Return when the application has been shut down from elsewhere (`serve shutdown`), or its process has ended."""
        gone_since: float | None = None
        controller: psutil.Process | None = None
        while self._process.poll() is None:
            if controller is None or not _alive(controller):  # looking through all processes every time took 3 % of a core
                controller = next((process for process in self._descendants() if "ServeController" in _name(process)), None)
            alive = controller is not None or self._get("/-/healthz")
            gone_since = None if alive else gone_since or time.monotonic()
            if gone_since and time.monotonic() - gone_since > GONE_S:
                return
            time.sleep(2)

    def drain(self) -> None:
        """Let the requests that are here end, for `llm.graceful_shutdown_timeout_s` at most; new ones are refused meanwhile."""
        mark = marker(self._variables[RUN])
        mark.touch()
        began, left, told = time.monotonic(), {}, -1
        try:
            while time.monotonic() - began < self._settings.llm.graceful_shutdown_timeout_s:
                if (ingress := self._ingress()) is None:
                    return
                left[ingress["id"]] = ingress["requests"]
                if len(left) == self._settings.ingress.num_replicas and not any(left.values()):
                    return
                if (count := sum(left.values())) and count != told:
                    say("draining", f"{count} to answer; once more Ctrl-C stops now", time.monotonic() - began)
                    told = count
                time.sleep(0.2)
        finally:
            mark.unlink(missing_ok=True)

    def _ingress(self) -> dict[str, Any] | None:
        """Return what one of the ingresses says of itself; None if none does."""
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
        """End all processes of the application: asked first, then killed. Returns when none is left."""
        began = time.monotonic()
        with contextlib.suppress(KeyboardInterrupt):
            say("stopping", "")
            self._descendants()  # known before they are left without parents
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGINT)
            while not now and not self._ended() and time.monotonic() - began < STOP_S:
                time.sleep(0.1)
        for number in STOPS:  # what is left is killed, whoever asks again
            signal.signal(number, signal.SIG_IGN)
        left = self._descendants()
        killed = ", ".join(sorted({_name(process).split(" ")[0].rpartition("/")[2] for process in left}))
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=5)
        say("stopped", f"killed: {killed}"[:52] if left else "", time.monotonic() - began)

    def _ended(self) -> bool:
        """Return whether nothing is left that needs to end by itself; Ray's own processes, which take long, may be killed then."""
        left = [_name(process) for process in self._descendants()]
        return not any(word in name for name in left for word in WHO_END)

    def _descendants(self) -> list[psutil.Process]:
        """Return the live processes that carry our mark or descend from one seen before, `serve run` itself among them.

        A process that renames itself, as vLLM's do, can overwrite the environment that others read; so both are looked at.
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
                    say(found[1], found[2], float(found[3]))

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


def main(arguments: list[str]) -> int:
    """Serve until stopped; return the exit status."""
    for number in STOPS:  # also where SIGINT was ignored, as in a shell's background job
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # `nohup` outlives its terminal
            signal.signal(number, signal.default_int_handler)
    try:
        words = {key: value for key, _, value in (word.partition("=") for word in arguments)}
        settings = settings_module.load(words)
        print(f"satori-serve: {settings.served_model_name}, preset {settings.preset}", flush=True)
        guarded = keys.open_store(settings.access.keys, os.environ.get(keys.ENVIRONMENT)) is not None
        warn(keys.exposed(settings.http, guarded))
        check_gpus(settings, environment()["RAY_ADDRESS"], gpus=len(list(Path("/dev").glob("nvidia[0-9]*"))))
        fetch_model(settings)
        application = Application(arguments, settings, guarded)
    except SatoriError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    status, now = 0, False
    try:
        try:
            application.wait_ready()
            application.wait_gone()
        except KeyboardInterrupt:
            with contextlib.suppress(OSError):
                print()  # below the ^C of a terminal
            application.drain()
    except KeyboardInterrupt:
        now = True
    except SatoriError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    application.stop(now)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
