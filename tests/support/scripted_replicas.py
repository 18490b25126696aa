"""LLM replicas without engines: each next token is a function of the number of tokens before it, so that a reply has one text."""

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import Any

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from deployments.errors import EngineLostError
from deployments.routing.score import Work
from deployments.transport.channel import Address
from deployments.transport.sender import Lane, Sender


class ScriptedReplicas:
    """What the engine client knows of the LLM replicas.

    `allowed` is how many tokens each request may have so far; a replica that comes to the token `deadly` dies.
    """

    chosen = None

    def __init__(self, token: Callable[[int], int]) -> None:
        self.allowed, self.deadly = 10**6, 10**6
        self.asked: list[EngineCoreRequest] = []
        self.clients: list[str | None] = []
        self._token = token
        self._on: set[str] = set()
        self._sender = Sender(on_message=self._ignore)

    def _ignore(self, lane: Lane, frames: list[bytes]) -> None: ...

    async def carry(self, replica: str, address: Address) -> None:
        raise NotImplementedError

    def choose(self, group: str, request_id: str) -> str | None:
        return None

    async def generate(self, group: str, request_id: str, address: Address, encoded: list[bytes], client: str | None) -> None:
        request: EngineCoreRequest = MsgpackDecoder(EngineCoreRequest).decode(encoded)
        self.asked.append(request)
        self.clients.append(client)
        self._on.add(request_id)
        assert request.sampling_params is not None
        before, most = len(request.prompt_token_ids or ()), request.sampling_params.max_tokens or 0
        for number in range(most):
            while number >= self.allowed:
                await asyncio.sleep(0.01)
            if before + number >= self.deadly:
                raise EngineLostError("scripted")
            reason = FinishReason.LENGTH if number == most - 1 else None
            output = EngineCoreOutput(request_id, [self._token(before + number)], finish_reason=reason)
            self._sender.open(address).send(MsgpackEncoder().encode(EngineCoreOutputs(outputs=[output])))
            await asyncio.sleep(0)

    def look_up(
        self, cached: Callable[[Any], Mapping[str, float] | None], coming: Callable[[Any, str], Callable[[], None] | None]
    ) -> None: ...

    def known(self) -> list[str]:
        return ["scripted"]

    def idle(self, kept: float) -> float:
        return math.inf

    def expect(self, request_id: str, work: Work) -> None: ...

    def progressed(self, request_id: str, expected_tokens: float) -> None: ...

    def assigned(self, request_id: str) -> int:
        return int(request_id in self._on)

    def ended(self, request_id: str) -> None: ...

    def lost(self, request_id: str) -> None: ...

    def left(self, request_id: str) -> None:
        self._on.discard(request_id)

    def close(self) -> None:
        self._sender.close()
