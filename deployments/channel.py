"""The token channel: engine outputs from LLM replicas to the ingress that asked, one ZMQ message an engine step.

A message is a header frame (the receiver's secret) and the frames of one msgpack-encoded `EngineCoreOutputs`, as vLLM's
own encoder makes them. The receiver drops what does not open with its secret.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import zmq

VERSION = b"\x01"
IDLE_CLOSE_S = 60.0


@dataclass(frozen=True)
class Address:
    """Where an ingress receives tokens: a ZMQ endpoint, and the header that its messages must open with."""

    endpoint: str
    header: bytes


class Receiver:
    """The ingress's end: binds a free TCP port of `host`, and hands each message's frames, without header, to `deliver`.

    It reads the socket from the event loop directly: `zmq.asyncio` makes a future and several callbacks a message.
    """

    def __init__(self, host: str, deliver: Callable[[list[zmq.Frame]], None]) -> None:
        self._deliver = deliver
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        port = self._socket.bind_to_random_port(f"tcp://{host}")
        self.address = Address(f"tcp://{host}:{port}", VERSION + secrets.token_bytes(16))
        self.strangers = 0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._read)

    def _read(self) -> None:
        """Deliver all messages that are there: ZMQ's file descriptor tells only of new ones (it is edge-triggered)."""
        while int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            header, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            if frames and secrets.compare_digest(header.bytes, self.address.header):
                self._deliver(frames)
            else:
                self.strangers += 1

    def close(self) -> None:
        """Close the port; what was not received is lost."""
        if not self._socket.closed:
            self._loop.remove_reader(self._socket.fileno())
            self._context.destroy(linger=0)


class Lane:
    """The way to one ingress from a replica: a socket, and how many requests use it.

    Sending never waits: ZMQ queues without limit, and what can be queued is bounded by the requests that run.
    """

    def __init__(self, context: zmq.Context[Any], address: Address) -> None:
        self._header = address.header
        self._socket = context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.connect(address.endpoint)
        self.requests = 0
        self.closing: asyncio.TimerHandle | None = None

    def send(self, frames: Sequence[Any]) -> None:
        """Queue one message, its frames as the encoder made them."""
        self._socket.send_multipart((self._header, *frames))

    def close(self) -> None:
        """Close the socket; what is still queued is lost."""
        self._socket.close(linger=0)


class Sender:
    """A replica's end: a lane an ingress, opened on first use and closed when unused for a minute."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._lanes: dict[Address, Lane] = {}

    def open(self, address: Address) -> Lane:
        """Return the lane to this ingress, for one request; give it back with `release`."""
        if (lane := self._lanes.get(address)) is None:
            lane = self._lanes[address] = Lane(self._context, address)
        if lane.closing is not None:
            lane.closing.cancel()
            lane.closing = None
        lane.requests += 1
        return lane

    def release(self, address: Address) -> None:
        """Take back one request's use of a lane."""
        lane = self._lanes[address]
        lane.requests -= 1
        if not lane.requests:
            lane.closing = asyncio.get_running_loop().call_later(IDLE_CLOSE_S, self._close, address)

    def _close(self, address: Address) -> None:
        self._lanes.pop(address).close()

    def close(self) -> None:
        """Close all lanes; give what was just sent a second to leave."""
        for lane in self._lanes.values():
            if lane.closing is not None:
                lane.closing.cancel()
        self._context.destroy(linger=1000)
