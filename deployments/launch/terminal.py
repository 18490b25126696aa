"""The lines that `make serve` prints."""

import os
import sys


def write(line: str = "") -> None:
    """Print a line at once; where nobody reads any more, this and all later output is dropped.

    A terminal that is gone must not keep the application from being stopped. What is left in Python's buffer would also fail when
    the process exits, whose status is then 120.
    """
    try:
        print(line, flush=True)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def report(part: str, progress: str, seconds: float | None = None) -> None:
    """Print one progress line."""
    write(f"  {part:<9} {progress:<52}" + ("" if seconds is None else f"{seconds:6.1f} s"))


def warn(lines: list[str]) -> None:
    """Print a warning, if there is one."""
    for line in lines:
        report("WARNING", line)
