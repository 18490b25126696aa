"""What routes by KV caches save: prompt tokens read anew on two LLM replicas, beside the old rule and beside one replica alone.

Three applications run one after the other: two replicas to which requests go by what is cached there, two to which they go where
the fewest requests are (`routing.policy=requests`), and one that has everything. Each gets the same requests:

- turns: conversations of several turns, each with a long first message of its own, whose users answer after a while;
- few-shot: an evaluation, whose questions follow one of several long lists of examples, in mixed order.

vLLM's own counters tell how many tokens the prompts had and how many of them were in a cache.

At last, a long prompt is in the caches of two of three replicas, and one of these is killed in mid-stream: what does the request
that moves find where it goes?

    python -m cluster.bench.prefixes [--clients 8] [--seed 1] [key=value ...]
"""

import argparse
import asyncio
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import httpx
import psutil

from cluster.bench import stack
from cluster.bench.scraper import samples
from deployments import settings as settings_module

TOKENS = 24
"""Of each reply."""
RULES = {
    "by cache": ["llm.num_replicas=2"],
    "fewest requests": ["llm.num_replicas=2", "routing.policy=requests"],
    "one replica": ["llm.num_replicas=1"],
}
ALWAYS = ["ingress.num_replicas=1", "ui.enabled=false", "llm.num_cpus=0.4", "ingress.num_cpus=0.4"]
COUNTED = ("vllm:prompt_tokens_total", "vllm:prefix_cache_hits_total")

Chat = list[dict[str, str]]


def digits(rng: random.Random, count: int) -> str:
    """Return so many random digits; nano has a token for each."""
    return "".join(rng.choices("0123456789", k=count))


def conversations(rng: random.Random, count: int = 24, turns: int = 6) -> list[list[Chat]]:
    """Return conversations: for each the chats up to its first question, its second, and so on. What was answered is given."""
    made = []
    for _ in range(count):
        said: Chat = [{"role": "system", "content": digits(rng, 1500)}]
        chats = []
        for _ in range(turns):
            said.append({"role": "user", "content": digits(rng, 150)})
            chats.append(list(said))
            said.append({"role": "assistant", "content": digits(rng, 100)})
        made.append(chats)
    return made


def evaluation(rng: random.Random, tasks: int = 24, questions: int = 8) -> list[list[Chat]]:
    """Return single questions of several tasks, each after its task's examples."""
    examples = [digits(rng, 3000) for _ in range(tasks)]
    return [[[{"role": "user", "content": shown + "\n" + digits(rng, 60)}]] for shown in examples for _ in range(questions)]


WORKLOADS: dict[str, Callable[[random.Random], list[list[Chat]]]] = {"turns": conversations, "few-shot": evaluation}


async def ask(url: str, work: Iterable[Sequence[Chat]], clients: int, rng: random.Random) -> None:
    """Send all chats, those of one conversation in order. Each client sends the next one of any conversation that waits.

    Raises httpx.HTTPError if one fails.
    """
    waiting = [list(chats) for chats in work]
    async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False) as http:

        async def client() -> None:
            while waiting:
                chats = waiting.pop(rng.randrange(len(waiting)))
                body = {"model": "nano", "messages": chats.pop(0), "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
                (await http.post("/v1/chat/completions", json=body)).raise_for_status()
                if chats:
                    waiting.append(chats)

        await asyncio.gather(*(client() for _ in range(clients)))


@dataclass(frozen=True)
class Tokens:
    """Prompt tokens, and those of them that were in a KV cache."""

    prompt: int
    cached: int

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.prompt + other.prompt, self.cached + other.cached)

    def __sub__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.prompt - other.prompt, self.cached - other.cached)

    @property
    def computed(self) -> int:
        """Those that were read anew."""
        return self.prompt - self.cached


def counted_by_process(url: str) -> dict[str, Tokens]:
    """Return what vLLM has counted since the application started, by the address of the process."""
    found = {}
    for address, of_process in samples(url).items():
        sums = dict.fromkeys(COUNTED, 0.0)
        for sample in of_process:
            if sample.name in sums:
                sums[sample.name] += sample.value
        found[address] = Tokens(*map(int, sums.values()))
    return found


def counted(url: str) -> Tokens:
    """Return what vLLM has counted since the application started."""
    return sum(counted_by_process(url).values(), Tokens(0, 0))


async def known(url: str, rng: random.Random, ingresses: int, replicas: int) -> None:
    """Send prompts until each ingress knows the caches of all replicas: of one that has cached nothing yet none is known."""
    while True:
        await ask(url, [[[{"role": "user", "content": digits(rng, 200)}]] for _ in range(8)], 8, rng)
        told = (sample for of_process in samples(url).values() for sample in of_process)
        if [sample.value for sample in told if sample.name == "satori_cache_known_replicas"] == [replicas] * ingresses:
            return
        await asyncio.sleep(0.5)


async def measured(url: str, rule: str, clients: int, seed: int) -> dict[str, Tokens]:
    """Return the tokens of each workload."""
    found = {}
    if rule == "by cache":
        await known(url, random.Random(f"{seed} warm"), ingresses=1, replicas=2)
    for name, make in WORKLOADS.items():
        before = counted(url)
        rng = random.Random(f"{seed} {name}")
        await ask(url, make(rng), clients, rng)
        found[name] = counted(url) - before
    return found


async def busiest(processes: Sequence[psutil.Process], seconds: float = 0.3) -> psutil.Process:
    """Return the process that uses the most CPU in the next moment."""
    before = {process: stack.cpu_seconds([process]) for process in processes}
    await asyncio.sleep(seconds)
    return max(processes, key=lambda process: stack.cpu_seconds([process]) - before[process])


async def moved(started: stack.Stack, seed: int) -> Tokens:
    """Return the tokens of a prompt whose request moves, and those that it found in the cache of its second replica."""
    rng = random.Random(f"{seed} moved")
    await known(started.url, rng, ingresses=1, replicas=3)
    chat = [{"role": "user", "content": digits(rng, 3000)}]
    await ask(started.url, [[chat], [chat]], 2, rng)  # the second does not wait for the first, and so goes to another replica
    body = {"model": "nano", "messages": chat, "max_tokens": 600, "temperature": 0, "ignore_eos": True, "stream": True}
    body["stream_options"] = {"include_usage": True}
    async with (
        httpx.AsyncClient(base_url=started.url, timeout=300, trust_env=False) as http,
        http.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        lines = response.aiter_lines()
        for _ in range(20):
            await anext(lines)
        before = counted_by_process(started.url)
        stack.kill([await busiest([engine for replica in started.llm_replicas() for engine in stack.engines(replica)])])
        said = [line async for line in lines if line]
    assert said[-1] == "data: [DONE]"
    prompt = json.loads(said[-2].removeprefix("data: "))["usage"]["prompt_tokens"]
    after = counted_by_process(started.url)
    return Tokens(prompt, sum(tokens.cached - before[address].cached for address, tokens in after.items() if address in before))


def application(words: Sequence[str]) -> stack.Server:
    """Return our application with these settings."""
    return stack.ours("prefixes", settings_module.load(dict(word.split("=", 1) for word in words)), words)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=8, help="conversations at a time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_args()
    print(stack.machine(), flush=True)
    found: dict[str, dict[str, Tokens]] = {}
    for rule, words in RULES.items():
        with stack.running(application([*ALWAYS, *words, *options.settings])) as started:
            found[rule] = asyncio.run(measured(started.url, rule, options.clients, options.seed))
        for name, tokens in found[rule].items():
            print(f"{rule}, {name}: {tokens.prompt} prompt tokens, {tokens.cached} cached, {tokens.computed} computed", flush=True)
    words = [*ALWAYS, "llm.num_replicas=3", *options.settings]
    with stack.running(application(words)) as started:
        tokens = asyncio.run(moved(started, options.seed))
    print(f"moved: {tokens.prompt} prompt tokens, {tokens.cached} cached")
    ours, old, alone = found.values()
    for name in WORKLOADS:
        print(f"{name}: computed by the old rule, times {ours[name].computed / old[name].computed:.2f};", end=" ")
        print(f"cached on one replica, times {ours[name].cached / alone[name].cached:.2f}")


if __name__ == "__main__":
    main()
