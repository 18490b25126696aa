"""TCP ports of this machine: free ones, and those that somebody listens on."""

import socket

import psutil


def free_ports(number: int) -> list[int]:
    """Return ports that nobody listens on."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def listening() -> set[tuple[str, int]]:
    """Return the addresses and ports that somebody listens on."""
    connections = psutil.net_connections("tcp")
    return {(found.laddr.ip, found.laddr.port) for found in connections if found.status == psutil.CONN_LISTEN and found.laddr}
