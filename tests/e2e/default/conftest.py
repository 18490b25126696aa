"""One application for all tests of this folder."""

from collections.abc import Iterator

import pytest
from conftest import Served


@pytest.fixture(scope="package")
def served() -> Iterator[Served]:
    """A running application with the default settings."""
    application = Served()
    yield application
    application.stop()
