"""Growth: what is measured of processes and folders, and when it is too much."""

import os
from pathlib import Path

import psutil
import pytest

from cluster.bench import growth
from cluster.bench.growth import JUDGED_S, LIMITS, SETTLED_S, Series, Watch, table
from cluster.bench.stack import Stack

STEP_S = 60


def series(per_hour: float, seconds: float, measure: str = "memory", role: str = "ingress", pid: int = 1) -> Series:
    """Return a measure that grows fast until it has settled, and then by so much an hour, with noise."""
    made = Series(role, pid, measure)
    for number, at in enumerate(range(0, int(seconds) + 1, STEP_S)):
        made.times.append(at)
        settled = max(0.0, at - SETTLED_S)
        made.values.append(100 + min(at, SETTLED_S) + per_hour * settled / 3600 + (50 if number % 10 == 9 else 0))
    return made


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_growth_is_judged_after_the_start_and_outliers_do_not_count(factor: float) -> None:
    one = series(factor * LIMITS["memory"], 3600)
    assert one.per_hour == pytest.approx(factor * LIMITS["memory"], rel=0.05)
    assert one.grows == (factor > 1)


def test_what_was_seen_for_a_short_time_is_not_judged() -> None:
    assert series(1000, SETTLED_S + JUDGED_S - STEP_S).per_hour is None
    assert not series(1000, SETTLED_S + JUDGED_S - STEP_S).grows
    assert series(1000, SETTLED_S + JUDGED_S).grows


def test_the_table_has_the_process_of_each_kind_that_was_seen_longest() -> None:
    text = table([series(0, 3600), series(0, 600, pid=2), series(6, 3600, "threads"), series(0, 3600, "disk", "/tmp", 0)])
    [tmp, ingress] = text.splitlines()[2:]
    assert ingress.startswith("| ingress | 2 | 100 → 700 (+0.0/h) |  | 100 → 705 (+6.0/h)")
    assert tmp.startswith("| /tmp | 1 |")
    assert tmp.endswith("| 100 → 700 (+0.0/h) |")


def test_a_process_and_a_folder_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").write_bytes(os.urandom(3 * growth.MIB))
    replies = {
        "/ready": '{"ingress": {"id": "abc", "states": 4}}',
        "/metrics/targets": '[{"targets": ["h:1"], "labels": {"deployment": "Ingress", "replica": "abc"}}]',
        "h:1/metrics": "# HELP x\nx 1\nsatori_asyncio_tasks 7.0\n",
    }
    monkeypatch.setattr(growth, "_get", lambda url: replies[url.removeprefix("http://")])
    watch = Watch(Stack("", psutil.Process()), [tmp_path])
    watch.sample()
    found = {(one.role, one.measure): one.values for one in watch.series}
    assert found[str(tmp_path), "disk"] == [pytest.approx(3, abs=0.1)]
    assert [found["ingress", name] for name in ("states", "tasks", "series")] == [[4], [7], [2]]
    mine = next(one for one in watch.series if one.pid == os.getpid() and one.measure == "memory")
    assert mine.values[0] > 1
