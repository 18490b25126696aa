"""Folders of one user alone, and temporary ones: the one whose process was killed goes, the one in use stays."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deployments.host.folders import LOCK, YOUNG_S, TemporaryFolder, make_own, remove_left

HOLDER = """
import sys, time
from deployments.host.folders import TemporaryFolder
made = TemporaryFolder("kept-", sys.argv[1])
print(made.name, flush=True)
time.sleep(60)
"""


def grow_old(folder: str) -> None:
    past = time.time() - YOUNG_S - 1
    os.utime(Path(folder, LOCK), (past, past))


def test_a_folder_of_a_killed_process_is_removed_and_those_in_use_are_not(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        held = holder.stdout.readline().strip()
        grow_old(held)
        mine = TemporaryFolder("kept-", str(tmp_path))
        assert Path(held).is_dir(), "its process lives"
        holder.kill()
    grow_old(mine.name)
    other = TemporaryFolder("other-", str(tmp_path))
    assert Path(held).is_dir(), "of another kind"
    remove_left(tmp_path, "kept-")
    assert not Path(held).exists()
    assert Path(mine.name).is_dir()
    mine.cleanup()
    other.cleanup()
    assert list(tmp_path.iterdir()) == []


def test_a_young_folder_and_one_without_a_lock_are_left_alone(tmp_path: Path) -> None:
    young, strange = tmp_path / "kept-1", tmp_path / "kept-2"
    young.mkdir()
    strange.mkdir()
    (young / LOCK).touch()
    remove_left(tmp_path, "kept-")
    assert sorted(tmp_path.iterdir()) == [young, strange]
    grow_old(str(young))
    remove_left(tmp_path, "kept-")
    assert list(tmp_path.iterdir()) == [strange]


def test_a_child_that_inherits_the_lock_keeps_the_folder(tmp_path: Path) -> None:
    made = TemporaryFolder("kept-", str(tmp_path))
    grow_old(made.name)
    with subprocess.Popen(["sleep", "60"], pass_fds=(made.fileno(),)) as child:
        made._lock.close()  # as when this process is killed
        remove_left(tmp_path, "kept-")
        assert Path(made.name).is_dir()
        child.kill()
    remove_left(tmp_path, "kept-")
    assert not Path(made.name).exists()
    made.cleanup()


def test_a_folder_of_ones_own_is_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "mine"
    for _ in range(2):
        assert make_own(made) == made
        assert made.stat().st_mode & 0o777 == 0o700
        made.chmod(0o777)
    (tmp_path / "link").symlink_to(made)
    with pytest.raises(PermissionError, match=r"link is not a folder of this user"):
        make_own(tmp_path / "link")
    monkeypatch.setattr(os, "geteuid", lambda: made.stat().st_uid + 1)
    with pytest.raises(PermissionError, match=r"mine is not a folder of this user"):
        make_own(made)
