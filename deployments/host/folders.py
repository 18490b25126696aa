"""Folders of this user alone, and temporary ones that go with their process: where it is killed, the next one removes them."""

import contextlib
import fcntl
import os
import shutil
import stat
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
        self._lock = os.fdopen(os.open(Path(self.name, LOCK), os.O_WRONLY | os.O_CREAT, 0o600), "wb")  # open as long as it is used
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        remove_left(Path(self.name).parent, prefix)

    def fileno(self) -> int:
        """Return the descriptor of the lock. A process that inherits it keeps the folder."""
        return self._lock.fileno()

    def cleanup(self) -> None:
        """Remove the folder."""
        self._folder.cleanup()
        self._lock.close()


def make_own(path: Path) -> Path:
    """Make a folder that only this user can enter, or make it so where it is there; return it.

    Raises PermissionError when it is a link or another user's: on a shared host, anybody can have made it.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{path} is not a folder of this user (uid {os.geteuid()})")
    path.chmod(0o700)
    return path


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
