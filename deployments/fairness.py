"""In which order an engine starts the requests that wait for it: fair between clients, first come first served for each.

Start-time fair queueing (Goyal, Vin and Cheng, 1996) with every request of the same cost. The order goes to vLLM's scheduler as its
priorities, so a client with a hundred requests waiting keeps another's single one waiting for one request, not for a hundred.
"""

FIRST = 0
KEPT = 1024


class FairOrder:
    """Start tags of one engine's requests; the lower starts first."""

    def __init__(self) -> None:
        self._now = FIRST  # the tag of the latest start
        self._last: dict[str, int] = {}

    def tag(self, client: str) -> int:
        """Return the tag of a client's next request: after its last one, and not before what has started already."""
        if len(self._last) >= KEPT:  # who has nothing waiting has no claims either
            self._last = {name: last for name, last in self._last.items() if last > self._now}
        tag = self._last[client] = max(self._now, self._last.get(client, FIRST)) + 1
        return tag

    def started(self, tag: int) -> None:
        """Hear that a request with this tag has started."""
        self._now = max(self._now, tag)
