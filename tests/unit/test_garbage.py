"""Garbage is collected again after an import, however that ended."""

import gc

import pytest

from deployments.garbage import no_collecting


def test_nothing_is_collected_until_the_end() -> None:
    with no_collecting():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), no_collecting():
        raise ImportError
    assert gc.isenabled()
