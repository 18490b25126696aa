"""Fail-over on the real stack: replicas are killed and frozen under load, and no stream shows it."""

import asyncio
import json
import os
import random
import re
import signal
from collections import defaultdict
from collections.abc import Iterator

import httpx
import psutil
import pytest

from cluster.bench import chaos, chats
from cluster.bench.stack import engines, is_engine, run_of
from tests.support.application import Served
from tests.support.collector import Collector, attributes, collecting
from tests.support.until import until_async


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """Where the application sends its traces."""
    with collecting() as server:
        yield server


@pytest.fixture(scope="module")
def served(collector: Collector) -> Iterator[Served]:
    """Two LLM replicas and one ingress, which traces."""
    with Served(*chaos.ARGUMENTS, f"tracing.otlp_endpoint={collector.endpoint}") as application:
        yield application


async def lose(served: Served, *faults: str) -> None:
    """Strike with these faults one after the other; check that no stream shows it, and that nothing is left of them."""
    stack, rng = served.stack, random.Random(7)
    async with chaos.client(served.url) as http:
        await stack.whole(http)
        wanted = await chaos.calm(http)
        before = {process.pid for process in stack.replicas()}
        for fault in faults:  # `make chaos` has more
            outcome = await chaos.strike(chaos.Application(stack), http, fault, wanted, rng)
            assert (outcome.lost, outcome.wrong) == ([], 0), outcome
            assert (outcome.moved > 0) == (fault != "controller"), outcome
            if fault == "actor":  # which a controller has replaced; the new one has taken over what the killed one left
                assert len(before - {process.pid for process in stack.replicas()}) == 1
        ready = (await http.get("/ready")).json()
        assert ready["ingress"]["open"] == ready["ingress"]["states"] == 0


async def test_a_lost_replica_loses_no_stream(served: Served) -> None:
    await lose(served, "actor")


@pytest.mark.long
@pytest.mark.timeout(400)
async def test_lost_controllers_engines_and_frozen_ones_lose_no_stream(served: Served) -> None:
    await lose(served, "controller", "actor", "engine ended", "frozen")


NUMBERS = {"type": "array", "items": {"type": "integer"}, "minItems": 60, "maxItems": 80}
SCHEMA = {"type": "object", "properties": {"answers": NUMBERS}, "required": ["answers"], "additionalProperties": False}
IN_FORMAT = {"response_format": {"type": "json_schema", "json_schema": {"name": "answers", "schema": SCHEMA}}}


async def test_answers_in_a_format_go_on_where_they_stood(served: Served) -> None:
    """An engine is killed while its replies write JSON, behind their thoughts: on the other the grammar stands where it stood."""
    bodies = [chats.question(0) | IN_FORMAT | {"ignore_eos": False, "max_tokens": 1500, "coat": {}} for _ in range(12)]
    for number, body in enumerate(bodies):
        body["messages"] = [{"role": "user", "content": f"What is {100 + number} + {20 + 3 * number}?"}]

    async def replies(http: httpx.AsyncClient, interrupt: bool) -> list[chats.Reply]:
        found = [chats.Reply() for _ in bodies]
        reading = asyncio.gather(*(reply.read(http, body) for reply, body in zip(found, bodies, strict=True)))
        if interrupt:
            while not all(reply.text.get(0) for reply in found):
                await asyncio.sleep(0.001)
            assert not any(reply.finish for reply in found), "all answers are being written"
            [engine] = engines(served.stack.llm_replicas()[0])
            os.kill(engine.pid, signal.SIGKILL)
        await reading
        return found

    async with chaos.client(served.url) as http:
        await served.stack.whole(http)
        calm, before = await replies(http, interrupt=False), await chaos.counted(http)
        struck, after = await replies(http, interrupt=True), await chaos.counted(http)
        await served.stack.whole(http)
    assert after[0] > before[0], "some were moved"
    for reply, undisturbed in zip(struck, calm, strict=True):
        assert reply.well
        assert reply.same(undisturbed)
        assert set(reply.finish.values()) == {"stop"}
        assert 60 <= len(json.loads(reply.text[0])["answers"]) <= 80


def test_no_engine_outlives_its_replica(served: Served) -> None:
    """A killed actor's engine, and a hung engine, would hold a GPU's memory."""
    mine = {engine.pid for replica in served.stack.llm_replicas() for engine in engines(replica)}
    of_this_run = run_of(psutil.Process(max(mine)))
    assert of_this_run is not None
    found = {process for process in psutil.process_iter() if is_engine(process)}
    assert {process.pid for process in found if run_of(process) == of_this_run} == mine


async def test_metrics_go_with_replicas_and_counters_stay(served: Served) -> None:
    """After replicas were lost: no target is dead, no gauge is left of one, and what the lost ones did is still counted."""
    async with httpx.AsyncClient(base_url=served.url) as http:
        targets = (await http.get("/metrics/targets")).json()
        engines = [target for target in targets if target["labels"]["deployment"] == "LLM"]
        assert len(engines) == 2
        text = {}
        for target in targets:
            [address] = target["targets"]
            text[target["labels"]["replica"]] = (await http.get(f"http://{address}/metrics")).text
    running = [re.findall(r'vllm:num_requests_running{engine="(\d)"', text[target["labels"]["replica"]]) for target in engines]
    assert sorted(running) == [["0"], ["1"]]
    [ingress] = [target["labels"]["replica"] for target in targets if target["labels"]["deployment"] == "Ingress"]
    assert "vllm:num_requests_running" not in text[ingress]
    tokens = dict(re.findall(r'vllm:generation_tokens_total{engine="(\d)",model_name="nano"} (\S+)', text[ingress]))
    assert tokens.keys() == {"0", "1"}
    assert sum(map(float, tokens.values())) > 2 * chats.STREAMS * chats.TOKENS


async def test_the_metrics_tell_of_it(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.url) as http:
        moved, again = await chaos.counted(http)
    assert moved > 0
    assert again > 0


async def test_a_moved_request_is_one_trace(served: Served, collector: Collector) -> None:
    async with httpx.AsyncClient(base_url=served.url) as http:
        reply = await http.post("/v1/completions", json={"model": "nano", "prompt": "1"}, headers={"x-request-id": "the-last"})
        assert reply.headers["x-request-id"] == "the-last"

    def request_ids() -> set[str | None]:
        return {attributes(span).get("satori.request_id") for span in list(collector.spans)}

    await until_async(request_ids, "the last request's span, sent after some seconds", holds=lambda ids: "the-last" in ids)
    traces = defaultdict(list)
    for span in collector.spans:
        traces[span.trace_id].append(span)
    events = {trace: sum(event.name == "fail-over" for span in spans for event in span.events) for trace, spans in traces.items()}
    moved = [traces[trace] for trace, count in events.items() if count]
    async with httpx.AsyncClient(base_url=served.url) as http:
        assert sum(events.values()) == (await chaos.counted(http))[0]
    assert moved
    for spans in moved:
        names = [span.name for span in spans]
        assert names.count("POST /v1/chat/completions") == 1
        assert names.count("replica") >= 2
        assert {"engine request", "route", "queue", "prefill", "decode"} <= set(names)
        [root] = [span for span in spans if not span.parent_span_id]
        request_id = attributes(root)["satori.request_id"]
        inner = [attributes(span)["gen_ai.request.id"] for span in spans if span.name == "engine request"]
        assert request_id
        assert all(request_id in one for one in inner), "as in the logs"
