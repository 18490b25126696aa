"""The token channel: engine outputs from LLM replicas to the ingress that asked, one ZMQ message an engine step, and requests back.

A replica's message is a header frame (version, the receiver's secret, and what it is) and the frames of that: of a step, one
msgpack-encoded `EngineCoreOutputs` as vLLM's own encoder makes them. Connections are encrypted and authenticated with ZMQ's CURVE
(https://rfc.zeromq.org/spec/26): a receiver's public key and secret travel in the handle calls only. Who has not had one can
neither connect nor read, nor send again what it has seen. What is dropped is counted (`satori_channel_dropped_total`).

A lane is one TCP connection, so nothing is missing from what arrives over it. When it ends (also: when the other end is silent for
`DEAD_MS`), the lane is broken and there is another one for what comes later. Replicas open lanes, to an ingress that has called
them; over a lane the ingress can send, too (see `deployments.carrier`).
"""

import asyncio
import functools
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from deployments import metrics
from deployments.errors import EngineUnavailableError, PortInUseError

VERSION = b"\x03"
SECRET_BYTES = 16
STEP, HELLO, REFUSED = b"s", b"h", b"r"
"""What a replica sends: an engine step; its id, when an ingress may send it requests; the id of a request it did not take."""
REQUEST, CANCEL, LAST = b"q", b"c", b"l"
"""What an ingress sends, as the first frame: a request (id and whose it is, and the encoded request), the id of one that it no
longer wants, and that no more will come."""
Answer = Callable[[list[bytes]], None]
"""Sends a message back over the lane on which another came."""
IDLE_CLOSE_S = 60.0
MAX_FRAME_BYTES = 256 * 2**20
"""A connection that announces a larger frame is closed. The largest of ours are the log-probabilities of a prompt's tokens."""
HANDSHAKE_MS = 10_000
"""A connection that is not authenticated by then is closed."""
WATCHED = zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
HEARTBEAT_MS = 2000
DEAD_MS = 10_000
EPHEMERAL = range(49152, 65536)
ENDS = zmq.EVENT_CLOSED | zmq.EVENT_DISCONNECTED
ENDS |= zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH


class MalformedError(ValueError):
    """The frames of a message are not what they should be."""


@dataclass(frozen=True)
class Address:
    """Where an ingress receives tokens: a ZMQ endpoint, the header that its messages must open with, and its public key."""

    endpoint: str
    header: bytes
    key: bytes


def _read(loop: asyncio.AbstractEventLoop, socket: zmq.Socket[Any], take: Callable[[], None]) -> None:
    """Take all messages that are there: ZMQ's file descriptor tells only of new ones (it is edge-triggered).

    To be called also once before the descriptor is waited for (see `listen`), and after each sending, which takes note of what
    has come.
    """
    try:
        while not socket.closed and int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            take()
    except Exception:  # goes on to the event loop's log, but the other messages are still to be read
        loop.call_soon(_read, loop, socket, take)
        raise


def listen(loop: asyncio.AbstractEventLoop, socket: zmq.Socket[Any], take: Callable[[], None]) -> None:
    """Have the event loop call `take` for each message that comes.

    Not `zmq.asyncio`, which makes a future and several callbacks a message.
    """
    loop.add_reader(socket.fileno(), _read, loop, socket, take)
    loop.call_soon(_read, loop, socket, take)


class Receiver:
    """The ingress's end: binds one of the TCP `ports` of `host`, and hands each step's frames, without header, to `deliver`.

    `deliver` raises MalformedError for what it cannot read. `hear` gets what is no step: what it is, its frames, and how to answer.
    """

    def __init__(
        self,
        host: str,
        deliver: Callable[[list[zmq.Frame]], None],
        ports: range = EPHEMERAL,
        hear: Callable[[bytes, list[bytes], Answer], None] = lambda kind, frames, answer: None,
    ) -> None:
        self._deliver = deliver
        self._hear = hear
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        key, self._socket.curve_secretkey = zmq.curve_keypair()
        self._socket.curve_server = True
        self._connections = self._socket.get_monitor_socket(WATCHED)
        self._unknown = 0  # connections that are not authenticated yet
        self._dropped = {reason: metrics.CHANNEL_DROPPED.labels(reason) for reason in metrics.DROPPED}
        try:
            port = self._socket.bind_to_random_port(f"tcp://{host}", ports.start, ports.stop)
        except zmq.ZMQBindError as error:
            self._socket.disable_monitor()
            self._context.destroy(linger=0)
            taken = f"no port from {ports.start} to {ports.stop - 1} is free for tokens; allowed: more in ports.tokens"
            raise PortInUseError(taken) from error
        self.address = Address(f"tcp://{host}:{port}", VERSION + secrets.token_bytes(SECRET_BYTES), key)
        self._step = self.address.header + STEP
        self._loop = asyncio.get_running_loop()
        for opened, take in ((self._socket, self._take), (self._connections, self._watch)):
            listen(self._loop, opened, take)

    def _take(self) -> None:
        lane, header, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
        ours, theirs = self.address.header, header.bytes
        if not secrets.compare_digest(theirs[1 : len(ours)], ours[1:]):
            self._dropped["secret"].inc()
        elif theirs[:1] != ours[:1]:
            self._dropped["version"].inc()
        elif theirs == self._step:
            try:
                self._deliver(frames)
            except MalformedError:
                self._dropped["malformed"].inc()
        else:
            self._hear(theirs[len(ours) :], [frame.bytes for frame in frames], functools.partial(self._answer, lane.bytes))

    def _answer(self, lane: bytes, frames: list[bytes]) -> None:
        """Send over a lane, without waiting. Raises EngineUnavailableError where it has ended."""
        try:
            self._socket.send_multipart((lane, *frames), zmq.NOBLOCK)
        except zmq.ZMQError as error:  # no such lane any more, or no socket
            raise EngineUnavailableError("the way to the replica is broken") from error
        if int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._loop.call_soon(_read, self._loop, self._socket, self._take)

    def _watch(self) -> None:
        """Count the connections that end before they are authenticated.

        ZMQ does not tell which connection was authenticated. One of ours that ends while another's handshake is under way is taken
        for it; the count is right again when that handshake is done.
        """
        event = recv_monitor_message(self._connections, zmq.NOBLOCK)["event"]
        if event == zmq.EVENT_ACCEPTED:
            self._unknown += 1
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._unknown -= 1
        elif self._unknown > 0:
            self._unknown -= 1
            self._dropped["handshake"].inc()

    def close(self) -> None:
        """Close the port; what was not received is lost."""
        if not self._socket.closed:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_reader(self._connections.fileno())
            self._socket.disable_monitor()
            self._context.destroy(linger=0)


class Lane:
    """The way to one ingress from a replica: a socket, and how many requests use it. `broken` is called once when it has ended,
    `hear` with each message of the ingress.

    Sending never waits: ZMQ queues without limit, and what can be queued is bounded by the requests that run.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        address: Address,
        broken: Callable[["Lane"], None],
        hear: Callable[["Lane", list[bytes]], None],
    ) -> None:
        self.address = address
        self._broken = broken
        self._hear = hear
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.curve_serverkey = address.key
        self._socket.curve_publickey, self._socket.curve_secretkey = zmq.curve_keypair()
        self._socket.setsockopt(zmq.RECONNECT_IVL, -1)  # never: frames in the buffers of the old connection would be missing
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, DEAD_MS)
        self._socket.setsockopt(zmq.CONNECT_TIMEOUT, DEAD_MS)
        self._events = self._socket.get_monitor_socket(ENDS)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._events.fileno(), self._look)
        listen(self._loop, self._socket, self._take)
        self._socket.connect(address.endpoint)
        self.requests = 0
        self.closing: asyncio.TimerHandle | None = None
        self._loop.call_soon(self._look)  # the file descriptor tells of nothing until it was looked once

    def _look(self) -> None:
        if not self._socket.closed and int(self._events.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self.close()
            self._broken(self)

    def _take(self) -> None:
        self._hear(self, self._socket.recv_multipart(zmq.NOBLOCK))

    def send(self, frames: Sequence[Any], kind: bytes = STEP) -> None:
        """Queue one message, its frames as the encoder made them. A lane that has ended drops it."""
        if self._socket.closed:
            return
        try:
            self._socket.send_multipart((self.address.header + kind, *frames), zmq.NOBLOCK)
        except zmq.Again:  # without a connection, and there will be none
            self._look()
            return
        if int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._loop.call_soon(_read, self._loop, self._socket, self._take)

    def close(self, linger_ms: int = 0) -> None:
        """Close the socket; what is then still queued is lost."""
        if not self._socket.closed:
            if self.closing is not None:
                self.closing.cancel()
            self._loop.remove_reader(self._events.fileno())
            self._loop.remove_reader(self._socket.fileno())
            self._socket.disable_monitor()
            self._events.close(linger=0)
            self._socket.close(linger=linger_ms)


class Sender:
    """A replica's end: a lane an ingress, opened on first use and closed when unused for a minute.

    `broken` hears of lanes that ended by themselves: the ingress or the way to it is gone. A lane opened later is a new one.
    `hear` gets what ingresses send.
    """

    def __init__(
        self,
        broken: Callable[[Lane], None] = lambda lane: None,
        hear: Callable[[Lane, list[bytes]], None] = lambda lane, frames: None,
    ) -> None:
        self._broken = broken
        self._hear = hear
        self._context = zmq.Context()
        self._lanes: dict[Address, Lane] = {}

    def open(self, address: Address) -> Lane:
        """Return the lane to this ingress, for one request; give it back with `release`.

        Raises EngineUnavailableError when the ingress is of a release with other frames, so that it looks for another replica.
        """
        if (theirs := address.header[:1]) != VERSION:
            raise EngineUnavailableError(f"frames of version {VERSION[0]} here, {theirs.hex()} at the ingress")
        if (lane := self._lanes.get(address)) is None:
            lane = self._lanes[address] = Lane(self._context, address, self._lost, self._hear)
        if lane.closing is not None:
            lane.closing.cancel()
            lane.closing = None
        lane.requests += 1
        return lane

    def release(self, lane: Lane) -> None:
        """Take back one request's use of a lane."""
        lane.requests -= 1
        if not lane.requests and self._lanes.get(lane.address) is lane:
            lane.closing = asyncio.get_running_loop().call_later(IDLE_CLOSE_S, self._close, lane)

    def _close(self, lane: Lane) -> None:
        self._lanes.pop(lane.address).close()

    def _lost(self, lane: Lane) -> None:
        del self._lanes[lane.address]
        self._broken(lane)

    def close(self) -> None:
        """Close all lanes; give what was just sent a second to leave."""
        for lane in self._lanes.values():
            lane.close(linger_ms=1000)
        self._lanes.clear()
        self._context.destroy(linger=1000)
