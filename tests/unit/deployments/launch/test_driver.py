"""`serve run` with fewer of Ray's processes: what Ray is asked to start. The end-to-end tests start it."""

from pathlib import Path
from typing import Any

import pytest
from ray._private import services
from ray._private.parameter import RayParams
from ray._private.ray_constants import PROCESS_TYPE_DASHBOARD, PROCESS_TYPE_LOG_MONITOR

from deployments.host.run import FOLDER, dashboard
from deployments.launch import driver


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that Ray starts, with the patches, which go with the test."""
    commands: list[list[str]] = []

    def start(command: list[str], process_type: str, **options: Any) -> None:
        commands.append(command)

    monkeypatch.setattr(services, "start_ray_process", start)
    monkeypatch.setattr(services, "start_api_server", lambda *values, **options: ("127.0.0.1:8266", values))
    monkeypatch.setattr(RayParams, "__init__", RayParams.__init__)
    driver.install()
    return commands


def test_of_the_dashboard_only_serves_api_is_left(started: list[list[str]]) -> None:
    services.start_ray_process(["dashboard"], PROCESS_TYPE_DASHBOARD, fate_share=True)
    services.start_ray_process(["monitor"], PROCESS_TYPE_LOG_MONITOR, fate_share=True)
    assert started == [["dashboard", "--modules-to-load=ServeHead"], ["monitor"]]


@pytest.mark.usefixtures("started")
def test_the_autoscaler_is_left_out() -> None:
    made = RayParams(num_cpus=3)
    assert (made.no_monitor, made.num_cpus) == (True, 3)


@pytest.mark.usefixtures("started")
def test_where_the_dashboard_is_can_be_read_in_the_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    assert services.start_api_server(True) == ("127.0.0.1:8266", (True,))
    monkeypatch.setenv(FOLDER, str(tmp_path))
    services.start_api_server(True)
    assert dashboard(tmp_path).read_text() == "http://127.0.0.1:8266"
