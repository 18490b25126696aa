"""The application without an engine, by plain `serve run`: the ingress stands on its own, in Serve's default mode too.

`SATORI_SERVE` may name the `serve` command of another environment, such as one with vLLM's CUDA build on a host without a GPU.
"""

import json
import os
import subprocess
from collections.abc import Iterator

import httpx
import pytest

from deployments.engine.process import kill
from tests.support import application
from tests.support.paths import ROOT
from tests.support.ports import listening
from tests.support.processes import output_until
from tests.support.until import until

pytestmark = pytest.mark.long
SERVE = os.environ.get("SATORI_SERVE", application.SERVE)
PORT = 8123
CHAT = {"model": "nano", "messages": [{"role": "user", "content": "x"}]}


@pytest.fixture(scope="module", params=["0", "1"], ids=["default mode", "HAProxy mode"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    modes = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED")
    environment = os.environ | dict.fromkeys(modes, request.param) | {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1"}
    command = [SERVE, "run", "tests.support.scripted:application", "preset=nano-cpu", f"http.port={PORT}"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output_until(process, "is ready at", 120)
    url = f"http://127.0.0.1:{PORT}"
    until(lambda: chat(url).status_code, "a chat is answered", 60, holds=lambda status: status < 500, every_s=0.2)
    yield url
    # All at once: `serve run` by itself leaves HAProxy behind (Ray 2.60.0).
    kill(process.pid)
    process.communicate()


def chat(url: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=CHAT)


def test_a_request_is_answered_by_scripted_tokens(url: str) -> None:
    assert chat(url).json()["choices"][0]["message"]["content"] == "scripted answer"


def test_streaming_too(url: str) -> None:
    body = {"model": "nano", "prompt": "x", "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    assert "".join(event["choices"][0]["text"] for event in events) == "scripted answer"


def test_only_this_host_is_listened_to(url: str) -> None:
    assert {host for host, port in listening() if port == PORT} == {"127.0.0.1"}
