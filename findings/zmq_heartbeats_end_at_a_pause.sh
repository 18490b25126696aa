#!/usr/bin/env bash
# ZMQ ends a healthy connection after a pause of both its processes, because it looks at its heartbeat's timer before it reads.
#
# Versions: libzmq 4.3.5, as in pyzmq 27.3.0, on Linux.
#
# Expected: ZMQ_HEARTBEAT_TIMEOUT ends a connection whose other side has sent nothing for so long. After a pause (a suspended
#   machine's processes, a debugger, SIGSTOP and SIGCONT) the answer to the last ping is there to be read, so the connection stays.
# Instead: if a ping was on its way when the pause began, the timer has run out when the process goes on, and ZMQ ends the
#   connection before it reads the answer that has been waiting in the socket. Messages in its queues are lost with it.
# Hurt: applications that take the end of a connection for the death of the other side. A pause begins amid a ping seldom, so tests
#   do not find it; with many connections one is always hit. TCP keep-alive (ZMQ_TCP_KEEPALIVE, ZMQ_TCP_MAXRT) finds a host that is
#   cut off as quickly, and the kernel answers it for a stopped process.
#
# Seen:
#   libzmq 4.3.5
#   lost: a pause of 3 s that began with a ping on its way, heartbeats of ZMQ
#   kept: a pause of 3 s that began with a ping on its way, keep-alive of TCP
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyzmq==27.3.0

cat >"$folder/finding.py" <<'PYTHON'
import os
import signal
import subprocess
import sys
import time

import zmq
from zmq.utils.monitor import recv_monitor_message

INTERVAL_MS, TIMEOUT_MS = 100, 1000
PAUSE_S = 3
WANTED = {"heartbeats of ZMQ": "lost", "keep-alive of TCP": "kept"}


def client(port, kind):
    """Connect, with one kind of sign of life; when asked, say whether the connection is still there."""
    socket = zmq.Context().socket(zmq.DEALER)
    if kind == "heartbeats of ZMQ":
        socket.setsockopt(zmq.HEARTBEAT_IVL, INTERVAL_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, TIMEOUT_MS)
    else:
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 1)  # the kernel counts in seconds
        socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 1)
        socket.setsockopt(zmq.TCP_MAXRT, TIMEOUT_MS)
    events = socket.get_monitor_socket(zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED)
    socket.connect(f"tcp://127.0.0.1:{port}")
    assert recv_monitor_message(events)["event"] == zmq.EVENT_CONNECTED
    print("connected", flush=True)
    sys.stdin.readline()
    print("lost" if events.poll(0) else "kept", flush=True)
    os._exit(0)


def server():
    """Listen; ZMQ answers heartbeats by itself."""
    socket = zmq.Context().socket(zmq.ROUTER)
    print(socket.bind_to_random_port("tcp://127.0.0.1"), flush=True)
    sys.stdin.readline()
    os._exit(0)


def start(*arguments):
    return subprocess.Popen([sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def after_a_pause(kind):
    """Stop the server and, with a ping on its way, the client; let the server go on first. Return how the connection is then."""
    one = start("server")
    other = start("client", one.stdout.readline().strip(), kind)
    other.stdout.readline()
    time.sleep(1)
    one.send_signal(signal.SIGSTOP)
    time.sleep(3 * INTERVAL_MS / 1000)
    other.send_signal(signal.SIGSTOP)
    time.sleep(PAUSE_S)
    one.send_signal(signal.SIGCONT)
    time.sleep(1)  # the server's answer now waits at the client
    other.send_signal(signal.SIGCONT)
    time.sleep(1)
    answer = other.communicate("\n")[0].strip()
    one.communicate("\n")
    return answer


if len(sys.argv) > 1:
    globals()[sys.argv[1]](*sys.argv[2:])
else:
    print("libzmq", zmq.zmq_version())
    seen = {kind: after_a_pause(kind) for kind in WANTED}
    for kind, answer in seen.items():
        print(f"{answer}: a pause of {PAUSE_S} s that began with a ping on its way, {kind}")
    sys.exit(0 if seen == WANTED else "different from what was seen")
PYTHON
"$folder/venv/bin/python" "$folder/finding.py"
