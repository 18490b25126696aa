"""The token channel from end to end: frames arrive whole and in order, nobody else reads them, and all messages are read."""

import asyncio
import socket
from dataclasses import replace
from typing import Any

import pytest
import zmq

from deployments.errors import EngineUnavailableError
from deployments.transport.channel import CANCEL, HELLO, REFUSED, STEP, Send
from deployments.transport.receiver import Receiver
from deployments.transport.sender import Lane, Sender
from tests.support.channel import Drops, client_keys, is_whole, receiving, sending, stranger
from tests.support.until import until_async


async def test_messages_arrive_in_order_and_whole() -> None:
    drops = Drops()
    with receiving() as (receiver, got), sending(receiver.address) as lane:
        sent = [[str(number).encode(), b"x" * number] for number in range(500)]
        for frames in sent:
            lane.send(frames)
        await until_async(lambda: len(got) == 500, "all messages")
        assert got == sent
    assert drops() == {}


async def test_a_lane_carries_messages_both_ways() -> None:
    here: list[tuple[bytes, list[bytes]]] = []
    there: list[tuple[Lane, list[bytes]]] = []
    replies: list[Send] = []

    def received(kind: bytes, frames: list[bytes], reply: Send) -> None:
        here.append((kind, frames))
        replies.append(reply)

    steps: list[Any] = []
    receiver = Receiver("127.0.0.1", steps.append, on_message=received)
    sender = Sender(on_message=lambda *message: there.append(message))
    lane = sender.open(receiver.address)
    lane.send([b"r1"], HELLO)
    lane.send([b"a", b"more"], REFUSED)
    await until_async(lambda: len(here) == 2, "both messages of the replica")
    assert here == [(HELLO, [b"r1"]), (REFUSED, [b"a", b"more"])]
    for number in range(100):
        replies[number % 2]([CANCEL, b"%d" % number])
    await until_async(lambda: len(there) == 100, "all replies")
    assert there == [(lane, [CANCEL, b"%d" % number]) for number in range(100)]
    assert steps == [], "none of these is a step"
    sender.close()
    receiver.close()
    with pytest.raises(EngineUnavailableError, match="to the replica is broken"):
        replies[0]([CANCEL, b"too late"])


async def test_frames_of_another_version_are_refused_at_both_ends() -> None:
    drops = Drops()
    with receiving() as (receiver, got):
        address = receiver.address
        older = b"\x01" + address.header[1:]
        sender = Sender()
        with pytest.raises(EngineUnavailableError, match="version 6 here, 01 at the ingress"):
            sender.open(replace(address, header=older))
        sender.close()
        with stranger(address, serverkey=address.key, **client_keys()) as another_release:
            another_release.send_multipart([older + STEP, b"of another form"])
            await drops.are(version=1)
        await is_whole(receiver, got)


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
        await until_async(lambda: len(got) == 5, "all messages")
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
    overheard: list[bytes] = []
    with receiving() as (receiver, got):
        host, port = receiver.address.endpoint.removeprefix("tcp://").split(":")

        async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there = await asyncio.open_connection(host, int(port))
            await asyncio.gather(pipe(reader, there[1], overheard), pipe(there[0], writer, []))

        server = await asyncio.start_server(between, "127.0.0.1", 0)
        endpoint = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with sending(replace(receiver.address, endpoint=endpoint)) as lane:
            lane.send([b"the thought of somebody"])
            await until_async(lambda: got, "the message")
        everything = b"".join(overheard)
        assert len(everything) > 100
        assert b"thought" not in everything
        assert receiver.address.header[1:] not in everything
        assert drops() == {}
        with socket.create_connection((host, int(port))) as replayed:
            replayed.sendall(everything)
            await drops.are(handshake=1)
        server.close()
        await is_whole(receiver, got)
    assert got == [[b"the thought of somebody"], [b"good"]]
