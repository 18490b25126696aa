"""A hub for the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.support.fake_hub import FakeHub
from tests.support.paths import NANO


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    made = FakeHub(NANO)
    yield made
    made.close()
