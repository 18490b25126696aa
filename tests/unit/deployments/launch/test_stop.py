"""`make stop`: the application of this checkout on a port, and no other. An end-to-end test stops one."""

from pathlib import Path

import pytest

from deployments.errors import SettingsError
from deployments.host.run import dashboard
from deployments.launch import serve_run, stop


def test_an_application_is_found_by_its_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_run, "FILES", tmp_path)
    for name, port in (("run", 8265), ("run-8001", 8266)):
        (tmp_path / name).mkdir()
        dashboard(tmp_path / name).write_text(f"http://127.0.0.1:{port}")
    (tmp_path / "run-8002").symlink_to(tmp_path / "gone")
    assert [stop.address(8000), stop.address(8001)] == ["http://127.0.0.1:8265", "http://127.0.0.1:8266"]
    with pytest.raises(SettingsError, match=r"no application of this checkout runs on port 8002; running: http.port=8000, 8001"):
        stop.address(8002)


def test_nothing_to_stop_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(serve_run, "FILES", tmp_path)
    assert stop.main(["preset=nano-cpu", "http.port=8001"]) == 1
    assert capsys.readouterr().err == "error: no application of this checkout runs on port 8001\n"
