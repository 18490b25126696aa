"""Two replicas of each deployment: each request on one of them, bursts spread over both, page users where their session is."""

import asyncio
import json
import os
import random
import re
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.bench import chaos, prefixes, soak
from cluster.bench.mixed import Clients
from cluster.bench.stack import engines
from monitoring import rules
from monitoring.serve import Prometheus
from tests.support.application import Served, Streaming
from tests.support.page_user import use
from tests.support.ports import free_ports
from tests.support.programs import require
from tests.support.status import ready
from tests.support.until import until, until_async

HUNG_AFTER_S = 8
PAUSE_S = float(os.environ.get("PAUSE_S", 3 * HUNG_AFTER_S))
ARGUMENTS = ("llm.num_replicas=2", "ingress.num_replicas=2", "ui.num_replicas=2", "llm.num_cpus=0.4", "ingress.num_cpus=0.4")
ARGUMENTS += (f"llm.hung_after_s={HUNG_AFTER_S}", f"slo.ttft_s={PAUSE_S / 2}", "slo.tpot_s=1", *soak.TOOLS)
BURST = 32
BLOCK = 128
"""Tokens of a block of an engine's KV cache; a digit is a token, and so is a mark of a turn."""
USERS = 50


async def served_by_replica(http: httpx.AsyncClient) -> dict[str, int]:
    """Replica id -> requests served so far, asked until both replicas have answered and are idle."""
    served: dict[str, int] = {}

    async def ask() -> dict[str, int]:
        replica = (await ready(http))["replica"]
        if not replica["open"] and not replica["running"]:
            served[replica["id"]] = replica["served"]
        return served

    return await until_async(ask, "both LLM replicas answer and are idle", holds=lambda found: len(found) == 2, every_s=0)


async def test_bursts_are_spread_evenly(served: Served) -> None:
    limits = httpx.Limits(max_connections=BURST)
    async with httpx.AsyncClient(base_url=served.url, timeout=60, limits=limits) as http:
        before = await served_by_replica(http)
        for burst in range(10):
            # Long enough that none ends while others are still routed: a replica that is done sooner rightly gets more.
            body = {"model": "nano", "max_tokens": 150, "ignore_eos": True}
            calls = [http.post("/v1/completions", json=body | {"prompt": f"{burst} {number}"}) for number in range(BURST)]
            assert {response.status_code for response in await asyncio.gather(*calls)} == {200}
            now = await served_by_replica(http)
            shares = [now[replica] - before[replica] for replica in now]
            assert sum(shares) == BURST, "each request was served by one replica, once"
            # Replicas measure their speeds. Of equal ones 1.25 is tested without engines; on a crowded machine one is slower.
            assert max(shares) <= 1.5 * BURST / 2, shares
            before = now


async def test_turns_of_a_chat_go_where_its_prefix_is_cached(served: Served) -> None:
    rng = random.Random(1)
    await prefixes.known(served.url, rng, ingresses=2, replicas=2)
    before = prefixes.counted(served.url)
    chats = prefixes.conversations(rng, count=6, turns=4)
    await prefixes.ask(served.url, chats, 1, rng)
    cached = (prefixes.counted(served.url) - before).cached
    # With each turn, one replica alone would have the whole blocks of the turn before in its cache.
    alone = sum(len("".join(said["content"] for said in turn)) // BLOCK * BLOCK for turns in chats for turn in turns[:-1])
    assert cached >= 0.9 * alone


async def test_both_ingresses_take_requests(served: Served) -> None:
    seen: set[str] = set()
    async with httpx.AsyncClient(base_url=served.url, timeout=60) as http:

        async def ask() -> set[str]:
            seen.update(answer["ingress"]["id"] for answer in await asyncio.gather(*(ready(http) for _ in range(8))))
            return seen

        await until_async(ask, "both ingresses answer", holds=lambda ids: len(ids) == 2, every_s=0)


def ui_seconds(served: Served) -> dict[int, float]:
    """Return the CPU seconds of each UI replica by process id."""
    return {process.pid: process.cpu_times().user for process in served.stack.named("ServeReplica:default:UI")}


async def ask(served: Served, user: int) -> str:
    """Ask as one browser, with cookies of its own; return the changes of the reply's state."""
    async with httpx.AsyncClient(base_url=served.url, timeout=120, trust_env=False) as http:
        (await http.get("/ui/")).raise_for_status()
        return json.dumps(await use(http, uuid.uuid4().hex, f"What is {100 + user} + 5?"))


async def test_fifty_users_of_two_replicas(served: Served) -> None:
    before = ui_seconds(served)
    assert len(before) == 2
    replies = await asyncio.gather(*(ask(served, user) for user in range(USERS)))
    for user, reply in enumerate(replies):
        assert f'"answer": {{"=": "{105 + user}"}}' in reply, reply
    after = ui_seconds(served)
    assert all(after[process] > before[process] for process in before), "both replicas had users"


async def moved(http: httpx.AsyncClient) -> float:
    """Return how many requests both ingresses have moved."""
    texts = [
        (await http.get(f"http://{target['targets'][0]}/metrics")).text
        for target in (await http.get("/metrics/targets")).json()
        if target["labels"]["deployment"] == "Ingress"
    ]
    return sum(float(count) for text in texts for count in re.findall(r"^satori_failover_requests_total (\S+)", text, re.MULTILINE))


@pytest.fixture
def prometheus(served: Served, tmp_path: Path) -> Iterator[Prometheus]:
    """A Prometheus with our rules that has scraped all six replicas: without what was before, it sees no rate of requests."""
    require("prometheus")
    server = Prometheus(served.url, tmp_path, free_ports(1)[0], "1s")
    try:
        server.wait_ready()
        six = 'count(up{job="satori"} == 1) == 6'
        until(lambda: server.get("query", query=six)["result"], "it has scraped all six replicas", 60)
        yield server
    finally:
        server.stop()


async def alarming(server: Prometheus) -> list[str]:
    """Return the alerts whose expressions hold, once all targets have been scraped and the rules have been evaluated since.

    So an alert need not last for minutes before it counts. Only that an ingress is busy is another matter: here, it is.
    """
    began = time.time()

    async def found(expr: str) -> list[Any]:
        return list((await asyncio.to_thread(server.get, "query", query=expr))["result"])

    current = (
        f'count(up{{job="satori"}} == 1 and timestamp(up) > {began}) == 6 and min(timestamp(satori:bad:ratio_rate5m)) > {began}'
    )
    await until_async(lambda: found(current), "a look at all six replicas", 60, every_s=0.2)
    alerts = {rule["alert"]: rule["expr"] for rule in rules.alerts()["groups"][0]["rules"]}
    return [name for name, expr in alerts.items() if name != "SatoriIngressSaturated" and await found(expr)]


@pytest.mark.long
@pytest.mark.timeout(240 + PAUSE_S)
async def test_a_pause_is_not_a_death(served: Served, prometheus: Prometheus) -> None:
    """All processes are stopped for longer than anybody waits for a sign of life, and go on; no alert follows."""
    stack = served.stack
    async with chaos.client(served.url) as http:
        wanted = await chaos.calm(http)
        assert await alarming(prometheus) == []
        lasting, before = stack.lasting(), await moved(http)

        def pause() -> None:
            prometheus.process.send_signal(signal.SIGSTOP)
            stack.pause()
            time.sleep(PAUSE_S)
            stack.resume()
            prometheus.process.send_signal(signal.SIGCONT)

        replies = await chaos.struck(http, chaos.STREAMS, pause)
        assert [reply.errors for reply in replies if not reply.well] == []
        assert [reply for reply, other in zip(replies, wanted, strict=True) if not reply.same(other)] == []
        await stack.whole(http)
        assert await moved(http) == before, "no request has left its replica"
        await chaos.calm(http)  # after a pause of minutes, rates know only what has come since
        assert await alarming(prometheus) == []
    assert stack.lasting() == lasting, "the same processes serve"


@pytest.mark.long
async def test_a_short_soak_finds_nothing(served: Served) -> None:
    """Requests of every kind: `make soak` for a quarter of a minute, in which it does not kill."""
    run = await soak.run(served.stack, Clients(served.url, "nano", seed=1, pause_s=0.2), 4, seconds=15, every_s=600)
    assert (run.failures, run.kills) == ([], [])
    assert len(run.clients.outcomes) >= 4, "each client has done something"
    measured = {(one.role, one.measure) for one in run.watch.series}
    assert {("ingress", "memory"), ("engine", "memory"), ("ingress", "tasks"), ("LLM replica", "series")} <= measured
    assert {role for role, _ in measured} >= {"HAProxy", "Serve controller", "Ray GCS", "raylet", "/tmp"}


async def held_by_ingress(http: httpx.AsyncClient, requests: int) -> dict[str, int]:
    """Ingress id -> requests it holds, asked until both have answered and hold that many in all."""

    async def ask() -> dict[str, int]:
        answers = await asyncio.gather(*(ready(http) for _ in range(8)))
        return {answer["ingress"]["id"]: answer["ingress"]["requests"] for answer in answers}

    what = f"both ingresses answer and hold {requests} requests"
    return await until_async(ask, what, holds=lambda held: len(held) == 2 and sum(held.values()) == requests, every_s=0)


async def test_a_killed_ingress_loses_only_the_streams_it_held(served: Served) -> None:
    """What it had not begun to answer is answered by the other one, and so are new requests, at once."""
    ingresses = served.stack.named("ServeReplica:default:Ingress")
    limits = httpx.Limits(max_connections=40)
    async with httpx.AsyncClient(base_url=served.url, timeout=60, limits=limits) as http:
        replies = [chaos.Reply() for _ in range(24)]
        body = chaos.question(0) | {"max_tokens": 1000}  # none may end before all are counted
        reading = asyncio.gather(*(reply.read(http, body) for reply in replies))
        await until_async(lambda: min(reply.chunks for reply in replies), "every stream has begun")
        streams = await held_by_ingress(http, len(replies))
        whole = asyncio.gather(*(http.post("/v1/chat/completions", json=body | {"stream": False}) for _ in range(8)))
        both = await held_by_ingress(http, len(replies) + 8)
        assert all(both[ingress] > streams[ingress] for ingress in streams), "each holds some that it has not begun to answer"
        ingresses[0].kill()
        async with httpx.AsyncClient(base_url=served.url, timeout=60) as new:
            for _ in range(20):
                reply = await new.post("/v1/completions", json={"model": "nano", "prompt": "1", "max_tokens": 1})
                assert reply.status_code == 200, reply.text
        await reading
        answers = await whole
    assert [answer.text for answer in answers if answer.status_code != 200] == []
    assert len({answer.json()["choices"][0]["message"]["reasoning"] for answer in answers}) == 1
    lost = [reply for reply in replies if not reply.well]
    assert len(lost) in streams.values(), "the rest went on"
    assert all("RemoteProtocolError" in reply.errors[0] for reply in lost), "closed within a chunk: it cannot pass for an end"
    assert len({str((reply.reasoning, reply.text)) for reply in replies if reply.well}) == 1


async def test_samples_of_a_request_stay_on_one_replica(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.url, timeout=60) as http:
        before = await served_by_replica(http)
        body = {"model": "nano", "prompt": "x", "n": 6, "max_tokens": 8, "temperature": 1}
        assert (await http.post("/v1/completions", json=body)).status_code == 200
        now = await served_by_replica(http)
        assert sorted(now[replica] - before[replica] for replica in now) == [0, 6]


async def test_an_engine_that_hangs_while_it_is_idle_is_replaced_before_the_next_request(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.url, timeout=60) as http:
        await served_by_replica(http)  # both are there and idle
        replica = served.stack.llm_replicas()[0]
        [engine] = engines(replica)
        engine.suspend()
        for process, what in ((engine, "it is killed"), (replica, "its replica goes")):
            await until_async(process.is_running, what, 60, holds=lambda runs: not runs)
        await served.stack.whole(http)


def test_a_stop_drains_also_when_nobody_reads_and_leaves_nothing(served: Served) -> None:
    """The reply that is streamed ends well, new requests are refused, and the launcher's output is lost."""
    processes = served.all_processes()
    streaming = Streaming(served)
    served.process.stdout.close()  # type: ignore[union-attr]
    os.kill(served.process.pid, signal.SIGTERM)
    until(lambda: httpx.get(f"{served.url}/ready").json(), "it drains", holds=lambda now: now.get("reason") == "draining")
    refused = httpx.post(f"{served.url}/v1/completions", json={"model": "nano", "prompt": "1", "max_tokens": 1})
    assert (refused.status_code, int(refused.headers["retry-after"]) > 0) == (503, True)
    assert streaming.end() == "data: [DONE]"
    served.ends_with_nothing_left(processes)
