"""The ingress's end of the token channel."""

import asyncio
import functools
import secrets
from collections.abc import Callable

import zmq
from zmq.utils.monitor import recv_monitor_message

from deployments.errors import EngineUnavailableError, PortInUseError
from deployments.observability import metrics
from deployments.transport.channel import (
    EPHEMERAL,
    SECRET_BYTES,
    STEP,
    VERSION,
    Address,
    MalformedError,
    Send,
    on_readable,
    read_all,
    watch_host,
)

MAX_FRAME_BYTES = 256 * 2**20
"""A connection that announces a larger frame is closed. Our largest frames hold the log-probabilities of a prompt's tokens."""
HANDSHAKE_MS = 10_000
"""A connection that is not authenticated within this time is closed."""
WATCHED = zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED


class Receiver:
    """The ingress's end: binds one of the TCP `ports` of `host`, and passes each step's frames, without the header, to `on_step`.

    `on_message` gets every other message: its kind, its frames, and a function that sends a reply. Both raise MalformedError for
    frames that they cannot decode.
    """

    def __init__(
        self,
        host: str,
        on_step: Callable[[list[zmq.Frame]], None],
        ports: range = EPHEMERAL,
        on_message: Callable[[bytes, list[bytes], Send], None] = lambda kind, frames, reply: None,
    ) -> None:
        self._on_step = on_step
        self._on_message = on_message
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        watch_host(self._socket)
        key, self._socket.curve_secretkey = zmq.curve_keypair()
        self._socket.curve_server = True
        self._connections = self._socket.get_monitor_socket(WATCHED)
        self._unauthenticated = 0  # connections that are not authenticated yet
        self._dropped = {reason: metrics.CHANNEL_DROPPED.labels(reason) for reason in metrics.DROPPED}
        try:
            port = self._socket.bind_to_random_port(f"tcp://{host}", ports.start, ports.stop)
        except zmq.ZMQBindError as error:
            self._socket.disable_monitor()
            self._context.destroy(linger=0)
            message = f"no port from {ports.start} to {ports.stop - 1} is free for tokens; allow more ports in ports.tokens"
            raise PortInUseError(message) from error
        self.address = Address(f"tcp://{host}:{port}", VERSION + secrets.token_bytes(SECRET_BYTES), key)
        self._step = self.address.header + STEP
        self._loop = asyncio.get_running_loop()
        for opened, receive in ((self._socket, self._receive), (self._connections, self._watch)):
            on_readable(self._loop, opened, receive)

    def _receive(self) -> None:
        lane, header, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
        ours, theirs = self.address.header, header.bytes
        if not secrets.compare_digest(theirs[1 : len(ours)], ours[1:]):
            self._dropped["secret"].inc()
        elif theirs[:1] != ours[:1]:
            self._dropped["version"].inc()
        else:
            try:
                if theirs == self._step:
                    self._on_step(frames)
                else:
                    reply = functools.partial(self._reply, lane.bytes)
                    self._on_message(theirs[len(ours) :], [frame.bytes for frame in frames], reply)
            except MalformedError:
                self._dropped["malformed"].inc()

    def _reply(self, lane: bytes, frames: list[bytes]) -> None:
        """Send over a lane, without waiting. Raises EngineUnavailableError when the lane has ended."""
        try:
            self._socket.send_multipart((lane, *frames), zmq.NOBLOCK)
        except zmq.ZMQError as error:  # the lane has ended, or the socket is closed
            raise EngineUnavailableError("the connection to the replica is broken") from error
        if int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._loop.call_soon(read_all, self._loop, self._socket, self._receive)

    def _watch(self) -> None:
        """Count the connections that end before they are authenticated.

        ZMQ does not say which connection was authenticated. When one of ours ends during the handshake of another, it is counted
        instead; the next handshake that fails is then not counted, which makes the count right again.
        """
        event = recv_monitor_message(self._connections, zmq.NOBLOCK)["event"]
        if event == zmq.EVENT_ACCEPTED:
            self._unauthenticated += 1
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._unauthenticated -= 1
        elif self._unauthenticated > 0:
            self._unauthenticated -= 1
            self._dropped["handshake"].inc()

    def close(self) -> None:
        """Close the port; messages that were not received are lost."""
        if not self._socket.closed:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_reader(self._connections.fileno())
            self._socket.disable_monitor()
            self._context.destroy(linger=0)
