"""Replies of many minutes, while ingresses die, for `cluster.bench.chaos`: counts those that do not arrive whole.

Streams and whole replies begin, and the engine is stopped for so many seconds, which stands in for a long reply. Meanwhile one of
two ingresses is killed, and the one that takes its place, and the next. Only the streams that the first one held may be lost: what
has no answer yet is asked again of another ingress. A replaced HAProxy ends after `HARD_STOP_S`, with all streams.
"""

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import replace

import httpx

from cluster.bench.chats import Reply, client, question
from cluster.bench.stack import Stack, engines, ours, running
from deployments import settings as settings_module
from deployments.host.environment import HARD_STOP, HARD_STOP_DEFAULT_S

KILLS = 3
HARD_STOP_S = HARD_STOP_DEFAULT_S


def arguments(long_s: float) -> list[str]:
    """Return the settings for replies that take so long: two ingresses, and an engine that may be still."""
    patient = f"{2 * long_s:g}"
    replicas = ["llm.num_replicas=1", "ingress.num_replicas=2", "llm.num_cpus=0.4", "ingress.num_cpus=0.4", "ui.enabled=false"]
    return [*replicas, f"llm.hung_after_s={patient}", f"llm.silent_after_s={patient}", f"llm.wait_s={patient}"]


async def held(http: httpx.AsyncClient, requests: int) -> Counter[str]:
    """Return how many requests each ingress holds, once both have answered and hold that many in all."""
    while True:
        found: Counter[str] = Counter()
        for answer in await asyncio.gather(*(http.get("/ready") for _ in range(8))):
            found[answer.json()["ingress"]["id"]] = answer.json()["ingress"]["requests"]
        if len(found) == 2 and found.total() == requests:
            return found
        await asyncio.sleep(0.2)


async def whole(http: httpx.AsyncClient, body: dict[str, object]) -> str | None:
    """Return why a reply that is not streamed did not arrive; None if it did."""
    try:
        response = await http.post("/v1/chat/completions", json=body | {"stream": False})
    except httpx.HTTPError as error:
        return repr(error)
    return None if response.status_code == 200 else response.text


async def run(stack: Stack, long_s: float, streams: int = 8) -> bool:
    """Print what became of the replies; return whether none was lost that need not be."""
    async with client(stack.url) as http:
        http.timeout = httpx.Timeout(None, connect=10)
        await stack.whole(http, 1)
        body = question(0) | {"max_tokens": 1500}
        replies = [Reply() for _ in range(streams)]
        reading = asyncio.gather(*(reply.read(http, body) for reply in replies))
        while min(reply.chunks for reply in replies) == 0:
            await asyncio.sleep(0.001)
        [engine] = engines(stack.llm_replicas()[0])
        engine.suspend()
        began = time.monotonic()
        shares = await held(http, streams)
        asked = asyncio.gather(*(whole(http, body) for _ in range(4)))
        await held(http, streams + 4)
        proxies = stack.named("haproxy -")
        killed: set[int] = set()
        for number in range(KILLS):
            await asyncio.sleep(max(0.0, began + number * long_s / (KILLS + 1) - time.monotonic()))
            victims = sorted({process.pid for process in stack.named("ServeReplica:default:Ingress")} - killed)
            victim = victims[0] if number == 0 else victims[-1]  # after the first, always the youngest
            os.kill(victim, signal.SIGKILL)
            killed.add(victim)
            print(f"{time.monotonic() - began:.0f} s: killed an ingress", flush=True)
        await asyncio.sleep(max(0.0, began + long_s - time.monotonic()))
        engine.resume()
        await reading
        failed = [why for why in await asked if why is not None]
    lost = [reply.errors[0] for reply in replies if not reply.well]
    same = len({(str(reply.text), str(reply.reasoning)) for reply in replies if reply.well}) == 1
    shared = sorted(shares.values())
    print(f"{time.monotonic() - began:.0f} s; streams: {streams}, of each ingress: {shared}, lost: {len(lost)};")
    after = stack.named("haproxy -")
    print(f"whole replies: 4, lost: {len(failed)}; HAProxy processes: {len(proxies)} before, {len(after)} after")
    for error in [*lost, *failed]:
        print(error, file=sys.stderr)
    return len(lost) in shares.values() and not failed and same and after == proxies


def see_through(long_s: float) -> bool:
    """Start the application, and see replies of so many seconds through; return whether none was lost that need not be."""
    words = arguments(long_s)
    server = ours("long", settings_module.load(dict(word.split("=", 1) for word in words)), words)
    with running(replace(server, environment=server.environment | {HARD_STOP: str(HARD_STOP_S)})) as stack:
        return asyncio.run(run(stack, long_s))
