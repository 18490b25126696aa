"""Temporary folders that go with their process, also where it is killed: the next one of the same kind removes them."""

import contextlib
import fcntl
import shutil
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

LOCK = "in-use"
"""A file in each folder, locked for as long as the process lives that made it, or one that has inherited the lock."""
YOUNG_S = 60.0
"""A younger folder is left alone: its lock may not be held yet."""


class TemporaryFolder:
    """A new folder, whose path is `name`. What killed processes of this user have left behind of the same prefix is removed."""

    def __init__(self, prefix: str, parent: str | None = None) -> None:
        """Make it in `parent`, by default where temporary files go. Raises OSError where nothing can be written there."""
        self._folder = tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True)
        self.name = self._folder.name
        self._lock = Path(self.name, LOCK).open("wb")  # noqa: SIM115  # it is open as long as the folder is used
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        remove_left(Path(self.name).parent, prefix)

    def fileno(self) -> int:
        """Return the descriptor of the lock. A process that inherits it keeps the folder."""
        return self._lock.fileno()

    def cleanup(self) -> None:
        """Remove the folder."""
        self._folder.cleanup()
        self._lock.close()


def remove_left(parent: Path, prefix: str) -> None:
    """Remove the folders with this prefix that no process holds."""
    for lock in parent.glob(f"{prefix}*/{LOCK}"):
        with contextlib.suppress(OSError), lock.open("rb") as file:  # another user's, or gone meanwhile
            if time.time() - lock.stat().st_mtime > YOUNG_S and _is_free(file):
                shutil.rmtree(lock.parent, ignore_errors=True)


def _is_free(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
