"""Programs that some tests need and a fresh machine may not have: such a test is skipped, and `make test` says so at its end.

python -m tests.support.programs FOLDER     prints what the test runs that wrote into this folder have skipped
"""

import argparse
import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGES = {
    "caddy": "caddy",
    "chromium": "chromium",
    "initdb": "postgresql",
    "ip": "iproute2",
    "nginx": "nginx",
    "openssl": "openssl",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "redis-server": "redis-server",
    "unshare": "util-linux",
}
"""Debian's package of each program."""
SKIPPED = ROOT / ".run" / "skipped"
PREFIX = "not here: "


def reason(*programs: str) -> str | None:
    """Return why a test that needs these programs is to be skipped; None where all are here."""
    missing = [program for program in programs if shutil.which(program) is None]
    return PREFIX + " ".join(missing) if missing else None


def needs(*programs: str) -> pytest.MarkDecorator:
    """Return a mark for tests that need these programs."""
    why = reason(*programs)
    return pytest.mark.skipif(why is not None, reason=why or "")


def require(*programs: str) -> None:
    """Skip the test whose fixture calls this, unless these programs are here."""
    if (why := reason(*programs)) is not None:
        pytest.skip(why)


def record(reports: list[pytest.TestReport], folder: Path = SKIPPED) -> None:
    """Write down how many tests of a run were skipped, for each reason."""
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports if isinstance(report.longrepr, tuple))
    if reasons:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{os.getpid()}.json").write_text(json.dumps(reasons))


def summary(folder: Path) -> list[str]:
    """Return a line for each reason: how many tests it kept from running, and the command that helps."""
    reasons: Counter[str] = Counter()
    for path in folder.glob("*.json"):
        reasons += Counter(json.loads(path.read_text()))
    lines = []
    for why, count in sorted(reasons.items()):
        remedy = ""
        if why.startswith(PREFIX):
            packages = sorted({PACKAGES[program] for program in why.removeprefix(PREFIX).split()})
            remedy = f"; sudo apt-get install {' '.join(packages)} (sudo make programs installs all)"
        lines.append(f"not run: {count} test{'s' * (count > 1)}: {why}{remedy}")
    return lines


def main() -> None:
    """Print a line for each reason. Where CI runs, which has all that tests need, a skipped test is a failure."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.programs", description="Prints what test runs have skipped.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the runs wrote it")
    lines = summary(parser.parse_args().folder)
    print("\n".join(lines), end="\n" if lines else "")
    sys.exit(bool(lines) and "CI" in os.environ)


if __name__ == "__main__":
    main()
