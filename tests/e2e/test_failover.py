"""Fail-over on the real stack: replicas are killed and frozen under load, and no stream shows it."""

import random

import httpx
import psutil
import pytest
from conftest import Served

from cluster import chaos
from deployments.draining import RUN

ARGUMENTS = chaos.ARGUMENTS


@pytest.mark.timeout(400)
async def test_lost_replicas_lose_no_stream(served: Served) -> None:
    stack, rng = served.stack, random.Random(7)
    async with chaos.client(served.url) as http:
        await stack.whole(http)
        wanted = await chaos.calm(http)
        before = {process.pid for process in stack.replicas()}
        for fault in ("controller", "actor", "frozen"):  # `make chaos` has more
            outcome = await chaos.strike(stack, http, fault, wanted, rng)
            assert (outcome.lost, outcome.wrong) == ([], 0), outcome
            assert (outcome.moved > 0) == (fault != "controller"), outcome
            if fault == "actor":  # which a controller has replaced; the new one has taken over what the killed one left
                assert len(before - {process.pid for process in stack.replicas()}) == 1
        ready = (await http.get("/ready")).json()
        assert ready["ingress"]["open"] == ready["ingress"]["states"] == 0


def test_no_engine_outlives_its_replica(served: Served) -> None:
    """A killed actor's engine, and a hung engine, would hold a GPU's memory."""
    mine = {engine.pid for replica in served.stack.llm_replicas() for engine in chaos.engines(replica)}
    of_this_run = psutil.Process(max(mine)).environ()[RUN]
    found = {process for process in psutil.process_iter() if chaos.is_engine(process)}
    assert {process.pid for process in found if process.environ().get(RUN) == of_this_run} == mine


async def test_the_metrics_tell_of_it(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.url) as http:
        moved, again = await chaos.counted(http)
    assert moved > 0
    assert again > 0
