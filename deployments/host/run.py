"""A run of `make serve`: the name that its processes carry, and the file that tells them that it is draining."""

import os
import tempfile
from pathlib import Path

RUN = "SATORI_RUN"
"""The environment variable that names a run of `make serve`, in all its processes."""


def marker(run: str) -> Path:
    """Return the path of the file that exists while a run is draining."""
    return Path(tempfile.gettempdir()) / f"satori-serve-{run}.draining"


def draining() -> bool:
    """Return whether this process's run is draining."""
    run = os.environ.get(RUN)
    return run is not None and marker(run).exists()
