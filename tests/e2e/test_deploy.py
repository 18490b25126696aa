"""The application on a Ray cluster that is there already: `serve deploy` of a config file that names `deployments:config`."""

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from cluster.bench import chaos
from deployments.engine.process import kill
from tests.support.paths import ROOT
from tests.support.processes import output_until
from tests.support.until import until

BIN = Path(sys.executable).parent


@pytest.fixture
def cluster() -> Iterator[dict[str, str]]:
    """A Ray head node; yields the environment that its commands need."""
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "RAY_process_group_cleanup_enabled": "1"}
    environment |= {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
    head = subprocess.Popen(
        [BIN / "ray", "start", "--head", "--block"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
    output_until(head, "Ray runtime started", 60)
    yield environment
    kill(head.pid)
    head.communicate()
    # What a stopped head leaves behind: a plain `serve run` would wait for the cluster at this address.
    Path("/tmp/ray/ray_current_cluster").unlink(missing_ok=True)


def serve_deploy(cluster: dict[str, str], *arguments: str) -> None:
    """Deploy `cluster/serve.yaml` with settings changed, and return when Serve calls the application running."""
    config = yaml.safe_load((ROOT / "cluster" / "serve.yaml").read_text())
    config["applications"][0]["args"] |= dict(word.split("=") for word in arguments)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(config, file)
        file.flush()
        command = [BIN / "serve", "deploy", file.name]
        deployed = subprocess.run(command, cwd=ROOT, env=cluster, capture_output=True, text=True, check=True)
    assert "error" not in deployed.stderr.lower()
    token = (Path.home() / ".ray" / "auth_token").read_text()

    def status() -> str:
        # What `serve status` asks for; that command takes seconds of the CPU time that the application needs.
        url, headers = "http://127.0.0.1:8265/api/serve/applications/", {"Authorization": f"Bearer {token}"}
        told = httpx.get(url, headers=headers, timeout=30)
        application = told.raise_for_status().json()["applications"]["default"]
        assert application["status"] in ("DEPLOYING", "RUNNING"), application
        return str(application["status"])

    until(status, "the application runs", 180, holds=lambda found: found == "RUNNING", every_s=0.5)


class Load:
    """Chats that are streamed one after another by several clients, until `stop`."""

    def __init__(self) -> None:
        self.replies: list[chaos.Reply] = []
        self.different = 0
        self._going_on = True
        self._threads = [threading.Thread(target=asyncio.run, args=(self._ask(number),)) for number in range(3)]
        for thread in self._threads:
            thread.start()

    async def _ask(self, number: int) -> None:
        first: chaos.Reply | None = None
        async with chaos.client("http://127.0.0.1:8000") as http:
            while self._going_on:
                reply = chaos.Reply()
                await reply.read(http, chaos.question(number))
                self.replies.append(reply)
                first = first or reply
                self.different += not reply.same(first)

    def until(self, replies: int) -> None:
        """Wait for so many more replies."""
        wanted = len(self.replies) + replies
        until(lambda: len(self.replies), f"{wanted} replies", 120, holds=lambda found: found >= wanted, every_s=0.1)

    def stop(self) -> None:
        self._going_on = False
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive(), "a chat goes on"


@pytest.mark.timeout(400)
def test_serve_deploy_and_a_rolling_redeploy_under_load(cluster: dict[str, str]) -> None:
    replicas = ("ingress.num_replicas=2", "ingress.num_cpus=0.3", "llm.num_cpus=0.3", "ui.enabled=false")
    serve_deploy(cluster, *replicas)
    with httpx.Client(base_url="http://127.0.0.1:8000", timeout=30) as http:
        assert http.get("/v1/models").json()["data"][0]["max_model_len"] == 2048
    load = Load()
    try:
        load.until(12)
        serve_deploy(cluster, *replicas, "engine.max_model_len=3072")
        load.until(12)
    finally:
        load.stop()
    assert [reply.errors for reply in load.replies if not reply.well] == []
    assert load.different == 0
    with httpx.Client(base_url="http://127.0.0.1:8000", timeout=30) as http:
        assert http.get("/v1/models").json()["data"][0]["max_model_len"] == 3072
