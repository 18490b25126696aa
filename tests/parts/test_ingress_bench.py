"""The bench of an ingress, as short as it can be: the form of its result. Its figures are for a quiet machine."""

import json
import subprocess
import sys
from pathlib import Path

from cluster.bench.ingress import COLUMNS
from tests.support.paths import ROOT


def test_both_servers_have_all_figures(tmp_path: Path) -> None:
    options = [
        "--rounds",
        "1",
        "--clients",
        "2",
        "--requests",
        "4",
        "--tokens",
        "8",
        "--step",
        "0.002",
        "--json",
        tmp_path / "found",
    ]
    command = [sys.executable, "-m", "cluster.bench.ingress", *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found").read_text())
    assert found["options"]["tokens"] == 8
    assert {name: [set(row) for row in rows] for name, rows in found["rounds"].items()} == {
        "bare": [set(COLUMNS)],
        "ours": [set(COLUMNS)],
    }
    assert all(
        value > 0 for rows in found["rounds"].values() for row in rows for name, value in row.items() if "marginal" not in name
    )
    assert "| ours of bare |" in done.stdout
