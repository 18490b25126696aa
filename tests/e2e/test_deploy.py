"""The application on a Ray cluster that is there already: `serve deploy` of a config file that names `deployments:config`."""

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from conftest import ROOT

from cluster import chaos
from deployments.engine_process import kill

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
    assert head.stdout
    started = any("Ray runtime started" in line for line in head.stdout)
    assert started
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
    while True:  # bounded by the test's time limit
        # What `serve status` asks for; that command takes seconds of the CPU time that the application needs.
        told = httpx.get("http://127.0.0.1:8265/api/serve/applications/", headers={"Authorization": f"Bearer {token}"})
        application = told.raise_for_status().json()["applications"]["default"]
        if application["status"] == "RUNNING":
            return
        assert application["status"] == "DEPLOYING", application
        time.sleep(0.5)


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

    def stop(self) -> None:
        self._going_on = False
        for thread in self._threads:
            thread.join()


@pytest.mark.timeout(400)
def test_serve_deploy_and_a_rolling_redeploy_under_load(cluster: dict[str, str]) -> None:
    replicas = ("ingress.num_replicas=2", "ingress.num_cpus=0.3", "llm.num_cpus=0.3", "ui.enabled=false")
    serve_deploy(cluster, *replicas)
    with httpx.Client(base_url="http://127.0.0.1:8000", timeout=30) as http:
        assert http.get("/v1/models").json()["data"][0]["max_model_len"] == 2048
    load = Load()
    try:
        while len(load.replies) < 12:
            time.sleep(0.1)
        serve_deploy(cluster, *replicas, "engine.max_model_len=3072")
        so_far = len(load.replies)
        while len(load.replies) < so_far + 12:
            time.sleep(0.1)
    finally:
        load.stop()
    assert [reply.errors for reply in load.replies if not reply.well] == []
    assert load.different == 0
    with httpx.Client(base_url="http://127.0.0.1:8000", timeout=30) as http:
        assert http.get("/v1/models").json()["data"][0]["max_model_len"] == 3072
