"""Which modules of cluster/ import which: no circles, and no program imports another one."""

import ast
import graphlib
from pathlib import Path

from tests.support.paths import ROOT

MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted((ROOT / "cluster").rglob("*.py"))}


def imported(path: Path) -> set[str]:
    """Return the modules of cluster/ that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & MODULES.keys()


def test_imports_are_seen() -> None:
    assert imported(MODULES["cluster.bench.__main__"]) >= {"cluster.bench.pairs", "cluster.bench.stack"}
    assert imported(MODULES["cluster.simulate.__main__"]) >= {"cluster.simulate.plots"}, "within a function"


def test_there_are_no_circles() -> None:
    order = list(graphlib.TopologicalSorter({name: imported(path) for name, path in MODULES.items()}).static_order())
    assert order.index("cluster.bench.stack") < order.index("cluster.bench.chaos")
    assert len(order) == len(MODULES)


def test_no_program_is_imported() -> None:
    programs = {name for name, path in MODULES.items() if 'if __name__ == "__main__":' in path.read_text()}
    assert programs >= {f"cluster.{room}.__main__" for room in ("bench", "evaluate", "plan", "simulate")} | {"cluster.bench.chaos"}
    assert not {(name, one) for name, path in MODULES.items() for one in imported(path) & programs}
