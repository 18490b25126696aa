"""Where a model's files are kept."""

from pathlib import Path

import pytest

from deployments.errors import WeightsError
from deployments.weights.store import File, Manifest, Store


def test_a_branch_with_a_slash_and_names_that_lead_elsewhere(tmp_path: Path) -> None:
    assert Store("owner/tiny", "refs/pr/1", str(tmp_path))._record.parent == tmp_path / "models--owner--tiny"
    for name, digest, commit in (("../x", "0" * 64, "a"), ("/x", "0" * 64, "a"), ("x", "../../x", "a"), ("x", "0" * 64, "../a")):
        with pytest.raises(WeightsError, match="not the names"):
            Manifest(commit, {name: File(1, digest)})
