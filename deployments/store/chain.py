"""The tokens of a stored response, as the engine client sees them: it writes them here, and delivers what has been written."""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deployments.errors import SatoriError
from deployments.observability import logs
from deployments.store.values import RUNNING, End, Lease

if TYPE_CHECKING:  # it needs the database's library, which is imported with the first stored response
    from deployments.store.store import Store

logger = logs.logger("store")
POLL_S = 0.1
"""How often a chain that another ingress writes is read."""
AWAY_S = 1.0
FAILED = "the server that went on with this reply failed"

Deliver = Callable[[Sequence[int], End | None, Any], None]
current: ContextVar["Chain | None"] = ContextVar("chain", default=None)
"""The chain of the stored response that the current task makes the events of; None for what is not stored."""


class Chain:
    """A chain of tokens in the store. It is delivered from its first token on, each part only once it is in the store.

    With a `lease`, its holder appends to it. Without one, or once that is lost, it follows what another holder writes. `tokens` are
    those that were delivered; `on_lost` is called when the lease is lost.
    """

    def __init__(
        self, store: "Store", response: str, lease: Lease | None = None, tokens: Sequence[int] = (), end: End | None = None
    ) -> None:
        self.lease = lease
        self.tokens: list[int] = list(tokens)
        self.end = end
        self.on_lost: Callable[[], None] = lambda: None
        self._store, self._response = store, response
        self._position = len(self.tokens)
        self._deliver: Deliver | None = None
        self._following: asyncio.Task[None] | None = None
        self._writing: set[asyncio.Future[bool]] = set()

    @property
    def writes(self) -> bool:
        """Whether its tokens are to be generated here."""
        return self.lease is not None and self.end is None

    def start(self, deliver: Deliver) -> None:
        """Deliver what is there, then all that comes. `deliver` gets tokens, the end with the last of them, and their payload."""
        self._deliver = deliver
        if self.tokens or self.end is not None:
            deliver(self.tokens, self.end, None)
        if self.lease is None and self.end is None:
            self._follow()

    def append(self, tokens: Sequence[int], end: End | None, payload: Any) -> None:
        """Write tokens, and the end; they are delivered with the payload when they are in the store."""
        if self.lease is None:
            return
        start = self._position
        self._position += len(tokens)
        end = None if end is None else replace(end, length=self._position)
        written = self._store.append(self.lease, start, tokens, end)
        self._when_written(written, lambda: self._delivered(tokens, end, payload))

    def renew(self) -> None:
        """Extend the lease."""
        if self.lease is not None:
            self._when_written(self._store.renew(self.lease), lambda: None)

    def stop(self) -> None:
        """Neither deliver nor write any more."""
        self._deliver = None
        if self._following is not None:
            self._following.cancel()

    def lose(self) -> None:
        """Learn that the lease is lost: another ingress has it, or the response was cancelled or removed."""
        if self.lease is not None:
            self.lease = None
            self.on_lost()
            if self._deliver is not None and self.end is None:
                self._follow()

    def _when_written(self, written: "asyncio.Future[bool]", accepted: Callable[[], None]) -> None:
        def done(future: "asyncio.Future[bool]") -> None:
            self._writing.discard(future)
            if future.cancelled() or self.lease is None:
                return
            if (error := future.exception()) is not None:
                logger.error("response %s cannot be written: %s", self._response, error)
                self.lose()
            elif future.result():
                accepted()
            else:
                self.lose()

        self._writing.add(written)
        written.add_done_callback(done)

    def _delivered(self, tokens: Sequence[int], end: End | None, payload: Any) -> None:
        self.tokens += tokens
        self.end = end
        if self._deliver is not None:
            self._deliver(tokens, end, payload)

    def _follow(self) -> None:
        self._following = asyncio.create_task(self._keep_following())

    async def _keep_following(self) -> None:
        while self.end is None:
            start = len(self.tokens)
            try:
                found = await self._store.progress(self._response, start)
            except SatoriError:
                await asyncio.sleep(AWAY_S)
                continue
            if found.status is None:  # it was removed
                self._delivered([], End("abort", start), None)
                return
            if found.tokens or found.end is not None:
                self._delivered(found.tokens, found.end, None)
            if found.end is None and found.status not in RUNNING:
                if found.status == "failed":
                    self._delivered([], End("error", len(self.tokens), code="reply_failed", message=FAILED), None)
                return  # a stop string ended it, which whoever reads the tokens finds
            await asyncio.sleep(POLL_S)
