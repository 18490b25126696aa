"""The application on a Ray cluster that is there already: `serve deploy` of a config file that names `deployments:config`."""

import asyncio
import concurrent.futures
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import psutil
import pytest
import yaml

from cluster.bench import chaos
from cluster.bench.stack import Stack
from deployments.engine.process import kill
from deployments.host.environment import HARD_STOP, SERVING
from tests.support import scripted
from tests.support.paths import ROOT
from tests.support.processes import output_until
from tests.support.until import until, until_async

BIN = Path(sys.executable).parent
URL = "http://127.0.0.1:8000"
CLIENT_TIMEOUT = "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"
HARD_STOP_S, SHORT_S = 3, 3
CHAT: dict[str, Any] = {"model": "nano", "messages": [{"role": "user", "content": "x"}]}
TINY = "ingress.num_cpus=0.2", "llm.num_cpus=0.2", "ui.enabled=false"


class Cluster:
    """A Ray cluster of one host: the environment that its commands need, and its processes."""

    def __init__(self, environment: dict[str, str], head: int) -> None:
        self.environment = environment
        self.stack = Stack(URL, psutil.Process(head))

    def haproxies(self) -> set[psutil.Process]:
        """Return the processes of HAProxy, those included that were replaced."""
        return set(self.stack.named("haproxy -"))

    def ingresses(self) -> set[str]:
        """Return the names of the ingresses that HAProxy sends requests to, as it tells over its admin socket."""
        path = max(Path("/tmp/haproxy-serve").glob("*/admin.sock"), key=lambda path: path.stat().st_mtime)  # of earlier ones, too
        with socket.socket(socket.AF_UNIX) as admin, admin.makefile() as answer:
            admin.connect(str(path))
            admin.sendall(b"show servers state http-default\n")
            servers = [line.split() for line in answer]
        return {fields[3] for fields in servers if "Ingress" in " ".join(fields) and int(fields[6]) == 0}


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A Ray head node in the environment for it, with changes if the test has some."""
    environment = os.environ | SERVING | {"RAY_AUTH_MODE": "token", "PYTHONPATH": str(ROOT)} | getattr(request, "param", {})
    head = subprocess.Popen(
        [BIN / "ray", "start", "--head", "--block"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
    output_until(head, "Ray runtime started", 60)
    yield Cluster(environment, head.pid)
    kill(head.pid)
    head.communicate()
    # What a stopped head leaves behind: a plain `serve run` would wait for the cluster at this address.
    Path("/tmp/ray/ray_current_cluster").unlink(missing_ok=True)


def serve_deploy(cluster: Cluster, *arguments: str, of: str | None = None, ingresses: int = 2, other: bool = False) -> None:
    """Deploy `cluster/serve.yaml` with settings changed, and return when Serve calls all its applications running.

    `of` is the path of an application in the place of the real one. With `other` there is another, small one beside it.
    """
    config = yaml.safe_load((ROOT / "cluster" / "serve.yaml").read_text())
    config["applications"][0]["args"] |= dict(word.split("=") for word in arguments)
    config["applications"][0]["import_path"] = of or config["applications"][0]["import_path"]
    config["applications"][0]["deployments"] = [{"name": "Ingress", "num_replicas": ingresses}]
    if other:
        config["applications"].append({"name": "other", "route_prefix": "/other", "import_path": "tests.support.small:application"})
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(config, file)
        file.flush()
        command = [BIN / "serve", "deploy", file.name]
        deployed = subprocess.run(command, cwd=ROOT, env=cluster.environment, capture_output=True, text=True, check=True)
    assert "error" not in deployed.stderr.lower()
    token = (Path.home() / ".ray" / "auth_token").read_text()

    def statuses() -> set[str]:
        # What `serve status` asks for; that command takes seconds of the CPU time that the application needs.
        url, headers = "http://127.0.0.1:8265/api/serve/applications/", {"Authorization": f"Bearer {token}"}
        told = httpx.get(url, headers=headers, timeout=30)
        found = {name: application["status"] for name, application in told.raise_for_status().json()["applications"].items()}
        assert set(found.values()) <= {"DEPLOYING", "RUNNING", "DELETING"}, told.text
        return set(found.values()) | ({"no other one"} if other and "other" not in found else set())

    until(statuses, "the applications run", 180, holds=lambda found: found == {"RUNNING"}, every_s=0.2)


class Load:
    """Chats that are streamed one after another by several clients, until `stop`; the question depends on the client."""

    def __init__(self, question: Callable[[int], dict[str, Any]], clients: int = 3) -> None:
        self._question = question
        self.replies: list[chaos.Reply] = []
        self.different = 0
        self._going_on = True
        self._threads = [threading.Thread(target=asyncio.run, args=(self._ask(number),)) for number in range(clients)]
        for thread in self._threads:
            thread.start()

    async def _ask(self, number: int) -> None:
        first: chaos.Reply | None = None
        async with chaos.client(URL) as http:
            while self._going_on:
                reply = chaos.Reply()
                await reply.read(http, self._question(number))
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


@pytest.mark.long
@pytest.mark.timeout(600)
def test_serve_deploy_and_a_rolling_redeploy_under_load(cluster: Cluster) -> None:
    """Then HAProxy is replaced ten times, as another application comes and goes: also then no reply is lost."""
    replicas = ("ingress.num_cpus=0.3", "llm.num_cpus=0.3", "ui.enabled=false")
    serve_deploy(cluster, *replicas)
    with httpx.Client(base_url=URL, timeout=30) as http:
        assert http.get("/v1/models").json()["data"][0]["max_model_len"] == 2048
    load = Load(chaos.question)
    try:
        load.until(12)
        serve_deploy(cluster, *replicas, "engine.max_model_len=3072")
        load.until(12)
        for number in range(10):
            before = cluster.haproxies()
            serve_deploy(cluster, *replicas, "engine.max_model_len=3072", other=number % 2 == 0)
            until(cluster.haproxies, "HAProxy is replaced", holds=lambda now, before=before: now - before)
            load.until(1)
    finally:
        load.stop()
    assert [reply.errors for reply in load.replies if not reply.well] == []
    assert load.different == 0
    with httpx.Client(base_url=URL, timeout=30) as http:
        assert http.get("/v1/models").json()["data"][0]["max_model_len"] == 3072


def long(seconds: float) -> dict[str, Any]:
    """Return a request whose reply takes so long, or longer on a busy machine."""
    return CHAT | {"stream": True, "ignore_eos": True, "max_tokens": round(seconds / scripted.STEP_S)}


async def held(http: httpx.AsyncClient, requests: int) -> dict[str, int]:
    """Return how many requests each ingress holds, once both have answered and hold that many in all."""

    async def ask() -> dict[str, int]:
        states = [answer.json()["ingress"] for answer in await asyncio.gather(*(http.get("/ready") for _ in range(8)))]
        return {state["id"]: state["requests"] for state in states}

    what = f"both ingresses answer and hold {requests} requests"
    return await until_async(ask, what, holds=lambda found: len(found) == 2 and sum(found.values()) == requests, every_s=0)


async def killed(cluster: Cluster) -> None:
    """Kill an ingress amid streams: those of the other one go on, ten times as long as a replaced HAProxy has."""
    async with chaos.client(URL) as http:
        replies = [chaos.Reply() for _ in range(12)]
        reading = asyncio.gather(*(reply.read(http, long(10 * HARD_STOP_S)) for reply in replies))
        await until_async(lambda: min(reply.chunks for reply in replies), "every stream has begun")
        shares = await held(http, len(replies))
        cluster.stack.named("ServeReplica:default:Ingress")[0].kill()
        await reading
    lost = [reply for reply in replies if not reply.well]
    assert len(lost) in shares.values(), [reply.errors for reply in lost]
    assert len({str((reply.reasoning, reply.text)) for reply in replies if reply.well}) == 1


def documented(library: str) -> Any:
    """Return the client that docs/timeouts.md makes for replies that are not streamed."""
    text = (ROOT / "docs" / "timeouts.md").read_text()
    line = re.search(rf"^client = ({library}\..+)$", text, re.MULTILINE)[1]  # type: ignore[index]
    return eval(line, {"openai": openai, "anthropic": anthropic})


def whole_replies(patch: pytest.MonkeyPatch) -> None:
    """Ask for replies that are not streamed, with curl and the libraries; they take longer than HAProxy waits for a client."""
    patch.setenv("OPENAI_API_KEY", "none")
    patch.setenv("ANTHROPIC_API_KEY", "none")
    tokens = round(2 * SHORT_S / scripted.STEP_S)
    chat = CHAT | {"max_tokens": tokens}
    curl = ["curl", "-sSf", f"{URL}/v1/chat/completions", "-H", "content-type: application/json", "-d", json.dumps(chat)]
    asked: dict[str, Callable[[], int]] = {
        "curl": lambda: json.loads(subprocess.run(curl, check=True, capture_output=True).stdout)["usage"]["completion_tokens"],
        "openai": lambda: gpt.chat.completions.create(**chat).usage.completion_tokens,
        "anthropic": lambda: claude.messages.create(**chat).usage.output_tokens,
    }
    hasty = openai.OpenAI(base_url=f"{URL}/v1", timeout=SHORT_S, max_retries=0)
    with documented("openai") as gpt, documented("anthropic") as claude, hasty, concurrent.futures.ThreadPoolExecutor() as pool:
        short = pool.submit(hasty.chat.completions.create, **chat)
        assert dict(zip(asked, pool.map(lambda ask: ask(), asked.values()), strict=True)) == dict.fromkeys(asked, tokens)
        with pytest.raises(openai.APITimeoutError):
            short.result()
    assert (openai.DEFAULT_TIMEOUT.read, anthropic.DEFAULT_TIMEOUT.read) == (600, 600)
    with anthropic.Anthropic(base_url=URL) as claude, pytest.raises(ValueError, match="Streaming is required"):
        claude.messages.create(**CHAT, max_tokens=21_334)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("cluster", [{HARD_STOP: str(HARD_STOP_S), CLIENT_TIMEOUT: str(SHORT_S)}], indirect=True)
def test_replies_take_their_time_while_ingresses_die_come_go_and_are_redeployed(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stream takes more than twice as long as a replaced HAProxy has: as Serve does it, each change would cut all of them."""
    slow = "tests.support.scripted:slow"
    serve_deploy(cluster, *TINY, "engine.max_model_len=2048", of=slow)
    with httpx.Client(base_url=URL, timeout=30) as http:
        until(lambda: http.get("/ready").status_code == 200, "HAProxy passes requests on")
    whole_replies(monkeypatch)
    before = cluster.haproxies()
    asyncio.run(killed(cluster))
    load = Load(lambda number: long(2.5 * HARD_STOP_S), clients=8)
    try:
        load.until(8)
        for ingresses, tokens in ((3, 2048), (2, 2048), (2, 3072), (2, 2560)):
            serve_deploy(cluster, *TINY, f"engine.max_model_len={tokens}", of=slow, ingresses=ingresses)
            load.until(8)
    finally:
        load.stop()
    assert [reply.errors for reply in load.replies if not reply.well] == []
    assert load.different == 0
    serving = cluster.ingresses()
    with pytest.raises(AssertionError, match="DEPLOY_FAILED"):
        serve_deploy(cluster, *TINY, "ingress.num_cpus=few", of=slow)
    assert cluster.ingresses() == serving
    assert len(serving) == 2
    assert cluster.haproxies() == before, "it was not replaced"
