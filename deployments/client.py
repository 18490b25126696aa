"""An `EngineCoreClient` of vLLM over Ray Serve: to vLLM's AsyncLLM, all LLM replicas together look like one engine.

A request is one Serve handle call, open until the replica has sent the request's last token; the tokens come over the token
channel. An abort cancels the call.
"""

import asyncio
import contextvars
import logging
import types
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import zmq
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from deployments import intake
from deployments.channel import Address, Receiver
from deployments.engine import TASKS

logger = logging.getLogger("satori.ingress")

# Calls an LLM replica: (group, request id, address for the tokens, encoded request) -> done. `group` is the same for the
# samples of one request (n > 1), which share a prompt and so belong on one replica.
Generate = Callable[[str, str, Address, list[bytes]], Awaitable[None]]
# The last tokens travel beside the call's own return and may come a little later; not this much later.
LAST_TOKENS_S = 30.0


class ServeEngineClient(EngineCoreClient):
    """The engine side of an AsyncLLM whose engine is a set of LLM replicas.

    `host` is where the replicas send tokens to; `ended` is told each request's id as soon as its last token is here.
    """

    engine_ranks_managed = (0,)

    def __init__(self, generate: Generate, host: str, ended: Callable[[str], None]) -> None:
        self.resources = types.SimpleNamespace(engine_dead=False)
        self._generate = generate
        self._ended = ended
        self._receiver = Receiver(host, self._deliver)
        self._encoder = MsgpackEncoder()
        self._decoder = MsgpackDecoder(EngineCoreOutputs)
        self._outputs: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()
        self._calls: dict[str, asyncio.Task[None]] = {}

    @property
    def open_requests(self) -> list[str]:
        """Ids of the requests that a replica has and that are neither finished nor aborted."""
        return list(self._calls)

    async def get_supported_tasks_async(self) -> tuple[Any, ...]:
        """Return what the replicas can do: generate text."""
        return TASKS

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        """Start the request on a replica. Returns at once; its outputs come from `get_output_async`."""
        intake.prepared()
        encoded = [bytes(part) for part in self._encoder.encode(request)]
        group = request.external_req_id or request.request_id
        call = self._call(group, request.request_id, encoded)
        # In a context of its own: in the HTTP request's, Serve gives all handle calls one id, and its router mixes up calls that
        # share an id (the samples of one request then wait for ever; Ray 2.60.0).
        self._calls[request.request_id] = asyncio.create_task(call, context=contextvars.Context())

    async def get_output_async(self) -> EngineCoreOutputs:
        """Return the outputs of the next engine step of any replica."""
        return await self._outputs.get()

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        """Cancel the calls of these requests; the replica then frees their places in the engine."""
        for request_id in request_ids:
            if (call := self._calls.pop(request_id, None)) is not None:
                call.cancel()

    def shutdown(self, timeout: float | None = None) -> None:
        """Cancel all calls and close the token channel. The replicas live on: they are not ours."""
        for call in self._calls.values():
            call.cancel()
        self._calls.clear()
        self._receiver.close()

    def _deliver(self, frames: list[zmq.Frame]) -> None:
        step: EngineCoreOutputs = self._decoder.decode(frames)
        for output in step.outputs:
            if output.finish_reason is not None:
                self._calls.pop(output.request_id, None)
                self._ended(output.request_id)
        self._outputs.put_nowait(step)

    async def _call(self, group: str, request_id: str, encoded: list[bytes]) -> None:
        try:
            await self._generate(group, request_id, self._receiver.address, encoded)
        except Exception as error:
            logger.error("request %s failed on its replica: %s", request_id, error)
            self._fail(request_id)
        else:
            if request_id in self._calls:
                asyncio.get_running_loop().call_later(LAST_TOKENS_S, self._fail, request_id)

    def _fail(self, request_id: str) -> None:
        """End a request with an error, unless it has ended otherwise."""
        if self._calls.pop(request_id, None) is not None:
            failed = EngineCoreOutput(request_id, [], finish_reason=FinishReason.ERROR)
            self._outputs.put_nowait(EngineCoreOutputs(outputs=[failed]))


@contextmanager
def used_by_async_llm(client: EngineCoreClient) -> Iterator[None]:
    """Within this context, a new AsyncLLM takes `client` for its engine core.

    vLLM 0.32.0 has no parameter for it: AsyncLLM's constructor makes its own. Goes when it takes one.
    """
    with mock.patch.object(EngineCoreClient, "make_async_mp_client", return_value=client):
        yield
