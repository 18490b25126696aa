"""The token channel: engine outputs from LLM replicas to the ingress that asked, one ZMQ message per step, and requests back.

A replica's message is a header frame (version, the receiver's secret, the kind of message) and the frames of its content. The
content of a step is one msgpack-encoded `EngineCoreOutputs`, in frames as vLLM's own encoder makes them. Connections are encrypted
and authenticated with ZMQ's CURVE (https://rfc.zeromq.org/spec/26). A receiver's public key and secret travel only in handle calls:
nobody else can connect, read messages, or replay messages that they have seen. What is dropped is counted
(`satori_channel_dropped_total`).

A lane is one TCP connection, so what arrives over it has no gaps. When the connection ends, or the other end's host is silent for
`DEAD_MS`, the lane is broken, and later messages go over a new lane. Replicas open lanes to an ingress that has called them. Over a
lane the ingress can send, too (see `deployments.engine_client.carrier`).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zmq

VERSION = b"\x06"
SECRET_BYTES = 16
STEP, HELLO, REFUSED, NOISE, OTHERS, SPEEDS = b"s", b"h", b"r", b"n", b"o", b"v"
"""What a replica sends: an engine step; its own id, once an ingress may send it requests; the id of a request it could not read;
at first, what the noise of a seeded request depends on; its own id, and how many requests of others it has, with how many tokens of
prompts that it has still to read; its own id, and how many tokens a second it reads and generates (see `Load`)."""
BY_POSITION, BY_STEPS = b"p", b"s"
"""A seeded request's noise, and so its tokens: by seed and place in the sequence, or also by the steps that the engine has made."""
REQUEST, CANCEL, LAST = b"q", b"c", b"l"
"""What an ingress sends, named by the first frame: a request (its id, its client and how many tokens of its prompt are not
expected to be cached, then the encoded request); the id of a request that it no longer wants; notice that no more will come."""
CACHE_BATCH, CACHE_WHOLE, CACHE_AGAIN = b"e", b"w", b"a"
"""What a replica sends of its KV cache: what a step has changed, and all that is there, after its own id. And what an ingress that
has missed something sends: the whole again, please. These go over lanes of their own (see `deployments.replica.cache_feed`)."""
DEFERRED = "\n"
"""What a client's name begins with for the lines of its batches: no key has such a name."""
Send = Callable[[list[bytes]], None]
"""Sends a message over a lane."""
EPHEMERAL = range(49152, 65536)
DEAD_MS = 10_000
PROBE_S = 2


class MalformedError(ValueError):
    """The frames of a message cannot be decoded."""


@dataclass(frozen=True)
class Address:
    """Where an ingress receives tokens: its ZMQ endpoint, the header that messages to it must start with, and its public key."""

    endpoint: str
    header: bytes
    key: bytes


def watch_host(socket: zmq.Socket[Any]) -> None:
    """Have the kernel end connections whose other host is silent for `DEAD_MS`.

    ZMQ's own heartbeats would also end those of a process that was stopped for a while: it looks at its clock before it reads what
    has arrived. The kernel answers for a stopped process, and its own clock stands still while the machine does.
    """
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, PROBE_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, PROBE_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, DEAD_MS // (1000 * PROBE_S) - 1)
    socket.setsockopt(zmq.TCP_MAXRT, DEAD_MS)


def read_all(loop: asyncio.AbstractEventLoop, socket: zmq.Socket[Any], receive: Callable[[], None]) -> None:
    """Receive all pending messages: ZMQ's file descriptor is edge-triggered, so it signals only new ones.

    Call it also once before waiting for the descriptor (see `on_readable`), and after each send, which may have consumed the
    descriptor's signal.
    """
    try:
        while not socket.closed and int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            receive()
    except Exception:  # the event loop logs it, but the other messages must still be read
        loop.call_soon(read_all, loop, socket, receive)
        raise


def on_readable(loop: asyncio.AbstractEventLoop, socket: zmq.Socket[Any], receive: Callable[[], None]) -> None:
    """Have the event loop call `receive` for each message that arrives.

    It does not use `zmq.asyncio`, which makes a future and several callbacks per message.
    """
    loop.add_reader(socket.fileno(), read_all, loop, socket, receive)
    loop.call_soon(read_all, loop, socket, receive)
