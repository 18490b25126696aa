"""The ingress's end: it takes messages of our own replicas only, on the ports that are allowed."""

import secrets
import socket

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.errors import PortInUseError
from deployments.transport.channel import STEP, VERSION
from deployments.transport.receiver import Receiver
from tests.support.channel import Drops, client_keys, is_whole, port_of, receiving, sending, stranger
from tests.support.ports import free_ports
from tests.support.until import until, until_async

GREETING = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + b"\0" * 32
"""How a ZMTP 3.1 client opens a connection, before the handshake (https://rfc.zeromq.org/spec/37)."""


async def test_it_listens_on_its_address_only() -> None:
    with receiving() as (receiver, _):
        assert receiver.address.endpoint == f"tcp://127.0.0.1:{port_of(receiver)}"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port_of(receiver)))
        socket.create_connection(("127.0.0.1", port_of(receiver))).close()


async def test_connections_that_are_not_authenticated_deliver_nothing() -> None:
    drops = Drops()
    with receiving() as (receiver, got):
        address = receiver.address
        with stranger(address) as plain:
            plain.send_multipart([address.header + STEP, b"evil"])
            await until_async(lambda: drops().get("handshake", 0) >= 1, "the plain one is refused")
        with stranger(address, serverkey=zmq.curve_keypair()[0], **client_keys()) as guesses:
            guesses.send_multipart([address.header + STEP, b"evil"])
            await until_async(lambda: drops()["handshake"] >= 2, "the one that guesses is refused")
        await is_whole(receiver, got)
    assert set(drops()) == {"handshake"}


async def test_messages_that_do_not_open_with_the_secret_are_dropped() -> None:
    drops = Drops()
    with receiving() as (receiver, got):
        address = receiver.address
        with stranger(address, serverkey=address.key, **client_keys()) as knows_the_key:
            for frames in ([b"one frame"], [b""], [VERSION, b"evil"], [VERSION + secrets.token_bytes(16), b"evil"]):
                knows_the_key.send_multipart([frames[0] + STEP, *frames[1:]])
            await drops.are(secret=4)
        await is_whole(receiver, got)
    assert drops() == {"secret": 4}


async def test_what_cannot_be_read_is_dropped_and_the_rest_arrives() -> None:
    drops = Drops()
    with receiving() as (receiver, got), sending(receiver.address) as lane:
        for frames in ([b"one"], [b"malformed"], [b"two"]):
            lane.send(frames)
        await until_async(lambda: len(got) == 2, "the rest")
        assert drops() == {"malformed": 1}


OPENINGS = st.sampled_from([b"", GREETING, GREETING[:12], b"\x01\x00", b"GET / HTTP/1.1\r\n\r\n"])


@settings(max_examples=40)
@given(st.lists(st.tuples(OPENINGS, st.binary(max_size=300)), max_size=5))
async def test_garbage_from_strangers_changes_nothing(connections: list[tuple[bytes, bytes]]) -> None:
    drops = Drops()
    with receiving() as (receiver, got):
        for opening, rest in connections:
            with socket.create_connection(("127.0.0.1", port_of(receiver))) as garbage:
                garbage.sendall(opening + rest)
        await is_whole(receiver, got)
        await until_async(lambda: drops().get("handshake", 0) == len(connections), "all connections are counted")


def neighbours() -> range:
    """Return two free ports beside each other."""

    def found() -> range | None:
        [first] = free_ports(1)
        try:
            socket.create_server(("127.0.0.1", first + 1)).close()
        except (OSError, OverflowError):
            return None
        return range(first, first + 2)

    ports = until(found, "two free ports beside each other")
    assert ports is not None
    return ports


async def test_tokens_come_on_the_ports_that_are_allowed() -> None:
    allowed = neighbours()
    receivers = [Receiver("127.0.0.1", lambda frames: None, allowed) for _ in allowed]
    assert sorted(map(port_of, receivers)) == list(allowed)
    with pytest.raises(PortInUseError, match=rf"{allowed[0]} to {allowed[1]} .* ports\.tokens"):
        Receiver("127.0.0.1", lambda frames: None, allowed)
    for receiver in receivers:
        receiver.close()
    Receiver("127.0.0.1", lambda frames: None, allowed).close()  # they are free again
