"""The environment of Ray's processes: HAProxy as it is to be run tells the application that a client has left."""

import asyncio
import contextlib
import os
import platform
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import ray
from ray._private.utils import check_version_info
from ray.serve._private import constants

from deployments.host.environment import HARD_STOP, HARD_STOP_DEFAULT_S, MARGIN_S, SERVING, cut_replies, haproxy_files, hard_stop
from deployments.settings import IngressSettings
from tests.support.ports import free_ports, listening
from tests.support.until import until_async

# As Ray Serve's (2.60.0, haproxy_templates.py), in what matters here.
CONFIG = """
global
    maxconn 100
    nbthread 1
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option abortonclose
    option splice-request
    option splice-response
listen all
    bind 127.0.0.1:{port}
    http-reuse always
    server only 127.0.0.1:{server}
"""
HEAD, BODY = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n", b"x" * 100
CLIENTS = 14


@asynccontextmanager
async def haproxy(folder: Path, server: int) -> AsyncIterator[int]:
    """Run HAProxy as Serve does, before a server; yield its port."""
    (port,) = free_ports(1)
    config = folder / "haproxy.cfg"
    config.write_text(CONFIG.format(port=port, server=server))
    command = [SERVING["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(config)]
    process = await asyncio.create_subprocess_exec(*command, env=os.environ | SERVING, stderr=asyncio.subprocess.DEVNULL)
    try:
        await until_async(lambda: process.returncode is not None or port in {there for _, there in listening()}, "HAProxy listens")
        assert process.returncode is None
        yield port
    finally:
        process.kill()
        await process.wait()


async def test_clients_that_leave_before_an_answer_are_noticed(tmp_path: Path) -> None:
    came, left = asyncio.Semaphore(0), asyncio.Semaphore(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        came.release()
        await reader.readexactly(len(BODY))
        came.release()
        with contextlib.suppress(ConnectionResetError):
            while await reader.read(1000):
                pass
        left.release()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, haproxy(tmp_path, server.sockets[0].getsockname()[1]) as port, asyncio.timeout(30):
        clients = [(await asyncio.open_connection("127.0.0.1", port))[1] for _ in range(CLIENTS)]
        for part in (HEAD, BODY):  # the body by itself, as clients send it: that is what splice() takes over
            for client in clients:
                client.write(part)
            for _ in clients:
                await came.acquire()
        for client in clients:
            client.close()
        for _ in clients:
            await left.acquire()


@pytest.mark.parametrize(("version", "joins"), [("{0}.{1}.99", True), ("{0}.99.{2}", False)])
def test_hosts_of_a_cluster_have_one_minor_version_of_python(version: str, joins: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray checks it when a host joins, and names both."""
    name = "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL"
    monkeypatch.setenv(name, SERVING[name])
    theirs = version.format(*sys.version_info[:3])
    cluster = {"ray_version": ray.__version__, "python_version": theirs}
    if joins:
        check_version_info(cluster, "a host that joins")
    else:
        with pytest.raises(RuntimeError, match=f"(?s){re.escape(theirs)}.*{platform.python_version()}"):
            check_version_info(cluster, "a host that joins")


@pytest.mark.parametrize(
    ("limit", "longest_s", "fits"),
    [("630", 600, True), ("600", 600, True), ("599", 600, False), (None, 120, True), (None, 121, False)],
)
def test_an_ingress_warns_where_its_host_would_cut_replies(
    limit: str | None, longest_s: float, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(HARD_STOP, raising=False)
    if limit is not None:
        monkeypatch.setenv(HARD_STOP, limit)
    warning = cut_replies(longest_s)
    if fits:
        assert warning is None
    else:
        assert warning is not None
        assert f"ingress.graceful_shutdown_timeout_s={longest_s}" in warning
        assert f"{HARD_STOP}={2 * longest_s + MARGIN_S}" in warning


def test_the_limit_is_one_that_serve_reads_and_its_default_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(constants.__file__).read_text()
    assert f'os.environ.get("{HARD_STOP}", "{HARD_STOP_DEFAULT_S}")' in source
    assert int(SERVING[HARD_STOP]) > IngressSettings().graceful_shutdown_timeout_s
    assert hard_stop(0.5) == {HARD_STOP: str(1 + MARGIN_S)}


def test_haproxys_files_are_in_one_folder_with_room_for_the_node_in_a_sockets_path() -> None:
    """Each variable is one that Serve reads; its default is a folder that two users of a host cannot share."""
    folder = "/tmp/satori-run-12345678"
    files = haproxy_files(folder)
    assert all(Path(file) == Path(folder) or Path(file).parent == Path(folder) for file in files.values())
    source = Path(constants.__file__).read_text()
    assert {name for name in files if f'"{name}"' not in source} == set()
    defaults = set(re.findall(r'"(RAY_SERVE_HAPROXY_\w+)", "/tmp/haproxy-serve', source))
    assert defaults == files.keys()
    assert len(files["RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH"]) + 57 <= 107
