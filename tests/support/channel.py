"""Ends of a token channel in this process: ours, and strangers'."""

import contextlib
from collections.abc import Iterator
from typing import Any

import zmq

from deployments.observability import metrics
from deployments.transport.channel import Address, MalformedError
from deployments.transport.receiver import Receiver
from deployments.transport.sender import Lane, Sender
from tests.support.until import until_async


class Drops:
    """What was dropped, by reason, since this was made."""

    def __init__(self) -> None:
        self._before = self._all()

    def _all(self) -> dict[str, float]:
        return {reason: metrics.CHANNEL_DROPPED.labels(reason)._value.get() for reason in metrics.DROPPED}

    def __call__(self) -> dict[str, float]:
        return {reason: count - self._before[reason] for reason, count in self._all().items() if count > self._before[reason]}

    async def are(self, **drops: float) -> None:
        """Wait until just these have been dropped."""
        await until_async(self, f"{drops} are dropped", holds=lambda found: found == drops)


@contextlib.contextmanager
def receiving() -> Iterator[tuple[Receiver, list[list[bytes]]]]:
    """A receiver and the frames of the steps that it delivers; `b"malformed"` it cannot read."""
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
def sending(address: Address) -> Iterator[Lane]:
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
    """Return the keys of a client, new ones."""
    return dict(zip(("publickey", "secretkey"), zmq.curve_keypair(), strict=True))


def port_of(receiver: Receiver) -> int:
    """Return the TCP port that a receiver listens on."""
    return int(receiver.address.endpoint.rpartition(":")[2])


async def is_whole(receiver: Receiver, got: list[list[bytes]]) -> None:
    """Check that a message of ours arrives."""
    before = len(got)
    with sending(receiver.address) as lane:
        lane.send([b"good"])
        await until_async(lambda: len(got) > before, "a message of ours arrives")
    assert got[before:] == [[b"good"]]
