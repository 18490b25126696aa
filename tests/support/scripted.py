"""The whole application without an engine: its LLM deployment has scripted tokens. Everything else is real.

    serve run tests.support.scripted:application

`slow` is the same with replies that take time.

With vLLM's CUDA build on a host without a GPU, this shows that the ingress needs no GPU.
"""

import asyncio
import os
from typing import Any

from ray.serve import Application

from deployments.application import build
from deployments.replica.deployment import LLM
from deployments.settings import Settings, load
from deployments.transport import wire
from tests.support.paths import NANO

ANSWER = "scripted answer"
TOKEN, STEP_S = 300, 0.25


class ScriptedCore:
    """An engine core that answers every request with `ANSWER`, a token a step."""

    seeded_by_position = False
    pid = os.getpid()

    def __init__(self) -> None:
        self._steps: asyncio.Queue[wire.Step] = asyncio.Queue()

    def attach(self, on_cache: Any) -> None: ...

    async def step(self) -> tuple[wire.Step, list[bytes]]:
        return await self._steps.get(), []

    def add(self, request: wire.Request, rest: list[bytes]) -> None:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(NANO / "tokenizer.json"))
        ids = tokenizer.encode(ANSWER + "<|im_end|>").ids  # the token that stops is not part of the text
        for position, token in enumerate(ids):
            finish = wire.STOP if position == len(ids) - 1 else None
            self._steps.put_nowait(wire.Step(outputs=[wire.Output(request.request_id, [token], finish_reason=finish)]))

    def abort(self, request_ids: list[str]) -> None: ...

    async def call(self, method: str, *arguments: Any) -> str:
        return ""

    def close(self) -> None: ...


class SlowCore(ScriptedCore):
    """An engine core that sends each request as many tokens as it may have, one every `STEP_S`."""

    def __init__(self) -> None:
        super().__init__()
        self._left: dict[str, int] = {}
        self._stepping: asyncio.Task[None] | None = None

    def add(self, request: wire.Request, rest: list[bytes]) -> None:
        self._left[request.request_id] = request.sampling_params["max_tokens"]
        if self._stepping is None or self._stepping.done():
            self._stepping = asyncio.create_task(self._run())

    def abort(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._left.pop(request_id, None)

    async def _run(self) -> None:
        while self._left:
            await asyncio.sleep(STEP_S)
            self._left = {request_id: left - 1 for request_id, left in self._left.items()}
            outputs = [wire.Output(i, [TOKEN], finish_reason=None if left else wire.LENGTH) for i, left in self._left.items()]
            self._steps.put_nowait(wire.Step(outputs=outputs))
            self._left = {request_id: left for request_id, left in self._left.items() if left}


class ScriptedLLM(LLM):
    def _start(self, settings: Settings) -> ScriptedCore:
        return ScriptedCore()


class SlowLLM(LLM):
    def _start(self, settings: Settings) -> ScriptedCore:
        return SlowCore()


def application(arguments: dict[str, Any]) -> Application:
    return build(load(arguments), ScriptedLLM)


def slow(arguments: dict[str, Any]) -> Application:
    return build(load(arguments), SlowLLM)
