"""Who may import whom, and what a process must not import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
HEAVY = {"ray", "vllm", "torch", "transformers", "fastapi"}


def imports(path: Path) -> set[str]:
    """Return the full names of all modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize(
    "leaf", ["settings", "errors", "phases", "metrics", "coat", "vote", "keys", "access", "autoscaling", "learned"]
)
def test_leaves_import_nothing_heavy(leaf: str) -> None:
    assert not {name.split(".")[0] for name in imports(ROOT / "deployments" / f"{leaf}.py")} & HEAVY


def test_ingress_and_replica_do_not_know_each_other() -> None:
    assert "deployments.replica" not in imports(ROOT / "deployments" / "ingress.py")
    assert "deployments.ingress" not in imports(ROOT / "deployments" / "replica.py")


def test_only_the_application_knows_both() -> None:
    both = {"deployments.ingress", "deployments.replica"}
    knowing = [path.name for path in (ROOT / "deployments").glob("*.py") if both <= imports(path)]
    assert knowing == ["application.py"]


def test_ui_knows_http_only() -> None:
    for path in (ROOT / "ui").glob("**/*.py"):
        assert not {name for name in imports(path) if name.split(".")[0] in {"ray", "vllm", "torch", "deployments"}}


def test_monitoring_knows_the_metrics_of_the_application_only() -> None:
    for path in (ROOT / "monitoring").glob("**/*.py"):
        ours = {name for name in imports(path) if name.split(".")[0] in {"deployments", "ui", "cluster", *HEAVY}}
        assert {".".join(name.split(".")[:2]) for name in ours} <= {"deployments", "deployments.metrics"}


@pytest.mark.parametrize("module", ["deployments.application", "deployments.launch", "deployments.replica"])
def test_the_driver_and_a_replica_import_neither_vllm_nor_torch(module: str) -> None:
    code = f"import sys, {module}; print([name for name in ('vllm', 'torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
