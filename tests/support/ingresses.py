"""Two ingresses (the real app and engine client), one store, scripted replicas."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from deployments.engine_client.client import ServeEngineClient
from deployments.ingress.responses import Run
from tests.support.in_process import Server, served
from tests.support.scripted_replicas import ScriptedReplicas

LEASE_S = "6"
"""Longer than a busy machine holds up a test: else the other ingress takes over."""


class Ingresses:
    """Two ingresses, `first` and `second`, that share a store; the replicas of each, and a client of each."""

    def __init__(self, servers: list[Server], replicas: list[ScriptedReplicas]) -> None:
        self.servers, self.replicas = servers, replicas
        self.first, self.second = (
            openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="x", http_client=s.http) for s in servers
        )

    async def lose(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have the first ingress lose a run as if it were killed, and as much time had passed; the second may go on with it."""
        responses, lease = self.servers[0].responses, run.chain.lease
        assert run.task is not None
        assert lease is not None
        monkeypatch.setattr(responses, "_claim", lambda: asyncio.sleep(0))  # it could claim it back
        run.task.cancel()  # which ends nothing
        await responses.store.release(lease)


def token(position: int) -> int:
    """Return the token that a scripted replica writes at a position."""
    return 40 + position % 50


@asynccontextmanager
async def two_ingresses(store: Path) -> AsyncIterator[tuple[list[Server], list[ScriptedReplicas]]]:
    """Run two ingresses with this store; yield them, and the replicas of each."""
    async with AsyncExitStack() as stack:
        servers, replicas = [], []
        for _ in range(2):
            fleet = ScriptedReplicas(token)

            def core(*_: Any, hooks: Any, ports: Any, fleet: ScriptedReplicas = fleet, **options: Any) -> ServeEngineClient:
                return ServeEngineClient(fleet, "127.0.0.1", hooks=hooks, **options)  # type: ignore[arg-type]

            servers.append(await stack.enter_async_context(served(core, store__url=str(store), store__lease_s=LEASE_S)))
            replicas.append(fleet)
        yield servers, replicas
        for server, fleet in zip(servers, replicas, strict=True):
            server.responses.close()
            fleet.close()
