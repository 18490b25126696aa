"""What was not run for want of a program is told, with the command that brings it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support import programs

Hidden = Callable[..., None]


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> Hidden:
    """Hide programs."""

    def hide(*names: str) -> None:
        monkeypatch.setattr(shutil, "which", lambda name: None if name in names else f"/usr/bin/{name}")

    return hide


def skipped(reason: str) -> SimpleNamespace:
    return SimpleNamespace(longrepr=("somewhere.py", 1, f"Skipped: {reason}"))


def test_a_test_that_misses_a_program_is_skipped(hidden: Hidden) -> None:
    hidden("prometheus")
    assert programs.reason("chromium") is None
    assert programs.reason("chromium", "prometheus") == "not here: prometheus"
    with pytest.raises(pytest.skip.Exception, match="not here: prometheus"):
        programs.require("prometheus")
    programs.require("chromium")
    assert [programs.needs(name).mark.args[0] for name in ("prometheus", "chromium")] == [True, False]


def test_each_reason_is_a_line_with_the_command_that_helps(tmp_path: Path) -> None:
    programs.record([skipped("not here: promtool"), skipped("not here: promtool"), skipped("one core")], tmp_path)  # type: ignore[list-item]
    (tmp_path / "another.json").write_text(json.dumps({"not here: promtool": 1}))
    assert programs.summary(tmp_path) == [
        "not run: 3 tests: not here: promtool; sudo apt-get install prometheus (sudo make programs installs all)",
        "not run: 1 test: one core",
    ]


def test_where_nothing_was_skipped_nothing_is_told(tmp_path: Path) -> None:
    programs.record([], tmp_path / "none")
    assert programs.summary(tmp_path / "none") == []


def test_the_makefile_installs_every_package() -> None:
    makefile = (programs.ROOT / "Makefile").read_text()
    [listed] = [line.partition("=")[2].split() for line in makefile.splitlines() if line.startswith("PROGRAMS =")]
    assert set(programs.PACKAGES.values()) - {"util-linux"} <= set(listed)
