"""Start-up phases, timed and printed by the process that starts; `python -m deployments.launch` shows them to the user."""

import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deployments.observability import metrics

MARK = "satori-phase"


class Phases:
    """The phases of one part's start-up (`ingress`, `engine`). When one is done, its seconds are printed and kept as a metric."""

    def __init__(self, part: str, note: Callable[[str], None] = lambda doing: None) -> None:
        """Set the name of the part; `note` is called with what the part is doing, whenever that changes."""
        self._part = part
        self._note = note
        self._phase, self._began = "", time.monotonic()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time the phase inside the `with` block."""
        began = time.monotonic()
        self._phase = phase
        self._note(phase)
        yield
        self._print(phase, time.monotonic() - began)

    def report(self, progress: str) -> None:
        """Print the progress of the current phase."""
        doing = f"{self._phase}: {progress}"
        self._note(doing)
        self._write(doing, time.monotonic() - self._began)

    @contextmanager
    def printing_errors(self) -> Iterator[None]:
        """Print an exception that ends the `with` block and raise it again: Serve keeps a failed replica's in a log of its own."""
        try:
            yield
        except Exception:
            os.write(1, traceback.format_exc().encode())
            raise

    def done(self, phase: str) -> None:
        """Print, under the name `phase`, the time since these phases began."""
        self._print(phase, time.monotonic() - self._began)

    def _print(self, phase: str, seconds: float) -> None:
        metrics.STARTUP.labels(phase).set(seconds)
        self._write(phase, seconds)

    def _write(self, what: str, seconds: float) -> None:
        # Not `print`: in replicas, Serve replaces it and `sys.stdout` with a logger that may hold lines back.
        os.write(1, f"{MARK} {self._part}: {what} {seconds:.1f} s\n".encode())
