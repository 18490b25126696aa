"""The measurements of one request: a record from its arrival to its end. Plain values: nothing here knows vLLM or asyncio.

The middleware makes the record and sees the response go out. The engine client adds a timeline for each engine request (`n` makes
several). The chat parser adds what it read. While tokens flow, each costs one time stamp. `writer` and `tracing` read the record
when the request has ended.

Each engine has its own clock, and so does the ingress, so only durations are compared.
"""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

from deployments.routing.prospect import Prospect


@dataclass(slots=True)
class Visit:
    """A request's time on one replica, by the monotonic clock. `engine` is the replica's rank, -1 until it has sent something.

    `lost` means that the visit ended because the replica was lost, not because the request ended.
    """

    began: float = 0.0
    ended: float = 0.0
    engine: int = -1
    lost: bool = False


@dataclass(slots=True)
class Timeline:
    """The measurements of one engine request. `tokens` is the list that collects its output.

    `began` is when the request arrived, `first_here` when its first token arrived here (0 before), both by the ingress' monotonic
    clock. `queue_s` and `prefill_s` are its times in the engine until then. `first_step` and `last_step` are when the engine made
    its first and last tokens, by the clock of the first engine. `prospect` says what is still to come of it.
    """

    request_id: str
    client: str
    prompt_tokens: int
    began: float
    tokens: Sequence[int] = ()
    visits: list[Visit] = field(default_factory=list)
    first_here: float = 0.0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    first_step: float = 0.0
    last_step: float = 0.0
    prospect: Prospect | None = None

    @property
    def moved(self) -> bool:
        """Whether it was on more than one replica, so that its engine times are not comparable."""
        return len(self.visits) > 1


@dataclass(slots=True)
class Record:
    """One API request. Times are by the monotonic clock; `sent` are the times at which a stream's events went out."""

    arrived: float
    engine: list[Timeline] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)
    status: int = 0
    streams: bool = False
    complete: bool = False
    error: str = ""
    reads: bool = False
    vote: bool = False
    answered: float | None = None
    answer_tokens: int = 0
    ended: float = 0.0

    @property
    def outcome(self) -> str:
        """How the request ended, in the words of the metric `satori_requests_total`."""
        if self.status >= 500 and self.status != 503:
            return "failed"
        if self.status >= 400:
            return "refused"
        if self.error:
            return "failed"
        return "ok" if self.complete else "disconnected"


current: ContextVar[Record | None] = ContextVar("current", default=None)
"""The record of the API request that is being served."""


def failed(code: str, record: Record | None = None) -> None:
    """Record the code of the error that a request, by default the current one, ends with; its response may have begun already."""
    if (record := record or current.get()) is not None:
        record.error = code
