"""A cable between two TAP devices that can be slow: what `tc netem` does, where the kernel has not that.

    python slow_link.py OUTER INNER

makes both devices, says so, and carries frames between them. A line `DELAY LOSS` on standard input (seconds, share of frames)
changes how: each frame takes so long, in either direction, and so many get lost.
"""

import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque

TUNSETIFF = 0x400454CA
TAP_WITHOUT_HEADER = 0x0002 | 0x1000


def tap(name: str) -> int:
    """Make a TAP device; return its file descriptor."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", name.encode(), TAP_WITHOUT_HEADER))
    return device


def send(device: int, frame: bytes) -> None:
    """Pass a frame on; a device that is down takes none."""
    try:
        os.write(device, frame)
    except OSError:
        return


def carry(devices: tuple[int, int]) -> None:
    """Carry frames until standard input ends."""
    delay_s, loss = 0.0, 0.0
    under_way: deque[tuple[float, int, bytes]] = deque()
    other = {devices[0]: devices[1], devices[1]: devices[0]}
    while True:
        wait_s = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        for ready in select.select([0, *devices], [], [], wait_s)[0]:
            if ready == 0:
                if not (line := sys.stdin.readline()):
                    return
                delay_s, loss = map(float, line.split())
                continue
            frame = os.read(ready, 65536)
            if random.random() >= loss:
                under_way.append((time.monotonic() + delay_s, other[ready], frame))
        while under_way and under_way[0][0] <= time.monotonic():
            _, device, frame = under_way.popleft()
            send(device, frame)


if __name__ == "__main__":
    made = (tap(sys.argv[1]), tap(sys.argv[2]))
    print("ready", flush=True)
    carry(made)
