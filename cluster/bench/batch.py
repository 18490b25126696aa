"""What a batch does to other requests, and how much of what they leave idle it uses.

Requests arrive at random moments, so many a second whether or not earlier ones have been answered. In each round they come for a
while without a batch and for a while beside one, the same ones, and the order changes from round to round. Then all that the server
can do is measured, by clients that each ask again as soon as they are answered.

- TTFT beside the batch, by TTFT without it: of the requests of all rounds.
- The share of idle capacity that the batch uses: its tokens a second, by what the requests leave of the tokens a second that the
  clients reach.

    python -m cluster.bench.batch [--rounds 5] [--seconds 20] [--rate 3] [--clients 64] [key=value ...]
"""

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx

from cluster.bench import load, stack
from cluster.bench.load import percentile
from cluster.bench.scraper import samples
from deployments import settings as settings_module

ALWAYS = ["ingress.num_replicas=1", "ui.enabled=false"]
TOKENS = 64
"""Of a reply to a request."""
LINE_TOKENS = 256
"""Of a reply to a client that asks again at once, and to a line in the mean: they have a quarter of it to seven quarters."""
LINES = 5000
SETTLED_S = 15.0
"""How long a batch runs before it counts: it begins with one line at a time."""
GENERATED = "vllm:generation_tokens_total"
CHATS = "/v1/chat/completions"


@dataclass
class Round:
    """TTFT in seconds of the requests of a round, without a batch and beside it; tokens a second of requests, batch and clients."""

    alone: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    requests: float = 0.0
    batch: float = 0.0
    clients: float = 0.0

    @property
    def used(self) -> float:
        """The share of what the requests leave idle that the batch uses."""
        return self.batch / (self.clients - self.requests)


def generated(url: str) -> float:
    """Return how many tokens the engines have generated."""
    return sum(sample.value for of_process in samples(url).values() for sample in of_process if sample.name == GENERATED)


def address(url: str) -> tuple[str, int]:
    """Return host and port."""
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)


async def arrive(url: str, rate: float, seconds: float, seed: int) -> load.Sample:
    """Send requests at random moments, `rate` a second in the mean, and wait for the last reply.

    Raises ConnectionError if one fails. The same seed gives the same requests at the same moments.
    """
    rng, sample, loop, (host, port) = random.Random(seed), load.Sample(0), asyncio.get_running_loop(), address(url)
    idle: list[load.Stream] = []
    opened: list[asyncio.BaseTransport] = []

    async def ask(message: bytes) -> None:
        if idle:
            stream = idle.pop()
        else:
            transport, stream = await loop.create_connection(lambda: load.Stream(sample), host, port)
            opened.append(transport)
        await stream.request(message)
        idle.append(stream)

    began, due = time.perf_counter(), 0.0
    try:
        async with asyncio.TaskGroup() as tasks:
            while (due := due + rng.expovariate(rate)) < seconds:
                await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
                tasks.create_task(ask(load.message(host, port, "nano", load.problem(rng), TOKENS)))
    finally:
        for transport in opened:
            transport.close()
    sample.seconds = time.perf_counter() - began
    return sample


def lines(seed: int) -> bytes:
    """Return the input of a batch."""
    rng = random.Random(seed)
    made = []
    for number in range(LINES):
        messages = [{"role": "user", "content": load.problem(rng)}]
        tokens = round(LINE_TOKENS * rng.uniform(0.25, 1.75))
        body = {"model": "nano", "messages": messages, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
        made.append(json.dumps({"custom_id": f"{number}", "method": "POST", "url": CHATS, "body": body}))
    return "\n".join(made).encode()


@contextlib.asynccontextmanager
async def batch(http: httpx.AsyncClient, seed: int) -> AsyncIterator[None]:
    """A batch runs, and has had time to find out how many lines can run at a time; at the end it is gone."""
    file = (await http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("lines.jsonl", lines(seed))})).json()["id"]
    asked = {"input_file_id": file, "endpoint": CHATS, "completion_window": "24h"}
    made = (await http.post("/v1/batches", json=asked)).json()["id"]
    await asyncio.sleep(SETTLED_S)
    yield
    await http.post(f"/v1/batches/{made}/cancel")
    while (found := (await http.get(f"/v1/batches/{made}")).json())["status"] != "cancelled":
        if found["status"] not in ("in_progress", "cancelling"):
            raise RuntimeError(f"the batch is {found['status']}: it must be longer, or the server failed: {found}")
        await asyncio.sleep(0.2)


async def measured(url: str, options: argparse.Namespace, number: int) -> Round:
    """Return the figures of a round."""
    found = Round()

    async def requests() -> load.Sample:
        return await arrive(url, options.rate, options.seconds, number)

    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
        for beside in (False, True) if number % 2 else (True, False):
            if not beside:
                found.alone = (await requests()).ttft
                continue
            async with batch(http, number):
                before, began = generated(url), time.perf_counter()
                sample = await requests()
                tokens, seconds = generated(url) - before, time.perf_counter() - began
            found.beside = sample.ttft
            found.requests, found.batch = sample.tokens / seconds, (tokens - sample.tokens) / seconds
    host, port = address(url)
    for count in (options.clients, round(options.seconds * 6)):  # the first ones warm up
        full = await load.run(host, port, "nano", options.clients, count, LINE_TOKENS, number)
    found.clients = full.tokens / full.seconds
    return found


def ms(values: list[float], percent: float) -> float:
    """Return a percentile of times, in milliseconds."""
    return percentile(values, percent) * 1e3


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="of a turn")
    parser.add_argument("--rate", type=float, default=3.0, help="requests a second")
    parser.add_argument("--clients", type=int, default=64, help="that ask again at once")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_args()
    print(stack.machine(), flush=True)
    words = [*ALWAYS, *options.settings]
    found = []
    with stack.running(stack.ours("batch", settings_module.load(dict(word.split("=", 1) for word in words)), words)) as started:
        started.settle()
        for number in range(1, options.rounds + 1):
            one = asyncio.run(measured(started.url, options, number))
            found.append(one)
            ttft = ", ".join(f"p{percent} {ms(one.alone, percent):.0f} and {ms(one.beside, percent):.0f}" for percent in (50, 99))
            print(
                f"round {number}: TTFT without and beside the batch, ms: {ttft}; tokens/s of requests {one.requests:.0f},"
                f" of the batch {one.batch:.0f}, of clients alone {one.clients:.0f}: {one.used:.2f} of what is idle",
                flush=True,
            )
    alone, beside = ([value for one in found for value in getattr(one, name)] for name in ("alone", "beside"))
    print(f"{len(alone)} and {len(beside)} requests")
    for percent in (50, 95, 99):
        ratio = percentile(beside, percent) / percentile(alone, percent)
        print(
            f"TTFT p{percent} without and beside the batch: {ms(alone, percent):.0f} and {ms(beside, percent):.0f} ms, {ratio:.2f}"
        )
    used = [one.used for one in found]
    print(f"idle capacity used: {statistics.median(used):.2f} ({min(used):.2f} to {max(used):.2f})")


if __name__ == "__main__":
    main()
