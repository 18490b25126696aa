"""Fail-over on the real stack: replicas are killed and frozen under load, and no stream shows it."""

import asyncio
import json
import os
import random
import signal
from typing import Any

import httpx
import psutil
import pytest
from conftest import Served

ARGUMENTS = ("llm.num_replicas=2", "llm.num_cpus=0.4", "ingress.num_cpus=0.4", "ui.enabled=false", "llm.hung_after_s=5")
STREAMS = 50
FAULTS = [("engine", signal.SIGKILL), ("actor", signal.SIGKILL), ("engine", signal.SIGSTOP), ("both", signal.SIGKILL)]
TOKENS = 160

pytestmark = pytest.mark.timeout(300)


def words(process: psutil.Process) -> str:
    """Return a process's command line, nothing if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def engines(replica: psutil.Process) -> list[psutil.Process]:
    """Return the engine processes of an LLM replica's actor."""
    try:
        return [child for child in replica.children(recursive=True) if "EngineCore" in words(child)]
    except psutil.Error:
        return []


def llm_replicas(served: Served) -> list[psutil.Process]:
    """Return the processes of the LLM replicas' actors that have an engine."""
    return [process for process in served.processes() if "ServeReplica:default:LLM" in words(process) and engines(process)]


async def both_up(served: Served, http: httpx.AsyncClient) -> list[psutil.Process]:
    """Wait until two replicas have answered."""
    seen: set[str] = set()
    while len(seen) < 2 or len(llm_replicas(served)) != 2:
        reply = (await http.get("/ready")).json()
        seen |= {reply["replica"]["id"]} if reply["ready"] else set()
        await asyncio.sleep(0.1)
    return llm_replicas(served)


def question(number: int) -> dict[str, Any]:
    """Return request `number` of a mixed load: stateless ones, and ones whose state a prompt cannot give back."""
    body: dict[str, Any] = {"model": "nano", "temperature": 0, "stream": True, "max_tokens": TOKENS}
    body["messages"] = [{"role": "user", "content": f"What is {100 + number} * 6 - {3 * number}?"}]
    kinds: list[dict[str, Any]] = [
        {"ignore_eos": True, "coat": {"parse": False}},
        {"min_tokens": TOKENS - 10, "logprobs": True, "top_logprobs": 2},
        {"temperature": 1, "seed": number, "ignore_eos": True},
        {"frequency_penalty": 0.2, "presence_penalty": 0.2, "ignore_eos": True},
        {"structured_outputs": {"regex": f"[0-9 ]{{{TOKENS - 20}}}"}, "coat": {"parse": False}},
        {"ignore_eos": True, "coat": {"max_reasoning_tokens": TOKENS // 2, "max_reflections": 1}},
    ]
    return body | kinds[number % len(kinds)]


class Reply:
    """What a stream brought: its text, and all else that must not be disturbed."""

    def __init__(self) -> None:
        self.chunks = 0
        self.text = ""
        self.reasoning = ""
        self.logprobs: list[str] = []
        self.finish = ""
        self.errors: list[Any] = []
        self.done = False

    async def read(self, http: httpx.AsyncClient, body: dict[str, Any]) -> "Reply":
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    self.done = True
                    break
                event = json.loads(line[6:])
                if "error" in event:
                    self.errors.append(event["error"])
                    continue
                for choice in event["choices"]:
                    self.chunks += 1
                    self.text += choice["delta"].get("content") or ""
                    self.reasoning += choice["delta"].get("reasoning") or ""
                    self.logprobs += [item["token"] for item in (choice.get("logprobs") or {}).get("content", [])]
                    self.finish = choice["finish_reason"] or self.finish
        return self

    def same(self) -> tuple[Any, ...]:
        return self.text, self.reasoning, self.logprobs, self.finish, self.errors, self.done


async def test_killed_replicas_lose_no_stream(served: Served) -> None:
    rng = random.Random(7)
    limits = httpx.Limits(max_connections=STREAMS + 2)
    async with httpx.AsyncClient(base_url=served.url, timeout=120, limits=limits) as http:
        await both_up(served, http)
        bodies = [question(number) for number in range(STREAMS)]
        calm = await asyncio.gather(*(Reply().read(http, body) for body in bodies))
        assert all(reply.done and reply.finish and not reply.errors for reply in calm)
        for victim, number in FAULTS:
            up = await both_up(served, http)
            one = rng.choice(up)
            struck = {"actor": [one], "engine": engines(one), "both": [*engines(up[0]), *engines(up[1])]}[victim]
            replies = [Reply() for _ in bodies]
            reading = asyncio.gather(*(reply.read(http, body) for reply, body in zip(replies, bodies, strict=True)))
            moment = rng.randrange(STREAMS, sum(reply.chunks for reply in calm) // 2)
            while sum(reply.chunks for reply in replies) < moment:
                await asyncio.sleep(0.001)
            for process in struck:
                os.kill(process.pid, number)
            await reading
            for body, before, after in zip(bodies, calm, replies, strict=True):
                assert after.same() == before.same(), (victim, number, body)
        ready = (await http.get("/ready")).json()
        assert ready["ingress"]["open"] == ready["ingress"]["states"] == 0
