"""What others can reach of an application with the default settings: other hosts, other users, clients that say nothing."""

import asyncio
import contextlib
import os
import resource
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.application import Served
from tests.support.paths import ROOT

LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
NOBODY = 65534
SILENT, HALF = b"", b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100\r\n\r\n{"
"""What a client sends that then waits: nothing, or half a request."""


def test_only_loopback_listens(served: Served) -> None:
    """Of the ports of all its processes, Ray's and Serve's included."""
    processes = [psutil.Process(served.process.pid), *served.processes()]
    sockets = [found for process in processes for found in process.net_connections("tcp") if found.status == psutil.CONN_LISTEN]
    listening = {(found.laddr.ip, found.laddr.port) for found in sockets}
    assert len(listening) > 10
    assert {address for address in listening if address[0] not in LOOPBACK} == set()


def folder() -> Path:
    """Return the folder of the run."""
    return (ROOT / ".run" / "run").readlink()


def own() -> Iterator[Path]:
    """Yield what it has written: the folder of its run with all that is in there, its log, and Ray's token."""
    yield from (folder(), *folder().rglob("*"), ROOT / ".run" / "serve.log", Path.home() / ".ray" / "auth_token")


def as_nobody(act: Callable[[], object]) -> list[str]:
    """Return what an act in a process of another user printed as allowed; needs root."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            for line in act() or []:  # type: ignore[attr-defined]
                os.write(writing, f"{line}\n".encode())
        except BaseException as error:
            os.write(writing, f"{error!r}\n".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as said:  # noqa: PTH123
        lines = said.read().splitlines()
    os.waitpid(child, 0)
    return lines


@pytest.mark.usefixtures("served")
def test_what_it_writes_is_its_users_own() -> None:
    """Its folder lets nobody else in, so what Ray makes open to all in there is not."""
    for path in (folder(), ROOT / ".run"):
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) == (0o700, os.geteuid())
    for path in (ROOT / ".run" / "serve.log", Path.home() / ".ray" / "auth_token"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    [admin] = folder().glob("*/admin.sock")
    assert stat.S_IMODE(admin.stat().st_mode) == 0o600
    kept = {path: path.lstat() for path in own() if not path.is_symlink() and not path.is_dir() and "ray" not in path.parts}
    assert {path: oct(found.st_mode) for path, found in kept.items() if stat.S_IMODE(found.st_mode) & 0o077} == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
@pytest.mark.usefixtures("served")
def test_another_user_reads_nothing_and_connects_to_nothing() -> None:
    paths = list(own())
    sockets = [path for path in paths if path.is_socket()]
    assert len(sockets) >= 3

    def act() -> Iterator[str]:
        for path in paths:
            with contextlib.suppress(OSError):
                os.close(os.open(path, os.O_RDONLY))
                yield f"read {path}"
        for path in sockets:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                yield f"connected to {path}"
        yield "done"

    assert as_nobody(act) == ["done"]


async def hold(count: int, url: str) -> list[asyncio.StreamWriter]:
    """Open connections that say nothing, or half a request."""
    address = httpx.URL(url)
    writers = []
    for number in range(count):
        _, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(HALF if number % 2 else SILENT)
        writers.append(writer)
    return writers


@pytest.mark.parametrize("count", [500, 5000])
async def test_clients_that_say_nothing_or_half_a_request_keep_nobody_out(served: Served, count: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    writers = await hold(count, served.url)
    try:
        async with httpx.AsyncClient(base_url=served.url, timeout=20, trust_env=False) as http:
            body = {"model": "nano", "prompt": "1", "max_tokens": 1}
            assert (await http.post("/v1/completions", json=body)).status_code == 200
            assert (await http.get("/-/healthz")).status_code == 200
        ended = sum(writer.is_closing() for writer in writers)
        assert ended == 0, "they were there all the time"
    finally:
        for writer in writers:
            writer.transport.abort()


def test_a_page_of_another_name_or_origin_gets_nothing(served: Served) -> None:
    """Not by a name of its own that means this host, nor by a form that its visitor's browser sends, nor by a frame."""
    for path in ("/v1/models", "/ui/", "/metrics", "/docs"):
        refused = httpx.get(f"{served.url}{path}", headers={"host": "evil.example:8000"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (421, "unknown_host")
    form = {"origin": "http://evil.example", "sec-fetch-site": "cross-site"}
    ask = f"{served.url}/ui/ask"
    assert httpx.post(ask, json={}, headers=form).status_code == 403
    assert httpx.post(ask, data={"a": "b"}).status_code == 415
    assert httpx.post(f"{served.url}/ui/gradio_api/upload", files={"files": b"x"}).status_code == 404
    for path, allowed in (("/ui/", "'self'"), ("/docs", "'none'")):
        assert f"frame-ancestors {allowed}" in httpx.get(f"{served.url}{path}").headers["content-security-policy"]
