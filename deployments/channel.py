"""The token channel: engine outputs from LLM replicas to the ingress that asked, one ZMQ message an engine step.

A message is a header frame (the receiver's secret) and the frames of one msgpack-encoded `EngineCoreOutputs`, as vLLM's
own encoder makes them. The receiver drops what does not open with its secret.
"""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import zmq
import zmq.asyncio

VERSION = b"\x01"
IDLE_CLOSE_S = 60.0


@dataclass(frozen=True)
class Address:
    """Where an ingress receives tokens: a ZMQ endpoint, and the header that its messages must open with."""

    endpoint: str
    header: bytes


class Receiver:
    """The ingress's end. Binds a free TCP port of `host`."""

    def __init__(self, host: str) -> None:
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        port = self._socket.bind_to_random_port(f"tcp://{host}")
        self.address = Address(f"tcp://{host}:{port}", VERSION + secrets.token_bytes(16))
        self.strangers = 0

    async def receive(self) -> list[zmq.Frame]:
        """Return the frames of the next message that opens with our header, without it."""
        while True:
            header, *frames = await self._socket.recv_multipart(copy=False)
            if frames and secrets.compare_digest(header.bytes, self.address.header):
                return frames
            self.strangers += 1

    def close(self) -> None:
        """Close the port; what was not received is lost."""
        self._context.destroy(linger=0)


class Sender:
    """A replica's end: one socket an ingress, opened on first use and closed when long unused.

    Sending never waits: ZMQ queues without limit, and what can be queued is bounded by the requests that run.
    """

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._sockets: dict[Address, zmq.Socket[bytes]] = {}
        self._closing: dict[Address, asyncio.TimerHandle] = {}

    def send(self, address: Address, frames: Sequence[Any]) -> None:
        """Queue one message, its frames as the encoder made them."""
        if (socket := self._sockets.get(address)) is None:
            socket = self._sockets[address] = self._context.socket(zmq.PUSH)
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.connect(address.endpoint)
        socket.send_multipart((address.header, *frames), copy=False)

    def in_use(self, address: Address, used: bool) -> None:
        """Tell whether requests of this ingress run; without any, its socket closes after a minute."""
        if (timer := self._closing.pop(address, None)) is not None:
            timer.cancel()
        if not used:
            self._closing[address] = asyncio.get_running_loop().call_later(IDLE_CLOSE_S, self._close, address)

    def _close(self, address: Address) -> None:
        self._closing.pop(address, None)
        if (socket := self._sockets.pop(address, None)) is not None:
            socket.close(linger=0)

    def close(self) -> None:
        """Close all sockets; give what was just sent a second to leave."""
        for timer in self._closing.values():
            timer.cancel()
        self._context.destroy(linger=1000)
