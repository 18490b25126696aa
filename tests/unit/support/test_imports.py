"""Reading imports: where they may stand, and by what chains one module reaches another."""

from pathlib import Path

import pytest

from tests.support.imports import Imports

FILES = {
    "a/__init__.py": '"""A package."""',
    "a/one.py": "from a import two\nimport json",
    "a/two.py": "def f():\n    from a.b.three import g",
    "a/b/__init__.py": '"""A package in it."""',
    "a/b/three.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..four import C\n    import torch",
    "a/four.py": "class C:\n    import a.one",
    "a/five.py": "from . import one\nfrom .gone import x\nimport a.away",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_imports_are_found_wherever_they_stand(root: Path) -> None:
    imports = Imports(root, ["a"])
    assert imports.modules.keys() == {"a", "a.one", "a.two", "a.b", "a.b.three", "a.four", "a.five"}
    assert imports.ours["a.one"] == {"a.two": 1}
    assert imports.ours["a.two"] == {"a.b.three": 2}
    assert imports.ours["a.b.three"] == {"a.four": 3}
    assert imports.ours["a.four"] == {"a.one": 2}
    assert imports.ours["a.five"] == {"a.one": 1}
    assert imports.theirs["a.one"] == {"json": 2}
    assert imports.theirs["a.b.three"] == {"typing.TYPE_CHECKING": 1, "torch": 4}
    assert imports.missing == ["a.five:2 imports a.gone", "a.five:3 imports a.away"]


def test_some_run_only_when_they_are_called(root: Path) -> None:
    imports = Imports(root, ["a"], at_import=True)
    assert imports.ours["a.one"] == {"a.two": 1}
    assert imports.ours["a.two"] == imports.ours["a.b.three"] == {}
    assert imports.ours["a.four"] == {"a.one": 2}
    assert imports.theirs["a.b.three"] == {"typing.TYPE_CHECKING": 1}
    assert imports.circles() == []


def test_a_chain_and_a_circle_are_told_with_their_lines(root: Path) -> None:
    imports = Imports(root, ["a"])
    assert imports.told(imports.chain("a.five", "a.four".__eq__)) == "a.five:1 → a.one:1 → a.two:2 → a.b.three:3 → a.four"
    assert imports.chain("a.one", "a.five".__eq__) == []
    assert imports.reached("a.five") == {"a.one", "a.two", "a.b.three", "a.four", "a.five"}
    [circle] = imports.circles()
    assert imports.told(circle) == "a.b.three:3 → a.four:2 → a.one:1 → a.two:2 → a.b.three"
