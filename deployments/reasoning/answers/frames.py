"""JSON in frames over pipes: four bytes of length, then the text."""

import json
import os
import struct
from typing import Any

LENGTH = struct.Struct(">I")
LARGEST_BYTES = 1 << 20
READY = ["ready"]
"""The first message of a process that waits for requests."""


def send(descriptor: int, message: list[Any]) -> None:
    """Send a message. Raises OSError where nobody reads."""
    body = json.dumps(message).encode()
    data = memoryview(LENGTH.pack(len(body)) + body)
    while data:
        data = data[os.write(descriptor, data) :]


def receive(descriptor: int) -> list[Any] | None:
    """Return the next message; None where the other side has ended."""
    head = _read(descriptor, LENGTH.size)
    if head is None:
        return None
    [length] = LENGTH.unpack(head)
    body = _read(descriptor, length) if length <= LARGEST_BYTES else None
    return None if body is None else list(json.loads(body))


def _read(descriptor: int, size: int) -> bytes | None:
    found = b""
    while len(found) < size:
        try:
            more = os.read(descriptor, size - len(found))
        except ConnectionError:
            return None
        if not more:
            return None
        found += more
    return found
