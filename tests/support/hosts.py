"""Hosts of a cluster on this machine: Linux network namespaces with addresses of their own, on one bridge.

Each host also has its own processes (a PID namespace, so that it can be killed as one), /tmp/ray, /tmp/haproxy-serve and /dev/shm.
Needs root, and the programs `ip` (iproute2) and `unshare` (util-linux).
"""

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from cluster.bench.stack import command_line
from tests.support import programs
from tests.support.processes import output_until

SUBNET = "198.18.0"
"""Reserved for tests of networks (RFC 2544), so nobody's own."""
BRIDGE = "satori0"
UNSHARE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
PRIVATE = ("/tmp/ray", "/tmp/haproxy-serve")
STARTED_S = 120


def ip(*words: str) -> None:
    """Run `ip`; raises RuntimeError with what it said where that failed."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def lacking() -> str | None:
    """Return why there can be no such hosts on this machine; None if there can."""
    if why := programs.reason("ip", "unshare", "redis-server"):
        return why
    probe = f"satori-probe-{os.getpid()}"
    try:
        ip("netns", "add", probe)
        done = subprocess.run(
            ["ip", "netns", "exec", probe, *UNSHARE, "mount", "-t", "tmpfs", "x", "/dev/shm"], capture_output=True
        )
    except RuntimeError as error:
        return f"network namespaces are not allowed here: {error}"
    ip("netns", "del", probe)
    return f"namespaces of processes are not allowed here: {done.stderr.decode().strip()}" if done.returncode else None


class Network:
    """The bridge that joins the hosts; this process is on it as `SUBNET`.1."""

    address = f"{SUBNET}.1"

    def up(self) -> None:
        """Make the bridge; one that a killed run left goes first."""
        self.close()
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("addr", "add", f"{self.address}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")

    def close(self) -> None:
        """Remove the bridge."""
        with contextlib.suppress(RuntimeError):
            ip("link", "del", BRIDGE)

    def __enter__(self) -> "Network":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Host:
    """One host on the network, named `name`, at `SUBNET`.`number`. Its files of /tmp are seen from outside in `folder`."""

    def __init__(self, name: str, number: int, folder: Path, slow_link: bool = False) -> None:
        self.address = f"{SUBNET}.{number}"
        self.folder = folder
        self._space = f"satori-{name}"
        self._port = f"satori-{number}"
        self._process: subprocess.Popen[str] | None = None
        self._link: subprocess.Popen[str] | None = None
        with contextlib.suppress(RuntimeError):
            ip("netns", "del", self._space)
        ip("netns", "add", self._space)
        if slow_link:
            self._link = self._relay(f"satori-{number}x")
        else:
            ip("link", "add", self._port, "type", "veth", "peer", "name", "eth0", "netns", self._space)
        ip("link", "set", self._port, "master", BRIDGE, "up")
        ip("-n", self._space, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", self._space, "link", "set", device, "up")

    def _relay(self, inner: str) -> subprocess.Popen[str]:
        """Make the link a pair of TAP devices, joined by a process that can be told to be slow."""
        link = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("slow_link.py"), self._port, inner],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if not (link.stdout and link.stdout.readline()):
            raise RuntimeError("no TAP devices can be made")
        ip("link", "set", inner, "netns", self._space, "name", "eth0")
        return link

    def command(self, *words: str) -> list[str]:
        """Return the command that runs another on this host, in namespaces of its own."""
        private = []
        for path in PRIVATE:
            inside = self.folder / Path(path).name
            inside.mkdir(parents=True, exist_ok=True)
            private.append(f"mkdir -p {path} && mount --bind {shlex.quote(str(inside))} {path}")
        script = " && ".join([*private, "mount -t tmpfs tmpfs /dev/shm", f"exec {shlex.join(map(str, words))}"])
        return ["ip", "netns", "exec", self._space, *UNSHARE, "sh", "-c", script]

    def start(self, *words: str, said: str, cwd: Path, environment: Mapping[str, str]) -> None:
        """Run a command as the host's first process; return when it has printed `said`."""
        self._process = subprocess.Popen(
            self.command(*words), cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        output_until(self._process, said, STARTED_S)

    def processes(self) -> list[psutil.Process]:
        """Return the host's processes."""
        try:
            return psutil.Process(self._process.pid).children(recursive=True) if self._process is not None else []
        except psutil.Error:
            return []

    def listening(self) -> list[tuple[str, int, str]]:
        """Return address, port and command line of each TCP socket that listens here."""
        named = {process.pid: command_line(process) for process in self.processes()}
        done = subprocess.run(["ip", "netns", "exec", self._space, "ss", "-ltnpH"], capture_output=True, text=True, check=True)
        found = []
        for line in done.stdout.splitlines():
            address, _, port = line.split()[3].rpartition(":")
            pids = [int(part.split(",")[0]) for part in line.split("pid=")[1:]]
            found.append((address, int(port), next((named[pid] for pid in pids if pid in named), "?")))
        return found

    def cut(self) -> None:
        """Take the link down, at the other end: here packets just vanish."""
        ip("link", "set", self._port, "down")

    def mend(self) -> None:
        """Take the link up again."""
        ip("link", "set", self._port, "up")

    def slow(self, delay_s: float, loss: float) -> None:
        """Delay what the link carries, in both directions, and lose this share of it. Only where made with `slow_link`."""
        if self._link is None or self._link.stdin is None:
            raise RuntimeError("the link of this host cannot be slow")
        self._link.stdin.write(f"{delay_s} {loss}\n")
        self._link.stdin.flush()

    def kill(self) -> None:
        """Kill all processes of the host at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None

    def close(self) -> None:
        """Remove the host."""
        self.kill()
        if self._link is not None:
            self._link.kill()
            self._link.communicate()
        with contextlib.suppress(RuntimeError):
            ip("netns", "del", self._space)
        with contextlib.suppress(RuntimeError):
            ip("link", "del", self._port)
