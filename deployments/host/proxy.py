"""HAProxy under Ray Serve: ingresses come and go while it runs, and a replaced one passes requests on to its successor.

Serve (Ray 2.60.0) starts a new HAProxy whenever the ingresses change. The old one goes on with the replies that it carries, until
its hard stop cuts them, those of healthy ingresses too; and it keeps the list of ingresses that it was started with. Here a change
of the ingresses goes to the running HAProxy over its admin socket. A new HAProxy is started only for what its file alone can
change: an application that comes or goes, a host that drains.

Serve's controller calls `install` when it starts (`RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH` in `deployments.host.environment`).
Goes when Serve does this itself (https://github.com/ray-project/ray/issues/66056).
"""

import contextlib
import json
import logging
import os
import resource
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import ray
from ray.serve._private import application_state, controller, haproxy
from ray.serve._private.constants import SERVE_LOGGER_NAME

from deployments.errors import error_body
from deployments.host.folders import make_own
from deployments.patching import patch

logger = logging.getLogger(SERVE_LOGGER_NAME)

Servers = dict[tuple[str, str], str]
"""A HAProxy's servers: backend and name -> address and options, as `add server` takes them."""
MOST_OLD = 32
"""How many replaced HAProxy processes may still carry replies. Of more, the oldest are told to end."""
ANCHOR = "    # Static routing based on path prefixes in decreasing length then alphabetical order\n"
SUCCESSOR = """    # What arrives on a kept connection after this process was replaced goes to the one that listens now.
    use_backend successor if { stopping }
"""
BACKEND = """
backend successor
    server successor {{ '127.0.0.1' if config.frontend_host == '*' else config.frontend_host }}:{{ config.frontend_port }}
"""


PROMETHEUS = """frontend prometheus
    bind :{{ config.metrics_port }}
    mode http
    http-request use-service prometheus-exporter if { path {{ config.metrics_uri }} }
    no log
"""
STATISTICS = """listen stats
  bind *:{{ config.stats_port }}
  stats enable
  stats uri {{ config.stats_uri }}
  stats refresh 1s
"""
OPTIONS = "    option httplog\n"
REQUEST_S = 30
"""Seconds in which a client must have sent its request: the whole of it, or the first 16 KiB. The rest is the ingress' matter."""
FRONTEND = "    bind {{ config.frontend_host }}:{{ config.frontend_port }}\n"
LIMITS = """    # A client's address has a quarter of all connections at most. A proxy on this host stands for many clients.
    tcp-request connection track-sc0 src table addresses
    tcp-request connection reject if { sc0_conn_cur(addresses) gt %(quarter)d } !{ src 127.0.0.0/8 ::1 }
    # When nearly none is left, the address that has most of them gets no more, and health checks still pass.
    tcp-request connection reject if { fe_conn gt %(last)d } { sc0_conn_cur(addresses) gt %(half)d }
    http-request return status 503 content-type application/json hdr Retry-After 1 hdr Connection close string '%(full)s'\
 if { fe_conn gt %(most)d } !{ path -i {{ config.health_check_endpoint }} }
"""
TABLE = """
backend addresses
    stick-table type ipv6 size 100k store conn_cur
"""
EACH, DESCRIPTORS = 2.5, 512
"""How many descriptors HAProxy wants for a connection (two, and half a one for splice()), and beside them, with some to spare."""


def connections() -> int:
    """Return how many connections HAProxy takes: as many as Serve's variable says, if this process may open so many descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed: int = haproxy.RAY_SERVE_HAPROXY_MAXCONN
    return allowed if hard == resource.RLIM_INFINITY else max(1, min(allowed, int((hard - DESCRIPTORS) / EACH)))


def limits(most: int) -> str:
    """Return the lines of the frontend that keep room among `most` connections."""
    message = "the server has as many connections as it takes; try again in a moment"
    full = error_body(message, "OverloadedError", "connections_full")
    shares = {"quarter": most // 4, "half": most // 2, "most": most * 9 // 10, "last": most * 19 // 20}
    return LIMITS % (shares | {"full": json.dumps(full)})


def template() -> str:
    """Return Serve's template of HAProxy's file with our changes. Raises ValueError where it is another version's."""
    most = connections()
    text = haproxy.HAPROXY_CONFIG_TEMPLATE
    for theirs, ours in (
        (ANCHOR, SUCCESSOR + ANCHOR),
        # Whoever may write to the socket runs HAProxy.
        ("mode 666 level admin", "mode 600 level admin"),
        # Two ports on all interfaces that nobody asks: Serve's figures come over the socket.
        (PROMETHEUS, ""),
        (STATISTICS, ""),
        # Without it, half a request is kept for as long as a client may be silent while its reply is written: an hour.
        (OPTIONS, f"    timeout http-request {REQUEST_S}s\n{OPTIONS}"),
        ("    maxconn {{ config.maxconn }}\n", f"    maxconn {most}\n"),
        (FRONTEND, FRONTEND + limits(most)),
    ):
        if text.count(theirs) != 1:
            raise ValueError("Serve's template of HAProxy's file is not that of Ray 2.60.0")
        text = text.replace(theirs, ours)
    return text.rstrip("\n") + BACKEND + TABLE


def split(text: str) -> tuple[str, Servers]:
    """Return HAProxy's file without the lines of its servers, and the servers."""
    kept, servers, backend, options = [], {}, "", ""
    for line in text.splitlines():
        words = line.split()
        if line.startswith(("backend ", "listen ", "frontend ")):
            backend, options = words[1], ""
        elif words[:1] == ["default-server"]:  # `add server` does not apply them
            options = " ".join(word for word in words[1:] if word != "check")
        if words[:1] == ["server"]:
            servers[backend, words[1]] = " ".join([*words[2:], options]).strip()
        else:
            kept.append(line)
    return "\n".join(kept), servers


class Proxy(haproxy.HAProxyApi):
    """Serve's HAProxy of a host."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._file = ""
        self._servers: Servers = {}
        self._leaving: Servers = {}

    async def start(self) -> None:
        """Start HAProxy with the servers known so far."""
        await super().start()
        self._file, self._servers = self._written()

    def _written(self) -> tuple[str, Servers]:
        return split(Path(self.config_file_path).read_text())

    async def _graceful_reload(self) -> None:
        """Bring HAProxy to the state of its file: change its servers if nothing else is new, else replace it."""
        file, servers = self._written()
        if file == self._file and await self._changed(servers):
            return
        await super()._graceful_reload()
        self._file, self._servers, self._leaving = file, servers, {}
        self._end_oldest()

    async def _save_server_state(self) -> None:
        """Keep what is known of the servers for the next HAProxy, except for those that were told to leave or are half added."""
        await super()._save_server_state()
        path = Path(self.cfg.server_state_file)
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if line.startswith("#") or not _in_maintenance(line.split())))

    async def _changed(self, wanted: Servers) -> bool:
        """Change the servers of the running HAProxy to those wanted. Return whether it has them now."""
        try:
            for server in self._servers.keys() & wanted.keys():
                if self._servers[server] != wanted[server]:
                    raise ValueError(f"{server} has become {wanted[server]!r}")
            for server in wanted.keys() - self._servers.keys():
                await self._add(server, wanted[server])
            for server in self._servers.keys() - wanted.keys():
                await self._order(f"set server {'/'.join(server)} state maint")  # it goes on with its replies, and gets no more
                self._leaving[server] = self._servers[server]
        except (RuntimeError, ValueError) as error:
            logger.warning("HAProxy is replaced, because its servers could not be changed: %s", error)
            return False
        self._servers = wanted
        await self._delete_left()
        logger.info("HAProxy (pid %s) has the servers %s.", self._proc and self._proc.pid, sorted(wanted))
        return True

    async def _add(self, server: tuple[str, str], options: str) -> None:
        """Add a server, or take back one that is leaving."""
        path = "/".join(server)
        if self._leaving.get(server) != options:
            await self._order(f"add server {path} {options}", "New server registered.")
            await self._order(f"enable health {path}")
        await self._order(f"set server {path} state ready")
        self._leaving.pop(server, None)

    async def _order(self, command: str, expected: str = "") -> None:
        """Send a command to HAProxy. Raises ValueError when it answers something else, RuntimeError when it does not answer."""
        answer = (await self._send_socket_command(command)).strip()
        if answer != expected:
            raise ValueError(f"{command}: {answer}")

    async def _delete_left(self) -> None:
        """Delete the servers that have left and carry no reply any more; the others are tried again after the next change."""
        for server in sorted(self._leaving):
            with contextlib.suppress(RuntimeError, ValueError):
                await self._order(f"del server {'/'.join(server)}", "Server deleted.")
                del self._leaving[server]

    def _end_oldest(self) -> None:
        self._prune_old_procs()
        for process in self._old_procs[:-MOST_OLD]:
            logger.warning("HAProxy (pid %s) ends with the replies that it carries: %s newer ones do, too.", process.pid, MOST_OLD)
            with contextlib.suppress(ProcessLookupError):
                process.terminate()


def _in_maintenance(fields: list[str]) -> bool:
    """Return whether a line of `show servers state` (HAProxy 2.8) is of a server that gets no requests by order."""
    return len(fields) > 6 and int(fields[6]) & 1 == 1


class Manager(haproxy.HAProxyManager.__ray_actor_class__):
    """Serve's actor that runs HAProxy on a host, with ours."""

    def __init__(self, *args: Any, **options: Any) -> None:
        prepare()
        os.umask(0o077)
        make_own(Path(haproxy.RAY_SERVE_HAPROXY_CONFIG_FILE_LOC).parent)
        super().__init__(*args, **options)


def prepare() -> None:
    """Have Serve's manager of this process run `Proxy`."""
    patch(
        haproxy,
        "HAPROXY_CONFIG_TEMPLATE",
        template(),
        why="a replaced HAProxy (Ray 2.60.0) sends requests on kept connections to the ingresses of its start, alive or not",
        until="https://github.com/ray-project/ray/issues/66056 is closed",
    )
    patch(
        haproxy,
        "HAProxyApi",
        Proxy,
        why="each ingress that comes or goes replaces HAProxy (Ray 2.60.0), which cuts long replies of the others",
        until="https://github.com/ray-project/ray/issues/66056 is closed",
    )


LAST: WeakKeyDictionary[application_state.ApplicationState, str] = WeakKeyDictionary()
"""The last ingress deployments of Serve's applications."""


def ingress_deployment(self: application_state.ApplicationStateManager, name: str) -> str | None:
    """Return the name of an application's ingress deployment; while it has none, the last one. None for one that does not exist."""
    if (state := self._application_states.get(name)) is None:
        return None
    if state.ingress_deployment is not None:
        LAST[state] = state.ingress_deployment
    return LAST.get(state)


def install() -> None:
    """Change Serve's controller, in whose process this is called: it starts `Manager`, and ingresses stay during a redeploy."""
    patch(
        application_state.ApplicationStateManager,
        "get_ingress_deployment_name",
        ingress_deployment,
        why="while `serve deploy` builds an application anew, and when that fails, HAProxy (Ray 2.60.0) has none of its ingresses",
        until="Ray Serve keeps the name of the ingress deployment until it has another",
    )
    patch(
        controller,
        "HAProxyManager",
        ray.remote(num_cpus=0)(Manager),
        why="the controller (Ray 2.60.0) takes no other class for the actor that runs HAProxy",
        until="https://github.com/ray-project/ray/issues/66056 is closed",
    )
