"""The application without an engine, by plain `serve run`: the ingress stands on its own, in Serve's default mode too.

`SATORI_SERVE` may name the `serve` command of another environment, such as one with vLLM's CUDA build on a host without a GPU.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest
from conftest import ROOT
from conftest import SERVE as OURS

from deployments.engine_process import kill

SERVE = os.environ.get("SATORI_SERVE", OURS)


@pytest.fixture(scope="module", params=["0", "1"], ids=["default mode", "HAProxy mode"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    modes = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED")
    environment = os.environ | dict.fromkeys(modes, request.param) | {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1"}
    command = [SERVE, "run", "tests.scripted:application", "preset=nano-cpu", "http.port=8123"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output = ""
    for line in process.stdout or ():
        output += line
        if "is ready at" in line:
            break
    else:
        process.communicate()
        pytest.fail(f"the application did not start:\n{output}")
    yield "http://127.0.0.1:8123"
    # All at once: `serve run` by itself leaves HAProxy behind (Ray 2.60.0).
    kill(process.pid)
    process.communicate()


def test_a_request_is_answered_by_scripted_tokens(url: str) -> None:
    body = {"model": "nano", "messages": [{"role": "user", "content": "x"}]}
    deadline = time.monotonic() + 60
    while (response := httpx.post(f"{url}/v1/chat/completions", json=body)).status_code >= 500 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert response.json()["choices"][0]["message"]["content"] == "scripted answer"


def test_streaming_too(url: str) -> None:
    body = {"model": "nano", "prompt": "x", "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    assert "".join(event["choices"][0]["text"] for event in events) == "scripted answer"


def test_only_this_host_is_listened_to(url: str) -> None:
    hosts = {
        connection.laddr.ip
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == 8123
    }
    assert hosts == {"127.0.0.1"}
