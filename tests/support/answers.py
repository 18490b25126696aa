"""The table of answers that are equal and answers that are not."""

from typing import NamedTuple

from tests.support.paths import ROOT

TABLE = ROOT / "tests" / "unit" / "deployments" / "reasoning" / "answers" / "pairs.tsv"


class Pair(NamedTuple):
    """Two answers, and whether they are equal; `kind` is the table's heading above them."""

    kind: str
    equal: bool
    first: str
    second: str


def pairs() -> list[Pair]:
    """Return the table."""
    found, kind = [], ""
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            kind = line.removeprefix("# ")
        else:
            sign, first, second = line.split("\t")
            found.append(Pair(kind, {"=": True, "!=": False}[sign], first, second))
    return found
