"""Garbage is collected again after an import, however that ended."""

import gc

import pytest

from deployments.host.garbage import no_collecting


def test_nothing_is_collected_until_the_end() -> None:
    frozen = gc.get_freeze_count()
    with no_collecting():
        assert not gc.isenabled()
        made = [[] for _ in range(1000)]  # type: ignore[var-annotated]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= frozen + len(made)
    with pytest.raises(ImportError), no_collecting():
        raise ImportError
    assert gc.isenabled()
