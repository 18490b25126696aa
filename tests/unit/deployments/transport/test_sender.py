"""A replica's end: lanes are shared, closed when idle, and end with their connection."""

import asyncio

import pytest
import zmq

from deployments.transport import sender as sender_module
from deployments.transport.channel import DEAD_MS
from deployments.transport.receiver import Receiver
from deployments.transport.sender import Lane, Sender
from tests.support.channel import receiving
from tests.support.until import until_async


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


async def test_the_kernel_finds_a_host_that_is_cut_off_and_zmq_does_not_look_at_its_clock() -> None:
    with receiving() as (receiver, _):
        sender = Sender()
        for socket in (sender.open(receiver.address)._socket, receiver._socket):
            assert socket.getsockopt(zmq.HEARTBEAT_IVL) == 0, "they end connections after a pause"
            assert socket.getsockopt(zmq.TCP_KEEPALIVE) == 1
            probed_s = socket.getsockopt(zmq.TCP_KEEPALIVE_IDLE)
            probed_s += socket.getsockopt(zmq.TCP_KEEPALIVE_INTVL) * socket.getsockopt(zmq.TCP_KEEPALIVE_CNT)
            assert 1000 * probed_s == socket.getsockopt(zmq.TCP_MAXRT) == DEAD_MS
        sender.close()


async def test_an_idle_lane_is_closed_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "IDLE_CLOSE_S", 0.01)
    broken: list[Lane] = []
    with receiving() as (receiver, _):
        sender = Sender(broken.append)
        lane = sender.open(receiver.address)
        await asyncio.sleep(0.05)
        assert sender._lanes == {receiver.address: lane}, "it is in use"
        sender.release(lane)
        await until_async(lambda: not sender._lanes, "the lane is closed")
        lane.send([b"dropped"])
        assert broken == [], "which is no break"
        sender.close()


async def test_a_lane_ends_with_its_connection_and_the_next_one_is_new() -> None:
    broken: list[Lane] = []
    got: list[list[bytes]] = []
    sender = Sender(broken.append)
    receiver = Receiver("127.0.0.1", lambda frames: got.append([frame.bytes for frame in frames]))
    lane = sender.open(receiver.address)
    lane.send([b"before"])
    await until_async(lambda: got, "the first message")
    receiver.close()
    await until_async(lambda: broken, "the lane is broken")
    lane.send([b"dropped"])
    assert broken == [lane]
    assert sender.open(receiver.address) is not lane, "which waits for a connection of its own"
    sender.release(lane)
    await until_async(lambda: len(broken) == 2, "nobody listens there any more")
    sender.close()
