"""What `make serve` prints."""

import os
import subprocess
import sys

import pytest

from deployments.launch import terminal
from tests.support.paths import ROOT


def test_a_warning_is_a_line_each_and_none_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.warn([])
    assert capsys.readouterr().out == ""
    terminal.warn(["anyone can use it.", "Set access.keys=FILE."])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["WARNING", "anyone", "can", "use", "it."],
        ["WARNING", "Set", "access.keys=FILE."],
    ]


@pytest.mark.parametrize(("code", "status"), [("terminal.warn(['anyone'])", 0), ("print('anybody else')", 120)])
def test_a_terminal_that_has_gone_stops_nothing(code: str, status: int) -> None:
    """What Python cannot print at its exit is an error of its own."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", f"from deployments.launch import terminal; {code}; {code}"]
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": ""})
    os.close(writing)
    assert done.returncode == status, done.stderr
