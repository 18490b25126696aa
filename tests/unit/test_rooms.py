"""The layout: which room there is, what each may import, and what a process must not import."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.support.imports import Imports
from tests.support.paths import ROOT

PACKAGES = ("deployments", "ui", "monitoring", "models", "cluster")


def of(package: str, names: str) -> set[str]:
    return {f"{package}.{name}" for name in names.split()}


BOTTOM = of("deployments", "routing settings engine_arguments errors patching")
BELOW = BOTTOM | of("deployments", "observability host weights")
SHARED = BELOW | of("deployments", "engine reasoning transport access store ui autoscaling")
APPLICATION = SHARED | of("deployments", "application ingress engine_client replica launch")

MAY_IMPORT: dict[str, set[str]] = {
    "deployments": {"deployments.application"},  # `config` and `default`, looked up when they are asked for
    "deployments.application": SHARED | of("deployments", "ingress replica"),
    "deployments.launch": SHARED,
    "deployments.ingress": SHARED | of("deployments", "engine_client"),
    "deployments.engine_client": SHARED,
    "deployments.replica": SHARED,
    "deployments.engine": BELOW | of("deployments", "reasoning transport.cache_events"),
    "deployments.reasoning": BELOW,
    "deployments.transport": BELOW,
    "deployments.access": BELOW,
    "deployments.store": BELOW,
    "deployments.ui": BELOW | {"ui"},
    "deployments.autoscaling": BELOW,
    "deployments.observability": BOTTOM,
    "deployments.host": BOTTOM,
    "deployments.weights": BOTTOM,
    "deployments.routing": of("deployments", "settings errors patching"),
    "deployments.settings": of("deployments", "engine_arguments errors"),
    "deployments.engine_arguments": of("deployments", "errors"),
    "deployments.errors": set(),
    "deployments.patching": set(),
    "ui": set(),
    "monitoring": {"deployments.observability.metrics"},
    "models.recipe": set(),
    "cluster.plan": APPLICATION,
    "cluster.bench": APPLICATION,
    "cluster.check": APPLICATION | of("cluster", "bench plan"),
    "cluster.simulate": APPLICATION | of("cluster", "bench"),
    "cluster.evaluate": APPLICATION | of("models", "recipe"),
}
"""Room -> the rooms that it may import, or single modules of them. A room is a package or a module beside packages."""

PARTS = {
    "deployments.ingress.middleware": "deployments.ingress",
    "deployments.reasoning.answers": "deployments.reasoning",
    "cluster.simulate.routing": "cluster.simulate",
    "monitoring.boards": "monitoring",
}
"""Package -> the room above it that it is part of."""

HEAVY = {"ray", "vllm", "torch", "transformers", "fastapi"}
LEAVES = of(
    "deployments",
    "settings errors engine_arguments observability.metrics observability.startup observability.record reasoning.coat"
    " reasoning.vote reasoning.equality reasoning.limits access.keys access.usage access.shared"
    " autoscaling.signals autoscaling.memory autoscaling.policy routing.score routing.lengths routing.cache_index",
)


@pytest.fixture(scope="module")
def imports() -> Imports:
    return Imports(ROOT, PACKAGES)


@pytest.fixture(scope="module")
def at_import() -> Imports:
    return Imports(ROOT, PACKAGES, at_import=True)


def room_of(module: str) -> str:
    """Return the room of a module; itself, where the table has none for it."""
    above = [module]
    while "." in above[-1]:
        above.append(above[-1].rpartition(".")[0])
    found = next((name for name in above if name in MAY_IMPORT or name in PARTS), module)
    # The root package's room is its `__init__` alone.
    return module if found == "deployments" else PARTS.get(found, found)


def modules_of(imports: Imports, room: str) -> list[str]:
    return [module for module in imports.modules if room_of(module) == room]


def may_reach(room: str) -> set[str]:
    """Return all rooms, and single modules, that a room may import by way of others."""
    found, waiting = {room}, [room]
    while waiting:
        new = MAY_IMPORT.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def is_package(imports: Imports, module: str) -> bool:
    return imports.modules[module].name == "__init__.py"


def lines(chains: Iterable[str]) -> str:
    return "\n".join(["", *chains])


# The table and the folders.


def test_every_room_has_a_file(imports: Imports) -> None:
    """A package's `__init__` is not one; that of the root package is, which has names of its own."""
    rooms = {room_of(module) for module in imports.modules if module == "deployments" or not is_package(imports, module)}
    assert MAY_IMPORT.keys() - rooms == set()
    empty = [part for part in PARTS if not any(module.startswith(f"{part}.") for module in imports.modules)]
    assert empty == []


def test_every_file_is_in_a_room(imports: Imports) -> None:
    parents = {"models", "cluster"}  # which hold rooms, and nothing else
    assert {room_of(module) for module in imports.modules} - MAY_IMPORT.keys() - parents == set()


def test_every_package_is_named(imports: Imports) -> None:
    packages = {module for module in imports.modules if is_package(imports, module)}
    assert packages - MAY_IMPORT.keys() - PARTS.keys() == {"models", "cluster"}


def test_the_table_has_no_circles_and_names_what_there_is(imports: Imports) -> None:
    for room, rooms in MAY_IMPORT.items():
        assert {name for name in rooms if name not in MAY_IMPORT and name not in imports.modules} == set(), room
        assert [name for name in rooms if room in may_reach(name)] == [], room


def test_tests_mirror_the_packages() -> None:
    folders = {path.parent.relative_to(ROOT / "tests" / "unit") for path in (ROOT / "tests" / "unit").rglob("test_*.py")}
    assert len(folders) > len(PACKAGES)
    assert [str(folder) for folder in folders - {Path(), Path("support")} if not (ROOT / folder / "__init__.py").is_file()] == []


def test_an_init_is_a_docstring(imports: Imports) -> None:
    """That of the root package has names of its own, too."""
    trees = {module: ast.parse(imports.modules[module].read_text()) for module in imports.modules if is_package(imports, module)}
    assert len(trees) > len(PACKAGES)
    assert [module for module, tree in trees.items() if not ast.get_docstring(tree)] == []
    assert [module for module, tree in trees.items() if len(tree.body) > 1] == ["deployments"]


# Who imports whom.


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_what_it_may(imports: Imports, room: str) -> None:
    allowed = MAY_IMPORT[room] | {room}
    wrong = [
        imports.told([module, found])
        for module in modules_of(imports, room)
        for found in imports.ours[module]
        if room_of(found) not in allowed and found not in allowed
    ]
    assert not wrong, lines(wrong)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_reaches_nothing_else_by_way_of_others(imports: Imports, room: str) -> None:
    allowed = may_reach(room)
    chains = [
        imports.chain(module, lambda found: room_of(found) not in allowed and found not in allowed)
        for module in modules_of(imports, room)
    ]
    wrong = [imports.told(chain) for chain in chains if chain]
    assert not wrong, lines(wrong)


@pytest.mark.parametrize(("room", "other"), [("ingress", "replica"), ("replica", "ingress"), ("launch", "application")])
def test_these_do_not_know_each_other_whatever_the_table_says(imports: Imports, room: str, other: str) -> None:
    start, end = f"deployments.{room}", f"deployments.{other}"
    modules = modules_of(imports, start)
    assert modules
    chains = [imports.chain(module, lambda found: room_of(found) == end) for module in modules]
    wrong = [imports.told(chain) for chain in chains if chain]
    assert not wrong, lines(wrong)


def test_no_module_imports_itself_by_way_of_others(imports: Imports) -> None:
    circles = imports.circles()
    assert not circles, lines(map(imports.told, circles))


def test_what_is_imported_is_there(imports: Imports) -> None:
    assert imports.missing == []


def test_what_docstrings_and_strings_name_is_there(imports: Imports) -> None:
    """Such as the classes that Serve imports by name, and `python -m`."""
    packages = {module for module in imports.modules if is_package(imports, module)}
    found = [name for path in imports.modules.values() for name in re.findall(r"\bdeployments\.\w+(?:\.\w+)?", path.read_text())]
    assert len(found) > len(imports.modules)
    named = {name if name.rpartition(".")[0] in packages else name.rpartition(".")[0] for name in found}
    assert named - imports.modules.keys() - of("deployments", "config default") == set()


# What a process must not import.


def libraries(imports: Imports, start: str, names: set[str]) -> list[str]:
    """Return the chains of imports from a module to those that import one of these libraries."""
    return [
        f"{imports.told(imports.chain(start, module.__eq__) or [start])}:{line} → {name}"
        for module in sorted(imports.reached(start))
        for name, line in imports.theirs[module].items()
        if name.partition(".")[0] in names
    ]


@pytest.mark.parametrize("leaf", sorted(LEAVES))
def test_leaves_import_nothing_heavy(imports: Imports, at_import: Imports, leaf: str) -> None:
    """Neither at their top nor in a function. What they import may do so in a function, as the log does for its folder."""
    assert [name for name in imports.theirs[leaf] if name.partition(".")[0] in HEAVY] == []
    wrong = libraries(at_import, leaf, HEAVY)
    assert not wrong, lines(wrong)


@pytest.mark.parametrize("start", ["deployments.ingress.server", "deployments.reasoning.ballot"])
def test_an_ingress_computes_no_answers_itself(imports: Imports, start: str) -> None:
    """The process of `deployments.reasoning.answers.worker` does, and only that is started."""
    assert "deployments.reasoning.answers.comparer" in imports.reached(start)
    wrong = libraries(imports, start, {"sympy", "math_verify", "mpmath"})
    assert not wrong, lines(wrong)


@pytest.mark.parametrize(("room", "names"), [("ui", HEAVY - {"fastapi"}), ("monitoring", HEAVY)])
def test_ui_and_monitoring_know_http_only(imports: Imports, room: str, names: set[str]) -> None:
    modules = modules_of(imports, room)
    assert modules
    wrong = [chain for module in modules for chain in libraries(imports, module, names)]
    assert not wrong, lines(wrong)


@pytest.mark.parametrize("room", ["deployments.application", "deployments.launch", "deployments.replica"])
def test_the_driver_and_a_replica_import_neither_vllm_nor_torch(imports: Imports, room: str) -> None:
    modules = [module for module in modules_of(imports, room) if not is_package(imports, module)]
    assert modules
    code = f"import sys, {', '.join(modules)}; print([name for name in ('vllm', 'torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
