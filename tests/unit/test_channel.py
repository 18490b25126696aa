"""The token channel: frames arrive whole and in order, and only those of our own replicas."""

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import ray
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments import metrics
from deployments.channel import STEP, VERSION, Address, Lane, MalformedError, Receiver, Sender
from deployments.draining import RUN
from deployments.errors import EngineUnavailableError, PortInUseError
from deployments.ingress import channel_host

GREETING = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + b"\0" * 32
"""How a ZMTP 3.1 client opens a connection, before the handshake (https://rfc.zeromq.org/spec/37)."""


async def until(condition: Callable[[], object]) -> None:
    """Wait until `condition()` is true."""
    while not condition():
        await asyncio.sleep(0.001)


class Drops:
    """What was dropped, by reason, since this was made."""

    def __init__(self) -> None:
        self._before = self._all()

    def _all(self) -> dict[str, float]:
        return {reason: metrics.CHANNEL_DROPPED.labels(reason)._value.get() for reason in metrics.DROPPED}

    def __call__(self) -> dict[str, float]:
        return {reason: count - self._before[reason] for reason, count in self._all().items() if count > self._before[reason]}


@contextlib.contextmanager
def receiving() -> Iterator[tuple[Receiver, list[list[bytes]]]]:
    """A receiver and what it delivers; `b"malformed"` it cannot read."""
    got: list[list[bytes]] = []

    def deliver(frames: list[zmq.Frame]) -> None:
        if frames[0].bytes == b"malformed":
            raise MalformedError
        got.append([frame.bytes for frame in frames])

    receiver = Receiver("127.0.0.1", deliver)
    try:
        yield receiver, got
    finally:
        receiver.close()


@contextlib.contextmanager
def sending(address: Address) -> Iterator[Any]:
    """A lane of a sender of its own."""
    sender = Sender()
    try:
        yield sender.open(address)
    finally:
        sender.close()


@contextlib.contextmanager
def stranger(address: Address, **keys: bytes) -> Iterator[Any]:
    """A ZMQ socket that is connected to a receiver, with CURVE where `keys` are given."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as opened:
        opened.setsockopt(zmq.LINGER, 0)
        for name, key in keys.items():
            setattr(opened, f"curve_{name}", key)
        opened.connect(address.endpoint)
        yield opened


def client_keys() -> dict[str, bytes]:
    return dict(zip(("publickey", "secretkey"), zmq.curve_keypair(), strict=True))


async def is_whole(receiver: Receiver, got: list[list[bytes]]) -> None:
    """Check that a message of ours arrives."""
    before = len(got)
    with sending(receiver.address) as lane:
        lane.send([b"good"])
        await until(lambda: len(got) > before)
    assert got[before:] == [[b"good"]]


async def test_messages_arrive_in_order_and_whole() -> None:
    drops = Drops()
    with receiving() as (receiver, got), sending(receiver.address) as lane:
        sent = [[str(number).encode(), b"x" * number] for number in range(500)]
        for frames in sent:
            lane.send(frames)
        await until(lambda: len(got) == 500)
        assert got == sent
    assert drops() == {}


async def test_it_listens_on_its_address_only() -> None:
    with receiving() as (receiver, _):
        host, port = receiver.address.endpoint.removeprefix("tcp://").split(":")
        assert host == "127.0.0.1"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", int(port)))


def test_it_is_on_the_clusters_interface_and_on_loopback_where_the_machine_is_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.1.2.3")
    monkeypatch.delenv(RUN, raising=False)
    assert channel_host() == "10.1.2.3"
    monkeypatch.setenv(RUN, "run")
    assert channel_host() == "127.0.0.1"


async def test_connections_that_are_not_authenticated_deliver_nothing() -> None:
    drops = Drops()
    with receiving() as (receiver, got):
        address = receiver.address
        with stranger(address) as plain:
            plain.send_multipart([address.header + STEP, b"evil"])
            await until(lambda: drops().get("handshake", 0) >= 1)
        with stranger(address, serverkey=zmq.curve_keypair()[0], **client_keys()) as guesses:
            guesses.send_multipart([address.header + STEP, b"evil"])
            await until(lambda: drops()["handshake"] >= 2)
        await is_whole(receiver, got)
    assert set(drops()) == {"handshake"}


async def test_messages_that_do_not_open_with_the_secret_are_dropped() -> None:
    drops = Drops()
    with receiving() as (receiver, got):
        address = receiver.address
        with stranger(address, serverkey=address.key, **client_keys()) as knows_the_key:
            for frames in ([b"one frame"], [b""], [VERSION, b"evil"], [VERSION + secrets.token_bytes(16), b"evil"]):
                knows_the_key.send_multipart([frames[0] + STEP, *frames[1:]])
            await until(lambda: drops() == {"secret": 4})
        await is_whole(receiver, got)
    assert drops() == {"secret": 4}


async def test_frames_of_another_version_are_refused_at_both_ends() -> None:
    drops = Drops()
    with receiving() as (receiver, got):
        address = receiver.address
        older = b"\x01" + address.header[1:]
        sender = Sender()
        with pytest.raises(EngineUnavailableError, match="version 3 here, 01 at the ingress"):
            sender.open(replace(address, header=older))
        sender.close()
        with stranger(address, serverkey=address.key, **client_keys()) as another_release:
            another_release.send_multipart([older + STEP, b"of another form"])
            await until(lambda: drops() == {"version": 1})
        await is_whole(receiver, got)


async def test_what_cannot_be_read_is_dropped_and_the_rest_arrives() -> None:
    drops = Drops()
    with receiving() as (receiver, got), sending(receiver.address) as lane:
        for frames in ([b"one"], [b"malformed"], [b"two"]):
            lane.send(frames)
        await until(lambda: len(got) == 2)
        assert drops() == {"malformed": 1}


async def test_an_error_of_the_receivers_own_does_not_hold_up_other_messages() -> None:
    got: list[bytes] = []
    errors: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))

    def fails_once(frames: list[zmq.Frame]) -> None:
        got.append(frames[0].bytes)
        if len(got) == 1:
            raise KeyError("a fault of ours")

    receiver = Receiver("127.0.0.1", fails_once)
    with sending(receiver.address) as lane:
        for number in range(5):
            lane.send([b"%d" % number])
        await until(lambda: len(got) == 5)
    receiver.close()
    assert [type(error) for error in errors] == [KeyError]


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: list[bytes]) -> None:
    """Pass bytes on, and keep them."""
    while data := await reader.read(65536):
        kept.append(data)
        writer.write(data)
    writer.close()


async def test_what_was_overheard_opens_no_connection_and_is_not_text() -> None:
    drops = Drops()
    heard: list[bytes] = []
    with receiving() as (receiver, got):
        host, port = receiver.address.endpoint.removeprefix("tcp://").split(":")

        async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there = await asyncio.open_connection(host, int(port))
            await asyncio.gather(pipe(reader, there[1], heard), pipe(there[0], writer, []))

        server = await asyncio.start_server(between, "127.0.0.1", 0)
        endpoint = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with sending(replace(receiver.address, endpoint=endpoint)) as lane:
            lane.send([b"the thought of somebody"])
            await until(lambda: got)
        everything = b"".join(heard)
        assert b"thought" not in everything
        assert receiver.address.header[1:] not in everything
        assert drops() == {}
        with socket.create_connection((host, int(port))) as replayed:
            replayed.sendall(everything)
            await until(lambda: drops() == {"handshake": 1})
        server.close()
        await is_whole(receiver, got)
    assert got == [[b"the thought of somebody"], [b"good"]]


OPENINGS = st.sampled_from([b"", GREETING, GREETING[:12], b"\x01\x00", b"GET / HTTP/1.1\r\n\r\n"])


@settings(max_examples=40)
@given(st.lists(st.tuples(OPENINGS, st.binary(max_size=300)), max_size=5))
async def test_garbage_from_strangers_changes_nothing(connections: list[tuple[bytes, bytes]]) -> None:
    drops = Drops()
    with receiving() as (receiver, got):
        host, port = receiver.address.endpoint.removeprefix("tcp://").split(":")
        for opening, rest in connections:
            with socket.create_connection((host, int(port))) as garbage:
                garbage.sendall(opening + rest)
        await is_whole(receiver, got)
        await until(lambda: drops().get("handshake", 0) == len(connections))


async def test_a_lane_is_shared_and_closed_when_idle() -> None:
    with receiving() as (receiver, _):
        sender = Sender()
        first, second = sender.open(receiver.address), sender.open(receiver.address)
        assert first is second
        sender.release(first)
        assert first.closing is None, "one request still uses it"
        sender.release(first)
        assert first.closing is not None
        assert sender.open(receiver.address) is first
        assert first.closing is None, "used again before it was closed"
        sender.release(first)
        first.closing.cancel()
        sender._close(first)
        assert sender.open(receiver.address) is not first
        sender.close()


async def test_a_lane_ends_with_its_connection_and_the_next_one_is_new() -> None:
    broken: list[Lane] = []
    got: list[list[bytes]] = []
    sender = Sender(broken.append)
    receiver = Receiver("127.0.0.1", lambda frames: got.append([frame.bytes for frame in frames]))
    lane = sender.open(receiver.address)
    lane.send([b"before"])
    await until(lambda: got)
    receiver.close()
    await until(lambda: broken)
    lane.send([b"dropped"])
    assert broken == [lane]
    assert sender.open(receiver.address) is not lane, "which waits for a connection of its own"
    sender.release(lane)
    await until(lambda: len(broken) == 2)  # nobody listens there any more
    sender.close()


async def test_tokens_come_on_the_ports_that_are_allowed() -> None:
    allowed = range(47001, 47003)
    receivers = [Receiver("127.0.0.1", lambda frames: None, allowed) for _ in allowed]
    assert sorted(int(receiver.address.endpoint.rpartition(":")[2]) for receiver in receivers) == [47001, 47002]
    with pytest.raises(PortInUseError, match=r"47001 to 47002 .* ports\.tokens"):
        Receiver("127.0.0.1", lambda frames: None, allowed)
    for receiver in receivers:
        receiver.close()
