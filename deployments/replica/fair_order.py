"""The order in which an engine starts its queued requests: fair between clients, and first come, first served for each client.

It is start-time fair queueing (Goyal, Vin and Cheng, 1996), where every request has the same cost. vLLM's scheduler gets the
order as its priorities. When one client has a hundred queued requests, another client's single request therefore waits for one of
them, not for a hundred. Lines of batches start after all others, and are fair between clients among themselves.
"""

from deployments.transport.channel import DEFERRED

FIRST = 0
LATE = 2**40
"""The tags of lines of batches begin here."""
KEPT = 1024


class FairOrder:
    """Start tags of one engine's requests; the lowest starts first."""

    def __init__(self) -> None:
        self._now = {False: FIRST, True: LATE}  # the highest tag that has started, of others and of lines
        self._last: dict[str, int] = {}

    def tag(self, client: str) -> int:
        """Return the tag of a client's next request: after the client's last one, and after all of its class that have started.

        A name that begins with `DEFERRED` stands for the lines of a client's batches.
        """
        now = self._now
        if len(self._last) >= KEPT:  # a client without queued requests needs no entry
            self._last = {name: last for name, last in self._last.items() if last > now[last > LATE]}
        tag = self._last[client] = max(now[client.startswith(DEFERRED)], self._last.get(client, FIRST)) + 1
        return tag

    def started(self, tag: int) -> None:
        """Record that a request with this tag has started."""
        late = tag > LATE
        self._now[late] = max(self._now[late], tag)
