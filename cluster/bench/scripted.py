"""The application with LLM replicas that have no engine but send scripted tokens at a given pace, for `cluster.bench.scale`.

They speak vLLM's frames without importing vLLM, so that a machine holds many of them: each takes some 100 MB. Ingress, proxy and
Serve are real; the cost of an engine is missing.
"""

import asyncio
import time
from typing import Any, cast

import msgspec
from ray.serve import Application

from cluster.bench.stepping import Stepping
from deployments.application import build
from deployments.replica.deployment import LLM
from deployments.settings import Settings, load
from deployments.transport import wire
from deployments.transport.channel import Address
from deployments.transport.sender import Lane, Sender

TOKEN = 300


class Reply:
    """An open request: the number of tokens it is still to get, and the lane they are sent on."""

    def __init__(self, lane: Lane, left: int) -> None:
        self.lane, self.left = lane, left
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class ScriptedLLM(Stepping[Reply]):
    """Has the interface of `deployments.replica.deployment.LLM`. Each `autoscaling.step_s`, one step sends each request a token."""

    def __init__(self, settings: Settings) -> None:
        from ray import serve

        self._id = serve.get_replica_context().replica_id.unique_id
        super().__init__(settings.autoscaling.step_s)
        self._sender = Sender()
        self._served = 0

    async def generate(self, group: str, request_id: str, address: Address, encoded: list[bytes], client: str | None) -> None:
        """Send a request its tokens; return when it has all of them."""
        request = msgspec.msgpack.decode(encoded[0])
        lane = self._sender.open(address)
        reply = Reply(lane, request[3].get("max_tokens", 16))
        self._open(request_id, reply)
        try:
            await reply.ended
        finally:
            self._replies.pop(request_id, None)
            self._served += 1
            self._sender.release(lane)

    def _step(self) -> None:
        parts: dict[Lane, list[wire.Output]] = {}
        for request_id, reply in self._replies.items():
            if reply.left > 0:
                reply.left -= 1
                ends = None if reply.left else wire.LENGTH
                parts.setdefault(reply.lane, []).append(wire.Output(request_id, [TOKEN], finish_reason=ends))
                if ends is not None:
                    reply.ended.set_result(None)
        for lane, outputs in parts.items():
            lane.send([msgspec.msgpack.encode(wire.Step(outputs=outputs, timestamp=time.monotonic()))])

    async def state(self) -> dict[str, Any]:
        """Return this replica's id and its requests."""
        return {"id": self._id, "open": len(self._replies), "served": self._served, "running": len(self._replies), "waiting": 0}

    async def check_health(self) -> None:
        """Return always: a scripted replica is healthy."""


def application(arguments: dict[str, Any]) -> Application:
    """Return the application with scripted replicas: `serve run cluster.bench.scripted:application autoscaling.step_s=0.03 ...`."""
    return build(load(arguments), cast(type[LLM], ScriptedLLM))
