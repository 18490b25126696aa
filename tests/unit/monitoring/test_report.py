"""How `make report` writes numbers and draws lines."""

import math

import pytest

from monitoring import report


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [
        ("percentunit", 0.9876, "98.8 %"),
        ("percentunit", -11.42, "-1,142 %"),
        ("s", 0.0123, "12.3 ms"),
        ("s", 0, "0"),
        ("s", 90, "1.5 min"),
        ("bytes", 3 * 2**30, "3 GiB"),
        ("reqps", 2.5, "2.5/s"),
        ("short", 4200, "4.2 k"),
        ("short", 0, "0"),
    ],
)
def test_numbers_are_written_for_people(unit: str, value: float, text: str) -> None:
    assert report.written(unit)(value) == text


def test_a_line_has_a_gap_where_it_has_no_value() -> None:
    moments = [100 + 1.3 * place for place in range(5)]
    level = report._level(("replicas", [100.0, 101.3, 105.2], [2.0, 1.0, 2.0]), moments)
    assert [level[0], level[1], level[4]] == [2, 1, 2]
    assert math.isnan(level[2])
    assert math.isnan(level[3])
