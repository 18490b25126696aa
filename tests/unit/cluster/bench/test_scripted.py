"""The scripted replicas of `cluster.bench.scale` speak vLLM's frames."""

import asyncio
from typing import Any

import pytest
from ray import serve
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from cluster.bench.scripted import ScriptedLLM
from deployments.settings import load
from deployments.transport.receiver import Receiver
from tests.support.until import until_async


async def test_requests_get_their_tokens_in_common_steps_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Context:
        class replica_id:  # noqa: N801  # Ray's name
            unique_id = "r"

    monkeypatch.setattr(serve, "get_replica_context", lambda: Context)
    steps: list[Any] = []
    decoder = MsgpackDecoder(EngineCoreOutputs)
    receiver = Receiver("127.0.0.1", lambda frames: steps.append(decoder.decode(frames)))
    llm = ScriptedLLM(load({"preset": "nano-cpu"}))

    def request(name: str, tokens: int) -> list[bytes]:
        made = EngineCoreRequest(name, [1], None, SamplingParams(max_tokens=tokens), None, 0.0, None, None, None)
        return [bytes(part) for part in MsgpackEncoder().encode(made)]

    await asyncio.gather(*(llm.generate("g", name, receiver.address, request(name, n), None) for name, n in (("a", 2), ("b", 3))))
    await until_async(lambda: sum(len(step.outputs) for step in steps), "five outputs", holds=lambda count: count >= 5)
    assert [[output.request_id for output in step.outputs] for step in steps] == [["a", "b"], ["a", "b"], ["b"]]
    assert [output.finish_reason for output in steps[1].outputs] == [FinishReason.LENGTH, None]
    assert all(step.timestamp > 0 for step in steps)
    assert (await llm.state())["open"] == 0
    llm._sender.close()
    receiver.close()
