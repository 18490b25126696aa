"""Replicas that only their own host reaches."""

import subprocess
import sys

from tests.support.paths import ROOT

CODE = """
import deployments.host.loopback, deployments.host.lean
from concurrent.futures import ThreadPoolExecutor
import grpc, psutil
from ray.serve._private import replica
server = grpc.server(ThreadPoolExecutor(1))
port = replica.add_port_to_grpc_server(server, "[::]:0")
server.start()
print({found.laddr.ip.removeprefix("::ffff:") for found in psutil.Process().net_connections("tcp") if found.laddr.port == port})
"""


def test_a_replicas_server_for_other_replicas_is_on_loopback() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "{'127.0.0.1'}", done.stderr
