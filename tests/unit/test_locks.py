"""The locks: pip gets hashes for all that is installed."""

import pytest

from tests.support.paths import ROOT

LOCKS = ROOT / "dev" / "locks"
HASHES = {package: sums for package, *sums in (line.split() for line in (LOCKS / "hashes.txt").read_text().splitlines())}


@pytest.mark.parametrize("name", sorted(path.stem for path in LOCKS.glob("*.txt") if path.stem != "hashes"))
def test_every_package_of_a_lock_has_hashes(name: str) -> None:
    packages = {line.partition(";")[0].strip() for line in (LOCKS / f"{name}.txt").read_text().splitlines()}
    assert [package for package in packages if not HASHES.get(package) and not package.endswith("+cpu")] == []


def test_hashes_are_of_sha_256() -> None:
    assert all(len(bytes.fromhex(one)) == 32 for sums in HASHES.values() for one in sums)
