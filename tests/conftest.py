"""What all tests share: how hypothesis looks for examples, a running application a module, and a record of skipped tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import programs
from tests.support.application import Served
from tests.support.paths import NANO

# Machines are busy: a test that blows up runs into its own time limit. Examples are the same in every run; others are looked for
# with `make unit ARGS=--hypothesis-profile=random`.
settings.register_profile("random", deadline=None)
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("few", deadline=None, derandomize=True, max_examples=20)
settings.load_profile("same")


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    """A running application with the settings of the module's `ARGUMENTS`, and the default preset."""
    with Served(*getattr(request.module, "ARGUMENTS", ())) as application:
        yield application


@pytest.fixture(scope="session")
def nano() -> Path:
    """The embedded model's directory."""
    return NANO


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write down what was skipped for want of a program: `make test` says it at its end."""
    programs.record(terminalreporter.stats.get("skipped", []))
