"""`python -m deployments.weights MODEL`."""

from pathlib import Path

import pytest

from deployments.weights import __main__ as command
from deployments.weights.hub import Hub
from tests.support.fake_hub import WEIGHTS, FakeHub
from tests.support.paths import NANO


def test_the_command_downloads_and_says_where(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(command, "Hub", lambda model: Hub(model, None, hub.url))
    assert command.main(["owner/tiny"]) == 0
    path = Path(capsys.readouterr().out.splitlines()[-1])
    assert (path / WEIGHTS).read_bytes() == (NANO / WEIGHTS).read_bytes()
    hub.files.clear()
    assert command.main(["owner/other"]) == 1
    assert "owner/other" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        command.main(["owner"])
    assert "error: 'owner': allowed: a Hugging Face id, owner/name" in capsys.readouterr().err
