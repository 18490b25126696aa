"""Ray Serve without pandas, which others can still import."""

import subprocess
import sys

from tests.support.paths import ROOT

CODE = """
import sys
import deployments.host.lean
import ray.serve._private.controller
import ray.serve._private.replica
print("pandas" in sys.modules)
import pandas
print(pandas.DataFrame({"a": [1]}).a.sum())
"""


def test_serve_is_imported_without_pandas_and_others_can_import_it() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "1"], done.stderr


def test_a_process_that_has_pandas_keeps_it() -> None:
    code = "import pandas, sys; import deployments.host.lean; print(sys.modules['pandas'] is pandas)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr
