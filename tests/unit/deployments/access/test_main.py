"""`python -m deployments.access NAME`: a key that works, or what is wrong with its name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.access.__main__ import main
from deployments.access.keys import KeyStore
from tests.support.paths import ROOT

SECRET = "sk-satori-" + "S" * 43


def name_of_printed_key(printed: str, folder: Path) -> str:
    """Return the name of the key that was printed, when its entry is in a file as it says."""
    [made] = re.findall(r"^sk-satori-[A-Za-z0-9_-]{43}$", printed, re.MULTILINE)
    (folder / "keys.yaml").write_text("keys:\n" + printed[printed.index("- name") :])
    found = KeyStore(str(folder / "keys.yaml"), None).find(made)
    assert found is not None
    return found.name


@pytest.mark.parametrize("name", ["alice", "7", "on"])  # the last two are no words in YAML without quotes
def test_the_command_makes_a_key_that_works(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 0
    assert name_of_printed_key(capsys.readouterr().out, tmp_path) == name


@pytest.mark.parametrize("arguments", [[], [""], ["a b"], ["a", "b"], ["a" * 65], ["a\n"], ["ä"], ["a/b"], [SECRET]])
def test_a_bad_name_is_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code != 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "python -m deployments.access" in captured.err
    assert "error: " in captured.err
    if len(arguments) == 1:
        assert "NAME: allowed: 1 to 64 of the characters" in captured.err
    assert SECRET not in captured.err


def test_it_is_a_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deployments.access", "alice"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert name_of_printed_key(done.stdout, tmp_path) == "alice"
