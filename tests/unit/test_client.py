"""The engine client: outputs in, calls out, and no state left behind, whatever happens to a request."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from deployments import client as client_module
from deployments.channel import Address, Sender
from deployments.client import ServeEngineClient

Script = Callable[["Replica", str, Address], Awaitable[None]]


class Replica:
    """A replica with scripted tokens: what `script` does for each call."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.sender = Sender()
        self.calls: dict[str, EngineCoreRequest] = {}
        self.groups: list[str] = []
        self.cancelled: list[str] = []
        self.ended: list[str] = []

    async def generate(self, group: str, request_id: str, address: Address, encoded: list[bytes]) -> None:
        self.groups.append(group)
        self.calls[request_id] = MsgpackDecoder(EngineCoreRequest).decode(encoded)
        try:
            await self._script(self, request_id, address)
        except asyncio.CancelledError:
            self.cancelled.append(request_id)
            raise

    def send(self, address: Address, request_id: str, token: int, last: bool = False) -> None:
        output = EngineCoreOutput(request_id, [token], finish_reason=FinishReason.STOP if last else None)
        self.sender.open(address).send(MsgpackEncoder().encode(EngineCoreOutputs(outputs=[output])))


def request(request_id: str) -> EngineCoreRequest:
    return EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=[1, 2, 3],
        mm_features=None,
        sampling_params=SamplingParams(max_tokens=5),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
        external_req_id="group-" + request_id,
    )


async def three_tokens(replica: Replica, request_id: str, address: Address) -> None:
    for token in (1, 2, 3):
        replica.send(address, request_id, token, last=token == 3)


async def never_ends(replica: Replica, request_id: str, address: Address) -> None:
    replica.send(address, request_id, 1)
    await asyncio.Event().wait()


@pytest.fixture
async def made() -> AsyncIterator[Callable[[Script], tuple[Replica, ServeEngineClient]]]:
    made: list[tuple[Replica, ServeEngineClient]] = []

    def make(script: Script) -> tuple[Replica, ServeEngineClient]:
        replica = Replica(script)
        made.append((replica, ServeEngineClient(replica.generate, "127.0.0.1", replica.ended.append)))
        return made[-1]

    yield make
    for replica, client in made:
        client.shutdown()
        replica.sender.close()


async def test_outputs_arrive_and_nothing_is_kept(made: Callable) -> None:  # type: ignore[type-arg]
    replica, client = made(three_tokens)
    await client.add_request_async(request("a"))
    outputs = [(await client.get_output_async()).outputs[0] for _ in range(3)]
    assert [output.new_token_ids for output in outputs] == [[1], [2], [3]]
    assert outputs[-1].finish_reason is FinishReason.STOP
    assert client.open_requests == []
    assert replica.ended == ["a"]
    assert replica.calls["a"].prompt_token_ids == [1, 2, 3]
    assert replica.calls["a"].sampling_params.max_tokens == 5
    assert replica.groups == ["group-a"]


async def test_an_abort_cancels_the_call(made: Callable) -> None:  # type: ignore[type-arg]
    replica, client = made(never_ends)
    await client.add_request_async(request("a"))
    await client.add_request_async(request("b"))
    await client.get_output_async()
    await client.get_output_async()
    await client.abort_requests_async(["a", "unknown"])
    assert client.open_requests == ["b"]
    while not replica.cancelled:
        await asyncio.sleep(0.001)
    assert replica.cancelled == ["a"]


async def test_a_failed_call_ends_its_request_with_an_error(made: Callable) -> None:  # type: ignore[type-arg]
    async def fails(replica: Replica, request_id: str, address: Address) -> None:
        raise RuntimeError("the replica died")

    _, client = made(fails)
    await client.add_request_async(request("a"))
    output = (await client.get_output_async()).outputs[0]
    assert (output.request_id, output.new_token_ids, output.finish_reason) == ("a", [], FinishReason.ERROR)
    assert client.open_requests == []


async def test_a_call_that_ends_without_last_tokens_fails(
    made: Callable,  # type: ignore[type-arg]
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "LAST_TOKENS_S", 0.01)

    async def loses_the_end(replica: Replica, request_id: str, address: Address) -> None:
        replica.send(address, request_id, 1)

    _, client = made(loses_the_end)
    await client.add_request_async(request("a"))
    outputs = [(await client.get_output_async()).outputs[0] for _ in range(2)]
    assert [output.finish_reason for output in outputs] == [None, FinishReason.ERROR]
