"""Pauses: this process was stopped, as with the whole machine, and went on. Times that span one say nothing of the application.

A suspended machine's monotonic clock stands still, so such a pause is not seen here, and in no time either.
"""

import math
import time
from collections.abc import Callable

from deployments.observability import logs

PAUSE_S = 5.0
"""A shorter stop is a lag."""
BUSY = 0.1
"""A process that used more than this share of a core in the meantime was not stopped: something has blocked its event loop."""
logger = logs.logger("pauses")


class Pauses:
    """When the last pause of this process ended, by its monotonic clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ended = -math.inf

    def note(self, seconds: float, cpu_s: float) -> None:
        """Take note that the event loop did nothing for a time in which the process used `cpu_s` of CPU: perhaps a pause."""
        if seconds > PAUSE_S and cpu_s < BUSY * seconds:
            self._ended = self._clock()
            logger.warning("this process was stopped for %.1f s; requests of that time are not counted for latency", seconds)

    def since(self, when: float) -> bool:
        """Return whether a pause has ended after `when`, by the monotonic clock."""
        return self._ended > when


PAUSES = Pauses()
"""Those of this process."""
