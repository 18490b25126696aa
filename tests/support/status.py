"""What a running application says of its requests: on its route `/ready`, and in vLLM's counters."""

import re
from collections.abc import Callable
from typing import Any

import httpx

from tests.support.until import TIMEOUT_S, until_async


async def ready(http: httpx.AsyncClient) -> dict[str, Any]:
    """Return what one ingress and one LLM replica say of themselves."""
    found: dict[str, Any] = (await http.get("/ready")).json()
    return found


async def until_ready(
    http: httpx.AsyncClient,
    what: str,
    holds: Callable[[dict[str, Any]], object],
    timeout_s: float = TIMEOUT_S,
) -> dict[str, Any]:
    """Return the first answer of `/ready` of which `holds` is true."""
    return await until_async(lambda: ready(http), what, timeout_s, holds=holds)


async def until_idle(http: httpx.AsyncClient, timeout_s: float = 60) -> None:
    """Wait until nothing is left of any request, in ingress, replica and engine."""

    def idle(now: dict[str, Any]) -> bool:
        replica, ingress = now["replica"], now["ingress"]
        return not (replica["open"] or replica["running"] or replica["waiting"] or ingress["open"] or ingress["states"])

    await until_ready(http, "no request is left", idle, timeout_s)


async def until_states(http: httpx.AsyncClient, count: int) -> None:
    """Wait until the ingress holds the state of so many requests."""
    await until_ready(http, f"the ingress holds {count} requests", lambda now: now["ingress"]["states"] == count, 60)


async def until_running(http: httpx.AsyncClient, count: int) -> None:
    """Wait until the engine runs so many requests."""
    await until_ready(http, f"the engine runs {count} requests", lambda now: now["replica"]["running"] == count, 60)


async def ended(http: httpx.AsyncClient) -> dict[str, float]:
    """Return how many requests have ended so far, by reason, as vLLM counts them."""
    found = re.findall(r'vllm:request_success_total\{.*finished_reason="(\w+)".*\} (\S+)', (await http.get("/metrics")).text)
    return {reason: float(count) for reason, count in found}
