"""`dev/host.sh`, which make asks before it installs anything: the Python to use, or one line that says what is missing."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SCRIPT = ROOT / "dev" / "host.sh"
Ask = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """Run the script on a host whose programs say what the test wants; there is no Python but those that it gives."""
    for program in ("sh", "awk", "df", "head", "uname", "ldd"):
        (tmp_path / program).symlink_to(shutil.which(program) or program)

    def ask(*arguments: str, **says: str) -> subprocess.CompletedProcess[str]:
        for name, text in says.items():
            path = tmp_path / name.replace("_", ".")
            path.unlink(missing_ok=True)
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)
        environment = {"PATH": str(tmp_path)}
        return subprocess.run(["sh", SCRIPT, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)

    return ask


def python(version: str, venv: bool = True) -> str:
    """Return what an interpreter of this version says to the script's two questions."""
    return f"case $2 in *version*) echo {version} ;; *) exit {0 if venv else 1} ;; esac"


@pytest.mark.parametrize(
    ("here", "chosen"),
    [
        ({"python3_11": python("3.11")}, "python3.11"),
        ({"python3_11": python("3.11"), "python3_13": python("3.13")}, "python3.13"),
        ({"python3_11": python("3.11"), "python3_13": python("3.13", venv=False)}, "python3.11"),
        ({"python3_13": "exit 127", "python3": python("3.12")}, "python3"),  # a shim with nothing behind it
    ],
)
def test_the_newest_python_with_venv_is_taken(ask: Ask, here: dict[str, str], chosen: str) -> None:
    done = ask(**here)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{chosen}\n", "")


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ({"uname": "case $1 in -s) echo Darwin ;; *) echo arm64 ;; esac"}, "this is Darwin"),
        ({"uname": "case $1 in -s) echo Linux ;; *) echo riscv64 ;; esac"}, "this is a riscv64 processor"),
        ({"ldd": "echo 'musl libc (x86_64)' >&2; exit 1"}, "this system has musl"),
        ({"awk": "echo 2"}, "this host has 2 GiB of memory"),
        ({}, "Python 3.11, 3.12 or 3.13 is needed, and here is none"),
        ({"python3": python("3.9")}, "and here is 3.9"),
        ({"python3_12": python("3.12", venv=False)}, "has no venv; install it: sudo apt-get install python3.12-venv"),
    ],
)
def test_a_host_that_cannot_run_it_is_told_why_in_a_line(ask: Ask, host: dict[str, str], says: str) -> None:
    done = ask(**host)
    assert done.returncode == 1
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert says in line


def test_a_full_disk_is_told(ask: Ask) -> None:
    done = ask("1000000", python3=python("3.11"))
    assert done.returncode == 1
    assert "the packages need 1000000" in done.stderr


def test_this_host_can_run_it() -> None:
    done = subprocess.run(["sh", SCRIPT, "0"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sys.version_info >= (3, 11)
