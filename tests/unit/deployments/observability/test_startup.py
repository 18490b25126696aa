"""Start-up phases: printed when they are done, told while they last."""

import pytest

from deployments.observability import metrics
from deployments.observability.startup import Phases


def test_phases_are_noted_as_they_begin_and_their_progress_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    noted: list[str] = []
    phases = Phases("engine", noted.append)
    with phases("download"):
        phases.report("1.00 of 2.00 GB from the hub")
    with phases("load model"):
        pass
    assert noted == ["download", "download: 1.00 of 2.00 GB from the hub", "load model"]
    lines = capfd.readouterr().out.splitlines()
    assert [line.rsplit(" ", 2)[0] for line in lines] == [
        "satori-phase engine: download: 1.00 of 2.00 GB from the hub",
        "satori-phase engine: download",
        "satori-phase engine: load model",
    ]
    phases_kept = set(metrics.STARTUP._series)
    assert ("download",) in phases_kept
    assert ("download: 1.00 of 2.00 GB from the hub",) not in phases_kept
