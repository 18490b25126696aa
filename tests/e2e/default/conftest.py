"""One application for all tests of this folder."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.application import SERVE, Served
from tests.support.paths import ROOT


@pytest.fixture(scope="package")
def served() -> Iterator[Served]:
    """A running application with the default settings. `serve shutdown` ends it, and leaves nothing of it."""
    with Served() as application:
        yield application
        processes = application.all_processes()
        environment = os.environ | {"RAY_AUTH_MODE": "token"}
        subprocess.run([SERVE, "shutdown", "-y"], cwd=ROOT, env=environment, check=True, capture_output=True)
        application.ends_with_nothing_left(processes)
