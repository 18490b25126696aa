"""The application on a Ray cluster that is there already: `serve deploy` of a config file that names `deployments:config`."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import ROOT

BIN = Path(sys.executable).parent


@pytest.fixture
def cluster() -> Iterator[dict[str, str]]:
    """A Ray head node; yields the environment that its commands need."""
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "RAY_process_group_cleanup_enabled": "1"}
    head = subprocess.Popen(
        [BIN / "ray", "start", "--head", "--block"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert head.stdout
    started = any("Ray runtime started" in line for line in head.stdout)
    assert started
    yield environment
    processes = psutil.Process(head.pid).children(recursive=True)
    head.terminate()
    head.communicate(timeout=60)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    # What a stopped head leaves behind: a plain `serve run` would wait for the cluster at this address.
    Path("/tmp/ray/ray_current_cluster").unlink(missing_ok=True)


@pytest.mark.timeout(240)
def test_serve_deploy(cluster: dict[str, str]) -> None:
    deployed = subprocess.run(
        [BIN / "serve", "deploy", "cluster/serve.yaml"], cwd=ROOT, env=cluster, capture_output=True, text=True, check=True
    )
    assert "error" not in deployed.stderr.lower()
    with httpx.Client(base_url="http://127.0.0.1:8000", timeout=30) as http:
        for _ in range(150):
            status = subprocess.run([BIN / "serve", "status"], env=cluster, capture_output=True, text=True, check=True).stdout
            if re.search(r"default:\s+status: RUNNING", status):
                break
            assert "DEPLOY_FAILED" not in status, status
            time.sleep(1)
        body = {"model": "nano", "prompt": "1", "max_tokens": 1}
        answer = http.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        assert http.get("/v1/models").json()["data"][0]["max_model_len"] == 2048
    subprocess.run([BIN / "serve", "shutdown", "-y"], env=cluster, capture_output=True, check=True)
