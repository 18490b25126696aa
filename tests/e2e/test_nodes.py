"""A node that dies, as two raylets on this host: its streams go on on the other node, where its replica is started again."""

import asyncio
import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import ROOT

from cluster import chaos
from deployments.environment import SERVING

BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | SERVING | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
SETTINGS = {"llm.num_replicas": 2, "llm.num_cpus": 1.9, "ingress.num_cpus": 0.1, "ui.enabled": False}
SETTINGS |= {"ingress.label_selector": {"part": "front"}}  # on the first node: clients' connections cannot move
# Beside those of the first node, which has the defaults.
PORTS = "--dashboard-agent-listen-port=52400 --dashboard-agent-grpc-port=52401 --min-worker-port=20000 --max-worker-port=20999"


class Nodes(chaos.Stack):
    """Two nodes of a Ray cluster, and the application on them."""

    def __init__(self, folder: Path) -> None:
        self.first = self._start("--head", "--num-cpus=4", "--labels=part=front")
        self.second = self._start("--address=127.0.0.1:6379", "--num-cpus=2", *PORTS.split())
        super().__init__("http://127.0.0.1:8000", psutil.Process(self.first.pid))
        config = yaml.safe_load((ROOT / "cluster" / "serve.yaml").read_text())
        config["proxy_location"] = "HeadOnly"  # both proxies would want port 8000
        config["applications"][0]["args"] = {"preset": "nano-cpu"} | SETTINGS
        (folder / "serve.yaml").write_text(yaml.safe_dump(config))
        subprocess.run([BIN / "serve", "deploy", folder / "serve.yaml"], cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True)

    @staticmethod
    def _start(*words: str) -> subprocess.Popen[str]:
        command = [BIN / "ray", "start", *words, "--block"]
        process = subprocess.Popen(
            command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        said = ""
        for line in process.stdout or ():
            said += line
            if "Ray runtime started" in line:
                return process
        raise RuntimeError(f"ray {' '.join(words)} did not start:\n{said}")

    def on(self, node: subprocess.Popen[str]) -> list[psutil.Process]:
        """Return the processes of a node."""
        try:
            return [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]
        except psutil.Error:
            return []

    def named(self, part: str) -> list[psutil.Process]:
        """Return the cluster's processes with `part` in their command line."""
        return [process for node in (self.first, self.second) for process in self.on(node) if part in chaos.words(process)]

    def kill(self, node: subprocess.Popen[str]) -> None:
        """Kill all processes of a node at once."""
        for process in self.on(node):
            with contextlib.suppress(psutil.Error):
                process.kill()
        node.wait(30)
        if node.stdout is not None:
            node.stdout.close()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(tmp_path)
    yield made
    for node in (made.second, made.first):
        made.kill(node)
    Path("/tmp/ray/ray_current_cluster").unlink(missing_ok=True)  # where `ray start` notes its address, which is no more


@pytest.mark.timeout(300)
async def test_a_dead_node_loses_no_stream(nodes: Nodes) -> None:
    async with chaos.client(nodes.url) as http:
        await nodes.whole(http)
        assert len([process for process in nodes.on(nodes.second) if "ServeReplica:default:LLM" in chaos.words(process)]) == 1
        wanted = await chaos.calm(http)
        replies = [chaos.Reply() for _ in wanted]
        reading = asyncio.gather(*(reply.read(http, chaos.question(number)) for number, reply in enumerate(replies)))
        wait_for = random.Random(3).randrange(500, 3000)
        while sum(reply.chunks for reply in replies) < wait_for:
            await asyncio.sleep(0.001)
        nodes.kill(nodes.second)
        await reading
        different = [number for number, (reply, other) in enumerate(zip(replies, wanted, strict=True)) if not reply.same(other)]
        assert not different, replies[different[0]]
        await nodes.whole(http)  # the second one is on the first node now
