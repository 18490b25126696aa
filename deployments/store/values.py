"""What the store keeps, as plain values. Nothing here needs the database's library."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

RUNNING = ("queued", "in_progress")
VALIDATING, IN_PROGRESS, FINALIZING, COMPLETED = "validating", "in_progress", "finalizing", "completed"
FAILED, EXPIRED, CANCELLING, CANCELLED = "failed", "expired", "cancelling", "cancelled"
"""The states of batches."""


@dataclass(frozen=True)
class End:
    """How a chain of `length` tokens ended: vLLM's finish reason, what stopped it, or the error's code and message."""

    finish: str
    length: int = 0
    stop_reason: int | str | None = None
    code: str | None = None
    message: str | None = None

    def written(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, written: str | None) -> "End | None":
        """Return the end that was written; None where there is none."""
        return None if written is None else cls(**json.loads(written))


@dataclass(frozen=True)
class Lease:
    """The right to write to a response, under an epoch."""

    response: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Append:
    """Tokens to be written from position `start` on, and how they end."""

    lease: Lease
    start: int
    tokens: Sequence[int]
    end: End | None


@dataclass(frozen=True)
class Stored:
    """A stored response. `request`, `input` and `result` are JSON; `result` is what clients see."""

    id: str
    owner: str
    model: str
    status: str
    background: bool
    request: str
    input: str
    result: str
    created_at: float
    expires_at: float
    ended: str | None = None
    last_event: int | None = None

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.status in RUNNING

    @property
    def end(self) -> End | None:
        """How its tokens ended; None while they have not, or where the reader of the tokens tells."""
        return End.read(self.ended)


@dataclass(frozen=True)
class Progress:
    """The tokens from a position on, and how they ended. Without a `status` there is no such response (any more)."""

    tokens: list[int]
    end: End | None
    status: str | None


@dataclass(frozen=True)
class StoredFile:
    """A file: an upload, or those lines of a `batch` that have `failed` or have not."""

    id: str
    owner: str
    purpose: str
    filename: str
    bytes: int
    created_at: float
    expires_at: float
    batch: str | None = None
    failed: bool = False


@dataclass(frozen=True)
class StoredBatch:
    """A batch. `details` is JSON: `metadata`, when it came to its states (`in_progress_at`), `errors`, its files.

    It is to be completed by its `deadline`, in the `window` that was asked for.
    """

    id: str
    owner: str
    model: str
    status: str
    endpoint: str
    input_file: str
    window: str
    details: str
    created_at: float
    deadline: float
    expires_at: float
    total: int = 0
    completed: int = 0
    failed: int = 0
