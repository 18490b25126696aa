"""What a check found: a line for each part, as a table and as a report to send."""

import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.bench import stack

MARKS = {True: "ok", False: "FAILED", None: "-"}
LAST_LINES = 60
"""So much of a log's end is in the report where a part failed."""


class Failed(Exception):  # noqa: N818  # a finding, not a fault of the program
    """A part of the check found that something does not work. The message says what."""


class Skipped(Exception):  # noqa: N818
    """A part cannot be checked here. The message says why."""


@dataclass
class Report:
    """The lines so far. `about` says what kind of run it is. The ends of `logs` are added where a part fails."""

    about: str = ""
    logs: Sequence[Path] = ()
    lines: list[tuple[str, bool | None, float, str]] = field(default_factory=list)
    details: list[str] = field(default_factory=list)

    def run(self, part: str, check: Callable[[], str]) -> bool:
        """Run a part, which returns its figures in a line; print its line. Return whether it has not failed."""
        began, good = time.monotonic(), True
        try:
            said, mark = check(), True
        except Skipped as reason:
            said, mark = str(reason), None
        except (Exception, SystemExit) as error:  # whatever it is, the other parts go on, and the report has it
            said, mark, good = f"{type(error).__name__}: {error}".removeprefix("Failed: "), False, False
            self.details.append("\n\n".join((f"{part}: {said}", *map(_tail, self.logs))))
        self.lines.append((part, mark, time.monotonic() - began, " ".join(said.split())))
        print(self._row(*self.lines[-1]), flush=True)
        return good

    def skip(self, part: str, reason: str) -> None:
        """Note that a part is not run, and why."""

        def skipped() -> str:
            raise Skipped(reason)

        self.run(part, skipped)

    @property
    def failed(self) -> list[str]:
        """The parts that failed."""
        return [part for part, mark, _, _ in self.lines if mark is False]

    @property
    def not_run(self) -> list[str]:
        """The parts that were not run, each with its reason."""
        return [f"{part}: {said}" for part, mark, _, said in self.lines if mark is None]

    def write(self, path: Path) -> None:
        """Write the report: machine, cards, table, what was not run and why, and the logs' ends for each part that failed."""
        rows = ["| part | | seconds | |", "|---|---|---|---|"]
        for part, mark, seconds, said in self.lines:
            if mark is not None:
                rows.append(f"| {part} | {MARKS[mark]} | {seconds:.0f} | " + said.replace("|", r"\|") + " |")
        parts = [f"# Check of {platform.node()}", self.about, stack.machine(), f"```\n{cards()}\n```", "\n".join(rows)]
        if self.not_run:
            parts.append("\n".join(["Not run:", "", *(f"- {line}" for line in self.not_run)]))
        parts += [f"```\n{detail}\n```" for detail in self.details]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n\n".join(filter(None, parts)) + "\n")

    @staticmethod
    def _row(part: str, mark: bool | None, seconds: float, said: str) -> str:
        return f"  {MARKS[mark]:<7} {part:<38} {seconds:5.0f} s  {'not run: ' if mark is None else ''}{said}"


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else ["no such file"]
    return "\n".join((f"the end of {log.name}:", *lines[-LAST_LINES:]))


def query(what: str) -> list[str]:
    """Return a line for each card, as nvidia-smi tells it; none where there is no nvidia-smi."""
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def cards() -> str:
    """Return the cards, with driver, memory and power limit."""
    return "\n".join(query("index,name,driver_version,memory.total,memory.used,power.limit,pcie.link.gen.current")) or "no cards"


def used_mib() -> int:
    """Return the memory in use on all cards, in MiB."""
    return sum(int(line) for line in query("memory.used") if line.strip().isdecimal())
