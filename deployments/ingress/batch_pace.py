"""How many lines of batches an ingress runs at a time: what the engines have idle, and always one.

It is additive increase, multiplicative decrease (Chiu and Jain, 1989), as in TCP: twice as many each second until engines first
have a queue, then one more each second; half as many when a line has waited in a queue, or was refused. In an engine's queue lines
are behind all other requests, so they notice others first.

An engine runs so many requests at a time, and whoever comes then waits until one has ended. So lines leave `KEPT` of that free.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from deployments.observability.record import Record

TICK_S = 1.0
KEPT = 1 / 8
"""The share of what each replica runs at a time that lines leave to others."""


class Pace:
    """At most `most` lines at a time, `limit` for now. A line that waits longer than `queue_s` says that there are too many.

    `idle` returns how many more requests replicas can run at once, if each keeps a share free for others.
    """

    def __init__(
        self, most: int, queue_s: float, idle: Callable[[float], float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.most, self._queue_s, self._idle, self._now = most, queue_s, idle, clock
        self.limit = 1
        self._running: dict[int, Record] = {}
        self._waiting: deque[asyncio.Future[Record]] = deque()
        self._begun: set[int] = set()
        self._crowded, self._started, self._probing = False, False, True

    @property
    def running(self) -> int:
        """How many lines are running."""
        return len(self._running)

    async def enter(self) -> Record:
        """Wait until one more line may run; return its record. `leave` must follow."""
        turn: asyncio.Future[Record] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._next()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(turn.result())
            raise

    def leave(self, record: Record, refused: bool = False) -> None:
        """End a line. It may have been refused because there is no room."""
        self._look(id(record), record)
        self._running.pop(id(record), None)
        self._begun.discard(id(record))
        self._crowded |= refused
        self._next()

    def tick(self) -> None:
        """Change the limit by what has been seen since the last tick."""
        late = False
        for key, record in self._running.items():
            self._look(key, record)
            late |= key not in self._begun and self._now() - record.arrived > max(TICK_S, 2 * self._queue_s)
        if self._crowded:
            self.limit, self._probing = max(1, self.limit // 2), False
        elif self._started and not late and len(self._running) >= self.limit:
            self.limit = min(self.most, 2 * self.limit if self._probing else self.limit + 1)
        self._crowded = self._started = False
        self._next()

    def _look(self, key: int, record: Record) -> None:
        """Note whether a line has started, and how long it waited for that."""
        if key not in self._begun and record.engine and (first := record.engine[0]).first_here:
            self._begun.add(key)
            self._started = True
            self._crowded |= first.queue_s > self._queue_s

    def _room(self) -> float:
        """Return how many lines may run: always one, and those that have no replica yet will soon have one."""
        running = len(self._running)
        coming = sum(not any(request.visits for request in record.engine) for record in self._running.values())
        return max(1.0, running - coming + self._idle(KEPT))

    def _next(self) -> None:
        """Let the next ones in whose turn it is."""
        room = self._room() if self._waiting else 0.0
        while self._waiting and (self._waiting[0].done() or len(self._running) + 1 <= min(self.limit, room)):
            turn = self._waiting.popleft()
            if not turn.done():  # who waited has not gone
                record = Record(self._now())
                self._running[id(record)] = record
                turn.set_result(record)
