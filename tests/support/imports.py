"""Who imports whom, as the sources say."""

import ast
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path


class Imports:
    """The imports of all modules of some packages: at their top, inside functions, and for type checkers.

    `modules` has their files by name; a package's name is its `__init__`'s. `ours` has what each module imports of these packages,
    by name with the line; `theirs` what it imports of others. `missing` are imports of these packages for which there is no file.
    With `at_import`, all of it is of imports that run when the module is imported, and of no others.
    """

    def __init__(self, root: Path, packages: Iterable[str], at_import: bool = False) -> None:
        self.modules = {_name(path, root): path for package in packages for path in sorted((root / package).rglob("*.py"))}
        self.ours: dict[str, dict[str, int]] = {name: {} for name in self.modules}
        self.theirs: dict[str, dict[str, int]] = {name: {} for name in self.modules}
        self.missing: list[str] = []
        self._tops = {name.partition(".")[0] for name in self.modules}
        for name, path in self.modules.items():
            for node in _imports(ast.parse(path.read_text()), at_import):
                self._add(name, node)

    def _add(self, module: str, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.Import):
            found = [(alias.name, alias.name) for alias in node.names]
        else:
            base = self._base(module, node)
            found = [(base, f"{base}.{alias.name}") for alias in node.names]
        for base, name in found:
            if base.partition(".")[0] not in self._tops:
                self.theirs[module].setdefault(name, node.lineno)
            elif base in self.modules:
                self.ours[module].setdefault(name if name in self.modules else base, node.lineno)
            else:
                self.missing.append(f"{module}:{node.lineno} imports {base}")

    def _base(self, module: str, node: ast.ImportFrom) -> str:
        """Return what `from ... import` names, with leading dots resolved."""
        package = module if self.modules[module].name == "__init__.py" else module.rpartition(".")[0]
        above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
        return ".".join([*above, *([node.module] if node.module else [])])

    def chain(self, start: str, is_end: Callable[[str], bool]) -> list[str]:
        """Return the shortest chain of imports from a module to one that is an end; nothing where there is none."""
        came_from: dict[str, str] = {}
        waiting = deque([start])
        while waiting:
            module = waiting.popleft()
            for found in self.ours[module]:
                if is_end(found):
                    return [*_back(came_from, start, module), found]
                if found not in came_from and found != start:
                    came_from[found] = module
                    waiting.append(found)
        return []

    def reached(self, start: str) -> set[str]:
        """Return a module, and all that it imports, directly or by way of others."""
        found, waiting = {start}, [start]
        while waiting:
            new = self.ours[waiting.pop()].keys() - found
            found |= new
            waiting += new
        return found

    def circles(self) -> list[list[str]]:
        """Return the shortest circle through each module that is in one; each circle once."""
        found = {}
        for module in self.modules:
            if circle := self.chain(module, module.__eq__):
                found.setdefault(frozenset(circle), circle)
        return list(found.values())

    def told(self, chain: list[str]) -> str:
        """Return a chain as text, with the lines of its imports."""
        steps = (f"{module}:{self.ours[module][found]} → " for module, found in pairwise(chain))
        return "".join(steps) + chain[-1]


def _imports(node: ast.AST, at_import: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not (at_import and _is_late(child)):
            yield from _imports(child, at_import)


def _is_late(node: ast.AST) -> bool:
    """Return whether what is inside a statement does not run with its module."""
    types_only = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return types_only or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def _name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _back(came_from: dict[str, str], start: str, module: str) -> list[str]:
    chain = [module]
    while chain[-1] != start:
        chain.append(came_from[chain[-1]])
    return chain[::-1]
