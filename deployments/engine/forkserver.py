"""The fork server of an application on one CPU host: it imports vLLM once, and engines and ingresses are forked from it.

    python -u -m deployments.engine.forkserver SOCKET

The import takes most of the CPU time of a start, and runs beside Ray's own start. What is imported is in memory once. `make serve`
starts the server and keeps its standard input open; it ends with `make serve`. Its clients are `deployments.host.forked`.

A forked process has what its client would have given to one that it starts: arguments, environment, file descriptors, working
directory, limits. Its parent is this server, which kills it when its client has closed the connection. Ray is not imported here:
its library reads some variables of a worker's environment when it is loaded, and never again.

Linux itself reaps these processes (SIGCHLD is ignored), so nobody learns their status. A parent that asks for it may wait for long:
Linux 6.18 has held one up for minutes, because others had looked at the files in /proc of a process that had ended.
"""

import fcntl
import json
import os
import resource
import runpy
import selectors
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deployments.engine.config import prepare, sparing_logging
from deployments.host.forked import FDS, LENGTH, PID, own_fds
from deployments.host.garbage import no_collecting

ORDER_S = 10.0
"""How long a client may take to send an order."""
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"}
"""What the server itself needs: a process that has threads cannot be forked, and NumPy's OpenBLAS would start some."""


@dataclass(frozen=True)
class Order:
    """A process to fork, as `deployments.host.forked.Forked` describes it. `received` are the file descriptors for `fds`."""

    arguments: list[str]
    environment: dict[str, str]
    fds: list[int]
    folder: str
    files: tuple[int, int]
    oom_score: int
    received: list[int] = field(default_factory=list)


def load() -> None:
    """Import of vLLM what an engine and an ingress need."""
    prepare({"VLLM_TARGET_DEVICE": "cpu"})
    sys.modules["ray"] = None  # type: ignore[assignment]  # vLLM goes on without it
    try:
        with sparing_logging(), no_collecting():
            import vllm.engine.arg_utils
            import vllm.entrypoints.launchers.api_server.app_state
            import vllm.entrypoints.launchers.app
            import vllm.entrypoints.launchers.cli_args
            import vllm.v1.engine.async_llm
            import vllm.v1.engine.core
            import vllm.v1.executor
            import vllm.v1.worker.cpu_worker  # noqa: F401
    finally:
        del sys.modules["ray"]


class Server:
    """Forks processes until its standard input is closed."""

    def __init__(self, path: str) -> None:
        """Listen. Orders wait until `serve`."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(64)
        self._selector = selectors.DefaultSelector()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        self._clients: dict[socket.socket, int] = {}

    def serve(self) -> Order | None:
        """Fork what is ordered. Returns the order in the forked process; None in the server, once its standard input is closed."""
        self._selector.register(0, selectors.EVENT_READ, self._end)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        while True:
            key, _ = self._selector.select()[0]  # one at a time: what it closes, others of these may be of
            done, order = key.data(key.fileobj)
            if done:
                return order

    def _end(self, _: Any) -> tuple[bool, None]:
        return not os.read(0, 1), None

    def _accept(self, _: Any) -> tuple[bool, Order | None]:
        client, _ = self._listener.accept()
        client.settimeout(ORDER_S)
        try:
            order = read(client)
        except (OSError, TypeError, ValueError) as error:
            print(f"the fork server got no order: {type(error).__name__}: {error}", file=sys.stderr)
            client.close()
            return False, None
        pid = os.fork()
        if pid == 0:
            return True, order
        for fd in order.received:
            os.close(fd)
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:  # it has ended already
            client.close()
            return False, None
        with suppress(OSError):
            socket.send_fds(client, [pid.to_bytes(PID, "big")], [pidfd])
        self._clients[client] = pidfd
        self._selector.register(client, selectors.EVENT_READ, self._closed)
        self._selector.register(pidfd, selectors.EVENT_READ, lambda pidfd: self._forget(pidfd, client))
        return False, None

    def _closed(self, client: socket.socket) -> tuple[bool, None]:
        """A client has closed its connection: its process is killed."""
        self._selector.unregister(client)
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._clients.pop(client), signal.SIGKILL)
        client.close()
        return False, None

    def _forget(self, pidfd: int, client: socket.socket) -> tuple[bool, None]:
        """A process has ended: nothing is left to kill when its client closes the connection."""
        self._selector.unregister(pidfd)
        os.close(pidfd)
        if self._clients.pop(client, None) is not None:
            self._selector.unregister(client)
            client.close()
        return False, None


def read(client: socket.socket) -> Order:
    """Return a client's order. Raises OSError, TypeError or ValueError where it sends none."""
    head, received, _, _ = socket.recv_fds(client, LENGTH, FDS)
    try:
        text, length = b"", int.from_bytes(head, "big")
        while len(text) < length:
            if not (part := client.recv(length - len(text))):
                raise ConnectionResetError("it has closed the connection")
            text += part
        return Order(**json.loads(text), received=received)
    except BaseException:
        for fd in received:
            os.close(fd)
        raise


def become(order: Order) -> None:
    """Make of this process, which has been forked, the one that was ordered, and run it."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    above = max(order.fds, default=2) + 1
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, above) for fd in order.received]
    for fd, target in zip(moved, order.fds, strict=True):
        os.dup2(fd, target)
    for fd in own_fds():
        if fd not in order.fds:
            os.close(fd)
    # A variable that has not changed stays where it is, above all the first one: libraries that change a process's title, Ray's and
    # vLLM's, find the place for it by the address of that.
    for name in os.environ.keys() - order.environment.keys():
        del os.environ[name]
    for name, value in order.environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    os.chdir(order.folder)
    resource.setrlimit(resource.RLIMIT_NOFILE, order.files)
    with suppress(OSError):  # lowered by another user than root
        Path("/proc/self/oom_score_adj").write_text(str(order.oom_score))
    sys.path[1:1] = [path for path in order.environment.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    words = order.arguments
    if words[0] == "-m":
        import setproctitle

        setproctitle.setproctitle(" ".join(["python", *words]))
        sys.path[0], sys.argv = order.folder, words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = str(Path(words[0]).parent), words
        runpy.run_path(words[0], run_name="__main__")


def main(path: str) -> Order | None:
    """Serve; returns an order in a process that was forked for it."""
    server = Server(path)
    load()
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        raise RuntimeError("vLLM's import has started threads; nothing can be forked, and every process imports it by itself")
    return server.serve()


if __name__ == "__main__" and (found := main(sys.argv[1])) is not None:
    become(found)
