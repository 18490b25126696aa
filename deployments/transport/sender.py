"""A replica's end of the token channel: a lane to each ingress."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from deployments.errors import EngineUnavailableError
from deployments.transport.channel import DEAD_MS, STEP, VERSION, Address, on_readable, read_all, watch_host

IDLE_CLOSE_S = 60.0
ENDS = zmq.EVENT_CLOSED | zmq.EVENT_DISCONNECTED
ENDS |= zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH


class Lane:
    """The connection from a replica to one ingress: a socket, and the number of requests that use it.

    `on_broken` is called once, when the connection has ended; `on_message` is called with each message of the ingress. Sending
    never waits: ZMQ queues without limit, and the ongoing requests bound what can be queued. Where they do not, at most `queue`
    messages are queued; further ones are dropped.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        address: Address,
        on_broken: Callable[["Lane"], None],
        on_message: Callable[["Lane", list[bytes]], None],
        queue: int = 0,
    ) -> None:
        self.address = address
        self._on_broken = on_broken
        self._on_message = on_message
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.SNDHWM, queue)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.curve_serverkey = address.key
        self._socket.curve_publickey, self._socket.curve_secretkey = zmq.curve_keypair()
        self._socket.setsockopt(zmq.RECONNECT_IVL, -1)  # never: frames in the old connection's buffers would be missing
        watch_host(self._socket)
        self._socket.setsockopt(zmq.CONNECT_TIMEOUT, DEAD_MS)
        self._events = self._socket.get_monitor_socket(ENDS)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._events.fileno(), self._poll)
        on_readable(self._loop, self._socket, self._receive)
        self._socket.connect(address.endpoint)
        self.requests = 0
        self.closing: asyncio.TimerHandle | None = None
        self._loop.call_soon(self._poll)  # the file descriptor signals nothing until it has been polled once

    def _poll(self) -> None:
        if not self._socket.closed and int(self._events.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self.close()
            self._on_broken(self)

    def _receive(self) -> None:
        self._on_message(self, self._socket.recv_multipart(zmq.NOBLOCK))

    def send(self, frames: Sequence[Any], kind: bytes = STEP) -> bool:
        """Queue one message, in frames as the encoder made them. Return False if it is dropped: the lane has ended, or is full."""
        if self._socket.closed:
            return False
        try:
            self._socket.send_multipart((self.address.header + kind, *frames), zmq.NOBLOCK)
        except zmq.Again:  # there is no connection, and there will be none; or the queue is full
            self._poll()
            return False
        if int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._loop.call_soon(read_all, self._loop, self._socket, self._receive)
        return True

    def close(self, linger_ms: int = 0) -> None:
        """Close the socket; what is still queued after `linger_ms` is lost."""
        if not self._socket.closed:
            if self.closing is not None:
                self.closing.cancel()
            self._loop.remove_reader(self._events.fileno())
            self._loop.remove_reader(self._socket.fileno())
            self._socket.disable_monitor()
            self._events.close(linger=0)
            self._socket.close(linger=linger_ms)


class Sender:
    """A replica's end: one lane per ingress, opened on first use and closed when unused for a minute.

    `on_broken` gets each lane that ended by itself, because the ingress or the connection to it is gone. A lane opened later is a
    new one. `on_message` gets each message of an ingress, with its lane. `queue` is the bound of each lane's queue; 0 is none.
    """

    def __init__(
        self,
        on_broken: Callable[[Lane], None] = lambda lane: None,
        on_message: Callable[[Lane, list[bytes]], None] = lambda lane, frames: None,
        queue: int = 0,
    ) -> None:
        self._on_broken = on_broken
        self._on_message = on_message
        self._queue = queue
        self._context = zmq.Context()
        self._lanes: dict[Address, Lane] = {}

    def open(self, address: Address) -> Lane:
        """Return the lane to this ingress, for one request; give it back with `release`.

        Raises EngineUnavailableError when the ingress is of a release with other frames; it then tries another replica.
        """
        if (theirs := address.header[:1]) != VERSION:
            raise EngineUnavailableError(f"frames of version {VERSION[0]} here, {theirs.hex()} at the ingress")
        if (lane := self._lanes.get(address)) is None:
            lane = self._lanes[address] = Lane(self._context, address, self._lost, self._on_message, self._queue)
        if lane.closing is not None:
            lane.closing.cancel()
            lane.closing = None
        lane.requests += 1
        return lane

    @property
    def lanes(self) -> list[Lane]:
        """The lanes that are open."""
        return list(self._lanes.values())

    def release(self, lane: Lane) -> None:
        """End one request's use of a lane."""
        lane.requests -= 1
        if not lane.requests and self._lanes.get(lane.address) is lane:
            lane.closing = asyncio.get_running_loop().call_later(IDLE_CLOSE_S, self._close, lane)

    def _close(self, lane: Lane) -> None:
        self._lanes.pop(lane.address).close()

    def _lost(self, lane: Lane) -> None:
        del self._lanes[lane.address]
        self._on_broken(lane)

    def close(self) -> None:
        """Close all lanes; messages that were just sent have a second to leave."""
        for lane in self._lanes.values():
            lane.close(linger_ms=1000)
        self._lanes.clear()
        self._context.destroy(linger=1000)
