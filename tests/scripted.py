"""The whole application with an LLM deployment that has no engine, only scripted tokens: `serve run tests.scripted:application`.

With vLLM's CUDA build on a host without a GPU this shows that the ingress needs none: everything but the engine is real.
"""

import asyncio
from typing import Any

from ray.serve import Application

from deployments.application import build
from deployments.replica import LLM
from deployments.settings import Settings, load

ANSWER = "scripted answer"


class ScriptedCore:
    """An engine core that answers every request with `ANSWER`, a token a step."""

    def __init__(self) -> None:
        self._outputs: asyncio.Queue[Any] = asyncio.Queue()

    async def get_output_async(self) -> Any:
        return await self._outputs.get()

    async def add_request_async(self, request: Any) -> None:
        from tokenizers import Tokenizer
        from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason

        tokenizer = Tokenizer.from_file("models/nano/tokenizer.json")
        ids = tokenizer.encode(ANSWER + "<|im_end|>").ids  # the token that stops is not part of the text
        for position, token in enumerate(ids):
            finish = FinishReason.STOP if position == len(ids) - 1 else None
            output = EngineCoreOutput(request.request_id, [token], finish_reason=finish)
            self._outputs.put_nowait(EngineCoreOutputs(outputs=[output]))

    async def abort_requests_async(self, request_ids: list[str]) -> None: ...

    def shutdown(self, timeout: float | None = None) -> None: ...


class ScriptedLLM(LLM):
    def _start(self, settings: Settings) -> ScriptedCore:
        return ScriptedCore()


def application(arguments: dict[str, Any]) -> Application:
    return build(load(arguments), ScriptedLLM)
