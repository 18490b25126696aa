"""One application for all tests of this folder."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.application import Served
from tests.support.paths import ROOT


@pytest.fixture(scope="package")
def served() -> Iterator[Served]:
    """A running application with the default settings. `make stop` ends it, and leaves nothing of it."""
    with Served() as application:
        yield application
        processes = application.all_processes()
        subprocess.run([sys.executable, "-m", "deployments.launch.stop"], cwd=ROOT, check=True, capture_output=True)
        application.ends_with_nothing_left(processes)
