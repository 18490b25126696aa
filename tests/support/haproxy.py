"""HAProxy by Serve's manager in our environment, before servers of a test."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from deployments.host.environment import SERVING
from deployments.host.proxy import REQUEST_S
from tests.support.ports import free_ports

# Serve's manager without its actor, with our proxy unless told otherwise. For each line that it reads, it changes the servers, or
# replaces HAProxy as for a host that drains; then it prints which process is HAProxy and how many there are.
MANAGER = """
import asyncio, json, sys
from ray.serve._private import haproxy
from ray.serve._private.haproxy import BackendConfig, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions
from deployments.host import environment, proxy

def backends(ports):
    named = ports.items() if isinstance(ports, dict) else [(f"ingress-{port}", port) for port in ports]
    servers = [ServerConfig(name, "127.0.0.1", port) for name, port in named]
    return {"all": BackendConfig(name="all", path_prefix="/", app_name="all", servers=servers)}

async def main(folder, port, stats, metrics, servers, ours, most_old, request_s):
    proxy.REQUEST_S = request_s
    if ours:
        proxy.prepare()
    if most_old is not None:
        proxy.MOST_OLD = most_old
    config = HAProxyConfig(
        socket_path=f"{folder}/admin.sock", server_state_base=folder, server_state_file=f"{folder}/state", stats_port=stats,
        metrics_port=metrics, has_received_routes=True, has_received_servers=True,
        http_options=HTTPOptions(host="127.0.0.1", port=port),
    )
    manager = haproxy.HAProxyApi(config, backends(servers), f"{folder}/haproxy.cfg")
    await manager.start()
    print(json.dumps([manager._proc.pid, 1]), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        servers = json.loads(line)
        if servers is None:
            await (manager.disable() if manager.cfg.pass_health_checks else manager.enable())
        else:
            manager.set_backend_configs(backends(servers))
            await manager.reload()
        print(json.dumps([manager._proc.pid, environment.haproxy_processes("")]), flush=True)
    await manager.stop()

asyncio.run(main(*json.loads(sys.argv[1])))
"""


class HAProxy:
    """HAProxy on `port`, and how many processes of it there are."""

    def __init__(self, port: int, manager: asyncio.subprocess.Process) -> None:
        self.port, self._manager = port, manager
        self.pid = self.processes = 0

    async def seen(self) -> None:
        """Wait until Serve's manager has done what it was told."""
        line = await asyncio.wait_for(self._manager.stdout.readline(), 60)  # type: ignore[union-attr]
        self.pid, self.processes = json.loads(line)

    async def _order(self, servers: Any) -> None:
        self._manager.stdin.write(json.dumps(servers).encode() + b"\n")  # type: ignore[union-attr]
        await self.seen()

    async def replace(self) -> None:
        """Replace it, as Serve does when its host begins to drain, and when that ends."""
        await self._order(None)

    async def use(self, *ports: int, **named: int) -> None:
        """Have it send requests to the servers on these ports, or to those with names."""
        await self._order(named or ports)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a new connection."""
        return await asyncio.open_connection("127.0.0.1", self.port)


@asynccontextmanager
async def haproxy(
    folder: Path,
    servers: Sequence[int],
    variables: Mapping[str, str] = SERVING,
    ours: bool = True,
    most_old: int | None = None,
    request_s: int = REQUEST_S,
) -> AsyncIterator[HAProxy]:
    """Run HAProxy before the servers on these ports, by Serve's manager in this environment."""
    port, *more = free_ports(3)
    arguments = json.dumps([str(folder), port, *more, servers, ours, most_old, request_s])
    few = {} if ours else {"RAY_SERVE_HAPROXY_MAXCONN": "1000"}  # ours takes no more than this host's limit of open files allows
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    manager = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        MANAGER,
        arguments,
        env=os.environ | dict(variables) | few | {"RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg")},
        **pipes,
    )
    running = HAProxy(port, manager)
    try:
        await running.seen()
        yield running
    finally:
        manager.stdin.close()  # type: ignore[union-attr]
        assert await asyncio.wait_for(manager.wait(), 30) == 0
