"""HAProxy as Ray Serve's manager runs it in our environment: clients do not notice that it is replaced, as for each new ingress."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deployments.host import environment
from deployments.host.environment import HARD_STOP, SERVING, hard_stop
from tests.support.ports import free_ports
from tests.support.until import until_async

RELOADS = 10
CLIENTS = 12
# Serve's manager without its actor: prints a line when HAProxy runs, and for each line it reads when HAProxy has been replaced.
MANAGER = """
import asyncio, sys
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

async def main(folder, port, stats, metrics, server):
    config = HAProxyConfig(
        socket_path=f"{folder}/admin.sock", server_state_base=folder, server_state_file=f"{folder}/state", stats_port=stats,
        metrics_port=metrics, has_received_routes=True, has_received_servers=True,
        http_options=HTTPOptions(host="127.0.0.1", port=port),
    )
    backend = BackendConfig(name="all", path_prefix="/", app_name="all", servers=[ServerConfig("only", "127.0.0.1", server)])
    manager = HAProxyApi(config, {"all": backend}, f"{folder}/haproxy.cfg")
    await manager.start()
    print("runs", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        await manager.reload()
        print("replaced", flush=True)
    await manager.stop()

asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
"""
REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n" + b"x" * 100
REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK = b"1\r\nx\r\n"
LONGEST_S = 6


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of a connection, and HAProxy's checks."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            if head.startswith(b"POST"):
                await reader.readexactly(100)
                await asyncio.sleep(0.003)
            writer.write(REPLY)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


@asynccontextmanager
async def haproxy(
    folder: Path, port: int, server: int, variables: Mapping[str, str] = SERVING
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Run HAProxy on `port` before `server`, by Serve's manager in this environment; yield what replaces it."""
    command = [sys.executable, "-c", MANAGER, str(folder), *map(str, (port, *free_ports(2), server))]
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    process = await asyncio.create_subprocess_exec(*command, env=os.environ | dict(variables), **pipes)
    orders, done = process.stdin, process.stdout
    assert orders is not None
    assert done is not None

    async def replace() -> None:
        orders.write(b"\n")
        assert await asyncio.wait_for(done.readline(), 30) == b"replaced\n"

    try:
        assert await asyncio.wait_for(done.readline(), 60) == b"runs\n"
        yield replace
    finally:
        orders.close()
        assert await asyncio.wait_for(process.wait(), 30) == 0


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Send a request and read its reply; return whether the connection goes on."""
    writer.write(REQUEST)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    await reader.readexactly(2)
    return b"connection: close" not in head.lower()


async def test_no_request_is_lost_when_haproxy_is_replaced(tmp_path: Path) -> None:
    """Neither on a new connection nor on one that has been used before."""
    over = False
    answered = 0

    async def client(port: int, reuse: bool) -> None:
        nonlocal answered
        while not over:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            while await ask(reader, writer) and reuse and not over:
                answered += 1
                await asyncio.sleep(0.001)
            answered += 1
            writer.close()

    (port,) = free_ports(1)
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, haproxy(tmp_path, port, server.sockets[0].getsockname()[1]) as replace, asyncio.TaskGroup() as clients:
        for number in range(CLIENTS):
            clients.create_task(client(port, reuse=bool(number % 2)))
        for _ in range(RELOADS):
            before = answered
            await replace()
            wanted = before + CLIENTS
            await until_async(lambda: answered, f"{wanted} answers", holds=lambda count, most=wanted: count >= most, every_s=0.001)
        over = True


async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each request with a stream of `LONGEST_S`; HAProxy's checks at once."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            if not head.startswith(b"POST"):
                writer.write(REPLY)
                continue
            await reader.readexactly(100)
            writer.write(STREAM)
            for _ in range(LONGEST_S * 10):
                writer.write(CHUNK)
                await asyncio.sleep(0.1)
            writer.write(b"0\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


@pytest.mark.parametrize("whole", [True, False])
async def test_a_stream_outlasts_a_replaced_haproxy_as_long_as_the_settings_allow(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of a healthy ingress, too. With a limit of which nobody has thought, shorter than the stream, it is cut."""
    monkeypatch.setattr(environment, "MARGIN_S", 1)
    limit = hard_stop(LONGEST_S) if whole else {HARD_STOP: "2"}
    (port,) = free_ports(1)
    server = await asyncio.start_server(stream, "127.0.0.1", 0)
    async with server, haproxy(tmp_path, port, server.sockets[0].getsockname()[1], SERVING | limit) as replace:
        assert f"hard-stop-after {limit[HARD_STOP]}s" in (tmp_path / "haproxy.cfg").read_text()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        received = await reader.readuntil(CHUNK)
        for _ in range(2):
            await replace()
        received += await asyncio.wait_for(reader.read() if not whole else reader.readuntil(b"0\r\n\r\n"), 30)
        writer.close()
        assert received.endswith(b"0\r\n\r\n") == whole
        assert (received.count(CHUNK) == LONGEST_S * 10) == whole
