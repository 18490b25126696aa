"""`make monitoring`: run Prometheus, and Grafana and Alertmanager if they are installed, for a running application.

    python -m monitoring.serve [--url http://127.0.0.1:8000]

Prints the addresses. Ctrl-C, SIGTERM or a terminal that closes stop all of them. Data is kept in `.run/monitoring`. If none of them
is installed, use Docker: `docker compose -f monitoring/compose.yaml up`.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RUN = HERE.parent / ".run" / "monitoring"
APPLICATION = "http://127.0.0.1:8000"
PROMETHEUS_PORT, ALERTMANAGER_PORT, GRAFANA_PORT = 9090, 9093, 3000
GRAFANA_HOMES = (Path("/usr/share/grafana"), Path("/usr/local/share/grafana"), Path("/opt/grafana"))
START_S, STOP_S = 30.0, 10.0
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that stop all; the last one is that of a terminal that closes."""


class Server:
    """A process with an HTTP address. It has a process group of its own, so that Ctrl-C is not sent to it, too."""

    def __init__(
        self, name: str, command: list[str], url: str, ready: str, log: Path, environment: dict[str, str] | None = None
    ) -> None:
        self.name, self.url, self._ready, self._log = name, url, url + ready, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | (environment or {}), process_group=0
            )

    def wait_ready(self) -> None:
        """Return once it answers. Raises RuntimeError if it ends before, or does not answer in time."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(self._ready, timeout=5):
                return
            time.sleep(0.1)
        raise RuntimeError(f"{self.name} did not start:\n" + "".join(self._log.read_text().splitlines(keepends=True)[-20:]))

    def stop(self) -> None:
        """End it; kill it if it does not end in time."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Prometheus(Server):
    """A Prometheus that scrapes the application at the URL `application`, with its data in `folder`.

    `interval` replaces the scrape and evaluation intervals, for tests.
    """

    def __init__(self, application: str, folder: Path, port: int = PROMETHEUS_PORT, interval: str | None = None) -> None:
        text = (HERE / "prometheus.yml").read_text().replace(APPLICATION, application).replace("rules/", f"{HERE / 'rules'}/")
        if interval is not None:
            text = text.replace("interval: 5s", f"interval: {interval}")
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "prometheus.yml"
        config.write_text(text)
        super().__init__(
            "prometheus",
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--storage.tsdb.retention.time=35d",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            f"http://127.0.0.1:{port}",
            "/-/ready",
            folder / "prometheus.log",
        )

    def get(self, path: str, **parameters: Any) -> Any:
        """Return the data of an answer of its API (`query`, `query_range`, `targets`, ...). Raises urllib's HTTPError."""
        return get(self.url, path, **parameters)


def get(url: str, path: str, **parameters: Any) -> Any:
    """Return the data of an answer of a Prometheus' API."""
    with urllib.request.urlopen(f"{url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=30) as response:
        return json.load(response)["data"]


def grafana() -> Server | None:
    """Start Grafana with our dashboards; return None if it is not installed."""
    program = shutil.which("grafana")
    home = next((home for home in GRAFANA_HOMES if (home / "public").is_dir()), None)
    if program is None or home is None:
        return None
    environment = {
        "GF_PATHS_PROVISIONING": str(HERE / "provisioning"),
        "GF_PATHS_DATA": str(RUN / "grafana"),
        "GF_SERVER_HTTP_ADDR": "127.0.0.1",
        "GF_SERVER_HTTP_PORT": str(GRAFANA_PORT),
        "GF_AUTH_ANONYMOUS_ENABLED": "true",
        "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer",
        "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": str(HERE / "grafana" / "satori-overview.json"),
        "SATORI_DASHBOARDS": str(HERE / "grafana"),
    }
    command = [program, "server", "--homepath", str(home)]
    return Server("grafana", command, f"http://127.0.0.1:{GRAFANA_PORT}", "/api/health", RUN / "grafana.log", environment)


def alertmanager() -> Server | None:
    """Start Alertmanager; return None if it is not installed. Debian's program has another name."""
    program = shutil.which("alertmanager") or shutil.which("prometheus-alertmanager")
    if program is None:
        return None
    command = [
        program,
        f"--config.file={HERE / 'alertmanager.yml'}",
        f"--storage.path={RUN / 'alertmanager'}",
        f"--web.listen-address=127.0.0.1:{ALERTMANAGER_PORT}",
        "--cluster.listen-address=",
    ]
    return Server("alertmanager", command, f"http://127.0.0.1:{ALERTMANAGER_PORT}", "/-/ready", RUN / "alertmanager.log")


def taken(port: int) -> bool:
    """Return whether some process listens on a port of this host."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def main(arguments: list[str]) -> int:
    """Run them until stopped; return the exit status."""
    parser = argparse.ArgumentParser(description="Prometheus, Grafana and Alertmanager for a running application.")
    parser.add_argument("--url", default=APPLICATION, help="where the application answers")
    url = parser.parse_args(arguments).url.rstrip("/")
    interrupt_by_signals()
    if shutil.which("prometheus") is None:
        print("error: prometheus is not installed: apt install prometheus, or with Docker:", file=sys.stderr)
        print("  docker compose -f monitoring/compose.yaml up", file=sys.stderr)
        return 1
    if port := next(filter(taken, (PROMETHEUS_PORT, ALERTMANAGER_PORT, GRAFANA_PORT)), None):
        print(f"error: port {port} is taken; is it running already?", file=sys.stderr)
        return 1
    starts: list[Callable[[], Server | None]] = [lambda: Prometheus(url, RUN, PROMETHEUS_PORT), alertmanager, grafana]
    return keep(starts, f"  scrapes       what {url}/metrics/targets lists\n  Ctrl-C stops it.")


def interrupt_by_signals() -> None:
    """Let `STOPS` raise KeyboardInterrupt, as Ctrl-C does, so that no server is left behind."""
    for number in STOPS:  # SIGINT too: a shell's background job ignores it
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # `nohup` outlives its terminal
            signal.signal(number, signal.default_int_handler)


def keep(starts: Iterable[Callable[[], Server | None]], last_words: str) -> int:
    """Start the servers, print their addresses, and keep them until one ends or a signal comes; return the exit status."""
    servers: list[Server] = []
    try:
        for start in starts:
            if (server := start()) is not None:
                servers.append(server)
        for server in servers:
            server.wait_ready()
            print(f"  {server.name:<13} {server.url}", flush=True)
        for missing in {"grafana", "alertmanager"} - {server.name for server in servers}:
            print(f"  {missing:<13} not installed", flush=True)
        print(last_words, flush=True)
        while all(server.process.poll() is None for server in servers):
            time.sleep(0.5)
        print("error: a part has ended; see", RUN, file=sys.stderr)
        return 1
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        for number in STOPS:  # a terminal that closes sends more than one signal
            signal.signal(number, signal.SIG_IGN)
        for server in servers:
            server.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
