"""The token channel: frames arrive whole and in order, and only those of our own replicas."""

import asyncio
from collections.abc import Callable

import zmq

from deployments.channel import Address, Receiver, Sender


async def until(condition: Callable[[], object]) -> None:
    """Wait until `condition()` is true."""
    while not condition():
        await asyncio.sleep(0.001)


async def test_messages_arrive_in_order_and_whole() -> None:
    got: list[list[bytes]] = []
    receiver = Receiver("127.0.0.1", lambda frames: got.append([frame.bytes for frame in frames]))
    sender = Sender()
    lane = sender.open(receiver.address)
    sent = [[str(number).encode(), b"x" * number] for number in range(500)]
    for frames in sent:
        lane.send(frames)
    await until(lambda: len(got) == 500)
    assert got == sent
    sender.close()
    receiver.close()


async def test_a_strangers_messages_are_dropped_and_counted() -> None:
    got: list[list[bytes]] = []
    receiver = Receiver("127.0.0.1", lambda frames: got.append([frame.bytes for frame in frames]))
    stranger = Sender()
    stranger.open(Address(receiver.address.endpoint, b"guess")).send([b"evil"])
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.connect(receiver.address.endpoint)
        socket.send(b"one frame")
        socket.send_multipart([receiver.address.header])
        await until(lambda: receiver.strangers == 3)
    friend = Sender()
    friend.open(receiver.address).send([b"good"])
    await until(lambda: got)
    assert got == [[b"good"]]
    for end in (stranger, friend, receiver):
        end.close()


async def test_a_lane_is_shared_and_closed_when_idle() -> None:
    receiver = Receiver("127.0.0.1", lambda frames: None)
    sender = Sender()
    first, second = sender.open(receiver.address), sender.open(receiver.address)
    assert first is second
    sender.release(receiver.address)
    assert first.closing is None, "one request still uses it"
    sender.release(receiver.address)
    assert first.closing is not None
    assert sender.open(receiver.address) is first
    assert first.closing is None, "used again before it was closed"
    sender.release(receiver.address)
    first.closing.cancel()
    sender._close(receiver.address)
    assert sender.open(receiver.address) is not first
    sender.close()
    receiver.close()
