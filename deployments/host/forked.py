"""Processes that are forked from one that has imported vLLM (`deployments.engine.forkserver`), instead of started anew.

    python -IS deployments/host/forked.py SCRIPT [ARGUMENT ...]

runs a script of Python's in such a process, and ends with it; where there is no fork server, in a process of its own. Ray
starts an ingress's worker with it, and setup takes it tens of milliseconds: it imports nothing but Python's own library.
"""

import json
import os
import resource
import select
import shlex
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

SOCKET = "SATORI_FORK_SERVER"
"""The environment variable with the path of the fork server's socket. It is that server's first variable."""
LENGTH, PID = 4, 4
"""Bytes of the length that precedes an order, and of a process's number."""
FDS = 64


class Forked:
    """A process that the fork server has forked.

    It is killed when this end of its connection is closed, as when this process dies.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], fds: Mapping[int, int]) -> None:
        """Fork it. `arguments` are those of `python`: a script, or -m and a module, and what they get; `fds` are the process's file
        descriptors, from its numbers to ours. It has our working directory and our limits. Raises OSError where no server answers.
        """
        if SOCKET not in os.environ:
            raise FileNotFoundError(f"{SOCKET} is not set: there is no fork server")
        self.ended = False
        self._lock = threading.Lock()
        self._connection = socket.socket(socket.AF_UNIX)
        try:
            self._connection.connect(os.environ[SOCKET])
            order = json.dumps(_order(arguments, environment, list(fds))).encode()
            socket.send_fds(self._connection, [len(order).to_bytes(LENGTH, "big")], list(fds.values()))
            self._connection.sendall(order)
            # An answer comes when the server has imported vLLM, none when it has failed.
            answer, found, _, _ = socket.recv_fds(self._connection, PID, 1)
            if not found:
                raise ConnectionResetError(f"{os.environ[SOCKET]}: the fork server has ended")
        except BaseException:
            self._connection.close()
            raise
        self.pid = int.from_bytes(answer, "big")
        self._pidfd = found[0]

    def wait(self) -> None:
        """Return when it has ended; its status is not known."""
        with self._lock:
            if not self.ended:
                poller = select.poll()
                poller.register(self._pidfd, select.POLLIN)
                poller.poll()
                self.ended = True
                os.close(self._pidfd)
                self._connection.close()


def _order(arguments: Sequence[str], environment: Mapping[str, str], fds: list[int]) -> dict[str, object]:
    return {
        "arguments": list(arguments),
        "environment": dict(environment),
        "fds": fds,
        "folder": str(Path.cwd()),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "oom_score": int(Path("/proc/self/oom_score_adj").read_text()),
    }


def python() -> str | None:
    """Return what Ray is to start an ingress's worker with instead of `python`; None where there is no fork server."""
    return shlex.join([sys.executable, "-IS", __file__]) if SOCKET in os.environ else None


def own_fds() -> list[int]:
    """Return the open file descriptors of this process, without the one with which they are listed."""
    return [fd for fd in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()] if _is_open(fd)]


def main(words: list[str]) -> None:
    """Run a script (its path, and its arguments) in a forked process, or else in this one."""
    try:
        process = Forked(words, os.environ, {fd: fd for fd in own_fds()})
    except OSError:
        os.execv(sys.executable, [sys.executable, *words])
    process.wait()


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
