"""LLM replicas come with the load and go with it (1, 3, 1), down to none, and come back for a request; none fails on the way."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from cluster.bench import chaos
from tests.support.application import Served, Streaming
from tests.support.processes import output_until
from tests.support.until import until_async

pytestmark = pytest.mark.long
ARGUMENTS = (
    "autoscaling.enabled=true",
    "autoscaling.min_replicas=0",
    "autoscaling.max_replicas=3",
    "engine.max_num_seqs=16",  # what a replica holds, however fast the machine is
    "autoscaling.downscale_hold_s=10",
    "autoscaling.idle_s=12",
    "llm.num_cpus=0.3",
    "ingress.num_cpus=0.3",
    "ui.enabled=false",
)
CLIENTS = 60
BODY = {"model": "nano", "messages": [{"role": "user", "content": "What is 12 * 6?"}], "stream": True, "max_tokens": 400}
BODY |= {"ignore_eos": True, "temperature": 0}


@pytest.fixture
async def http(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=CLIENTS + 2)
    async with httpx.AsyncClient(base_url=served.url, timeout=300, limits=limits) as client:
        yield client


async def until_status(http: httpx.AsyncClient, what: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the first status of which `holds` is true."""

    async def status() -> dict[str, Any]:
        found: dict[str, Any] = (await http.get("/status")).raise_for_status().json()
        return found

    return await until_async(status, what, 120, holds=lambda now: now["target"] is not None and holds(now), every_s=0.3)


def running(status: dict[str, Any]) -> int:
    """Return how many LLM replicas run."""
    return [replica["state"] for replica in status["replicas"]].count("RUNNING")


def busy(status: dict[str, Any]) -> int:
    """Return how many LLM replicas have requests."""
    return sum(bool(replica["load"] and replica["load"]["running"]) for replica in status["replicas"])


@pytest.mark.timeout(300)
async def test_replicas_follow_the_load_and_no_request_fails(http: httpx.AsyncClient) -> None:
    replies: list[chaos.Reply] = []
    enough = asyncio.Event()

    async def client() -> None:
        while not enough.is_set():
            replies.append(chaos.Reply())
            await replies[-1].read(http, BODY)

    await until_status(http, "one replica runs", lambda status: running(status) == 1)
    clients = [asyncio.create_task(client()) for _ in range(CLIENTS)]
    status = await until_status(http, "three replicas run", lambda status: running(status) == 3)
    # The first change; later ones may go either way, as the engines of this host share its cores and slow each other down.
    assert status["autoscaling"]["decisions"][0]["reason"] in ("backlog", "forecast", "maximum", "queue_time")
    await until_status(http, "three replicas have requests", lambda status: busy(status) == 3)
    enough.set()
    await asyncio.gather(*clients)

    status = await until_status(http, "no replica is left", lambda status: not status["replicas"] and status["target"] == 0)
    changes = [(change["from"], change["to"]) for change in status["autoscaling"]["decisions"]]
    assert changes[0][0] == 1
    assert max(to for _, to in changes) == 3
    assert changes[-1] == (1, 0), "by way of one, which Serve takes even where the policy wants none"
    ready = await http.get("/ready")
    assert (ready.status_code, ready.json()["reason"]) == (503, "no LLM replica is up; a request starts one")

    waiting = asyncio.create_task(client())
    enough.clear()
    status = await until_status(http, "one starts", lambda status: any("starting" in replica for replica in status["replicas"]))
    assert status["waiting"] == 1
    reason = (await http.get("/ready")).json()["reason"]
    assert " starting, for " in reason
    enough.set()
    await waiting
    assert len(replies) > CLIENTS
    assert all(reply.well for reply in replies), next(reply for reply in replies if not reply.well)
    status = (await http.get("/status")).json()
    from_none = [change for change in status["autoscaling"]["decisions"] if change["from"] == 0]
    assert from_none, status["autoscaling"]["decisions"]
    # All at once where the forecast remembers what came of the first clients.
    assert from_none[0]["reason"] in ("first_request", "maximum")


def test_a_second_signal_stops_at_once_and_leaves_nothing(served: Served) -> None:
    processes = served.all_processes()
    streaming = Streaming(served)
    os.kill(served.process.pid, signal.SIGINT)
    assert "1 to answer" in output_until(served.process, "draining", 30).splitlines()[-1]
    os.kill(served.process.pid, signal.SIGINT)
    assert streaming.end() != "data: [DONE]"
    served.ends_with_nothing_left(processes)
