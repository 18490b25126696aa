"""SHA-256 of the files that the locks may install: `python dev/hashes.py` writes dev/locks/hashes.txt, a line a package.

The package index names them. Kept are wheels for the Python versions and processors that the locks are for, and where a version has
none, its source. A CPU build of torch is not on that index, so it has none here.
"""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename
from pip._internal.models.index import PyPI

LOCKS = Path(__file__).parent / "locks"
HASHES = LOCKS / "hashes.txt"
PYTHONS = ((3, 11), (3, 12), (3, 13))
GLIBCS = range(5, 40)
MACHINES = ("x86_64", "aarch64")


def index() -> str:
    """Return the URL of the package index that pip asks."""
    configured = subprocess.run([sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True)
    return (configured.stdout.strip() or PyPI.simple_url).rstrip("/")


@cache
def tags() -> frozenset[Tag]:
    """Return the tags of wheels that can be installed."""
    found: set[Tag] = set()
    for machine in MACHINES:
        platforms = [f"manylinux_2_{minor}_{machine}" for minor in GLIBCS]
        platforms += [f"{name}_{machine}" for name in ("manylinux1", "manylinux2010", "manylinux2014")] + [f"linux_{machine}"]
        for python in PYTHONS:
            found.update(cpython_tags(python, platforms=platforms))
            found.update(compatible_tags(python, platforms=platforms))
    return frozenset(found)


def files(pinned: str) -> list[str]:
    """Return the SHA-256 of the files of `name==version`."""
    name, version = pinned.split("==")
    asked = urllib.request.Request(f"{index()}/{name}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urllib.request.urlopen(asked, timeout=60) as reply:
        listed: list[dict[str, Any]] = json.load(reply)["files"]
    sources = [file for file in listed if file["filename"].endswith((f"-{version}.tar.gz", f"-{version}.zip"))]
    wheels = [file for file in listed if file["filename"].endswith(".whl") and _fits(file["filename"], version)]
    return sorted(file["hashes"]["sha256"] for file in wheels or sources)


def _fits(filename: str, version: str) -> bool:
    try:
        _, found, _, wheel_tags = parse_wheel_filename(filename)
    except ValueError:  # an old name
        return False
    return str(found) == version and not wheel_tags.isdisjoint(tags())


def pinned() -> Iterator[str]:
    """Yield the packages of all locks, as `name==version`."""
    for path in sorted(LOCKS.glob("*.txt")):
        if path != HASHES:
            yield from (line.partition(";")[0].strip() for line in path.read_text().splitlines())


def main() -> None:
    """Write the file."""
    wanted = sorted({package for package in pinned() if "+" not in package})
    with ThreadPoolExecutor(8) as pool:
        found = dict(zip(wanted, pool.map(files, wanted), strict=True))
    if missing := [package for package, sums in found.items() if not sums]:
        sys.exit(f"no file fits: {', '.join(missing)}")
    HASHES.write_text("".join(f"{package} {' '.join(sums)}\n" for package, sums in found.items()))
    print(f"{HASHES.name}: {len(found)} packages, {sum(map(len, found.values()))} files")


if __name__ == "__main__":
    main()
