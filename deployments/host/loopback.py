"""Replicas that only their own host reaches: Ray's workers import this before they are given work (`deployments.launch.serve_run`).

A replica of Ray Serve takes calls of other replicas on all interfaces, also where Ray itself is on loopback. This is imported
before Serve, whose modules keep what they have imported.
"""

from typing import Any

from ray._common import tls_utils

from deployments.patching import patch

EVERYWHERE, HERE = "[::]:", "127.0.0.1:"
add_port = tls_utils.add_port_to_grpc_server


def add_port_here(server: Any, address: str) -> int:
    """Have a gRPC server listen on loopback where it was to listen on all interfaces; return the port."""
    port: int = add_port(server, address.replace(EVERYWHERE, HERE))
    return port


patch(
    tls_utils,
    "add_port_to_grpc_server",
    add_port_here,
    why="a replica (Ray 2.60.0) takes calls of other replicas on all interfaces",
    until="it listens on its node's address",
)
