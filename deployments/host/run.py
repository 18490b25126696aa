"""A run of `make serve`: the name that its processes carry, and the folder of its files, which only its user can enter."""

import os
from collections.abc import Mapping
from pathlib import Path

RUN = "SATORI_RUN"
"""The environment variable that names a run of `make serve`, in all its processes."""
FOLDER = "SATORI_RUN_FOLDER"
"""The environment variable with the path of its folder."""


def marker(variables: Mapping[str, str]) -> Path:
    """Return the path of the file that exists while the run with this environment is draining."""
    return Path(variables[FOLDER], "draining")


def dashboard(folder: Path) -> Path:
    """Return the path of the file in which a run says where its Ray's API is, for `serve shutdown` and the like."""
    return folder / "dashboard"


def draining() -> bool:
    """Return whether this process's run is draining."""
    return FOLDER in os.environ and marker(os.environ).exists()
