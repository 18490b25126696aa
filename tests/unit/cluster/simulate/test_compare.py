"""The comparison of simulator and reality: what it calibrates, and what it prints, on records made up here."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from cluster.simulate.compare import ARGUMENTS, PHASES, Record, arrivals, calibrate, main, sequence, starts
from cluster.simulate.replica_model import ReplicaModel

STEP_S, SLOPE_S, SHARING = 0.002, 0.0002, (1.0, 1.3, 1.9)


def record() -> Record:
    """Return a load of which replicas reported what a model with these figures would."""
    samples = []
    for second in range(180):
        replicas = 1 + second // 60
        running = replicas * (1 + second % 8)
        step_s = (STEP_S + SLOPE_S * running / replicas) * SHARING[replicas - 1]
        samples.append((float(second), replicas, replicas, replicas, float(running), running / step_s))
    rows = [tuple(row) for row in arrivals(1).tolist()]
    return Record(list(ARGUMENTS), sum(s for s, _ in PHASES), rows, [(0.1, 0.003)] * len(rows), samples, [15.0, 24.0, 26.0], 0.5)


def test_the_model_that_made_the_reports_is_found() -> None:
    model = calibrate(record(), ReplicaModel(max_num_seqs=8))
    assert (model.step_s, model.step_per_request_s) == (pytest.approx(STEP_S), pytest.approx(SLOPE_S))
    assert model.sharing == pytest.approx(SHARING)
    assert (model.startup_s, model.max_num_seqs) == (26.0, 8), "no start was seen: what the policy learned last"


def test_starts_are_from_wanted_to_up() -> None:
    seen = [(0.0, 1, 1), (2.0, 3, 1), (10.0, 3, 2), (12.0, 2, 2), (14.0, 3, 2), (20.0, 3, 3)]
    found = starts(replace(record(), samples=[(*sample, 1, 0.0, 0.0) for sample in seen]))
    assert found == [8.0, 6.0], "one that was called off does not count"


def test_replicas_that_share_cores_are_slower_together() -> None:
    model = replace(ReplicaModel(), sharing=SHARING)
    alone, together = (model.step(np.array(running), np.zeros(3)) for running in ([10.0, 0.0, 0.0], [10.0, 4.0, 1.0]))
    assert together[0] == pytest.approx(1.9 * alone[0])


def test_a_sequence_is_its_changes() -> None:
    assert sequence([(0.0, 1), (2.0, 1), (4.0, 3), (6.0, 3), (8.0, 1)]) == "1 (0 s) -> 3 (4 s) -> 1 (8 s)"


def test_reality_and_simulation_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "first.json").write_text(json.dumps(asdict(record())))
    main(["check", str(tmp_path / "first.json")])
    printed = capsys.readouterr().out
    assert "| replicas up | 1 (0 s) -> 2 (60 s) -> 3 (120 s) | 1 (0 s)" in printed
    assert "| mean queue time s | 0.50 | " in printed
