"""Libraries for clients against the real application: each gets a typed object, with the right result, for each of twelve sums.

A library is a program in the folder of the environment that it runs in (`dev/clients.py`); `answers.py` tells what is in one. The
libraries' own defaults are among the ways in which they ask.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.application import Served
from tests.support.paths import ROOT
from tests.support.sums import SUMS

ARGUMENTS = ("ui.enabled=false", "api.enable_tokenizer_info_endpoint=true")  # the latter for lm-eval's remote tokenizer
HERE = Path(__file__).parent
PROGRAMS = sorted(HERE.glob("*/*.py"))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_each_library_gets_its_typed_answers(served: Served, program: Path) -> None:
    python = ROOT / ".run" / "clients" / program.parent.name / "bin" / "python"
    assert python.exists(), "make clients makes it"
    command = [python, HERE / "answers.py", program, served.url]
    done = subprocess.run(command, input=json.dumps(list(SUMS)), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[Any]] = json.loads(done.stdout.splitlines()[-1])
    right = list(SUMS.values())
    wrong = {
        way: answers if isinstance(answers, str) else [answer for answer in answers if answer not in right] or answers
        for way, answers in found.items()
        if answers != right
    }
    assert found
    assert not wrong, "\n".join(f"{way}: {answers}" for way, answers in wrong.items())
