"""Dashboards: what is committed is what is generated, Grafana can read it, and every panel says what it shows."""

import json
import re
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from deployments.observability import metrics
from monitoring import generate, grafana
from monitoring.board import Panel
from monitoring.boards.catalogue import BOARDS

PANELS = [pytest.param(panel, id=f"{board.uid}: {panel.title}") for board in BOARDS for panel in board.panels]
EXPRESSIONS = sorted({query.expr for board in BOARDS for panel in board.panels for query in panel.queries})
UNITS = set("s short percentunit percent reqps bytes decmbytes watt celsius rotmhz none".split())


def test_what_is_committed_is_what_is_generated() -> None:
    made = generate.files()
    committed = {path for folder in ("grafana", "rules") for path in (generate.HERE / folder).iterdir()}
    assert committed == set(made), "python -m monitoring.generate"
    for path, text in made.items():
        assert path.read_text() == text, f"{path.name} is not what is generated: python -m monitoring.generate"


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_grafanas_own_types_read_a_board_without_a_loss(board: Any) -> None:
    """They are generated from Grafana's schema: a field that it does not know would be gone, a value of a wrong type refused."""
    given = json.loads(grafana.render(board))
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(given)))
    assert read == given


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_panels_lie_side_by_side(board: Any) -> None:
    given = json.loads(grafana.render(board))
    assert len({panel["id"] for panel in given["panels"]}) == len(given["panels"])
    cells: set[tuple[int, int]] = set()
    for panel in given["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        own = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not own & cells, panel["title"]
        cells |= own


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_what_it_shows(panel: Panel) -> None:
    assert panel.unit in UNITS
    assert panel.description.endswith(".")
    assert panel.empty
    assert panel.queries
    assert all(query.legend for query in panel.queries)
    assert panel.kind == "timeseries" or len(panel.queries) == 1


def counters(expr: str) -> list[tuple[str, str]]:
    """Return the counters of an expression, each after the function that it is given to."""
    return re.findall(r"(\w*\()?(?<![\w:])([a-zA-Z_:][\w:]*_(?:total|bucket|sum|count))\b(?=[{\[])", expr)


def quantiles(expr: str) -> list[str]:
    return re.findall(r"histogram_quantile\([\d.]+, (.*?)\[", expr)


def ours(expr: str) -> set[str]:
    """Return the names of the metrics of ours in an expression."""
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bsatori_\w+", expr)}


def test_counters_and_quantiles_are_recognised() -> None:
    assert counters('rate(satori_a_total[5m]) / sum(satori_b_count{x="y"})') == [
        ("rate(", "satori_a_total"),
        ("sum(", "satori_b_count"),
    ]
    assert quantiles("histogram_quantile(0.9, sum by (le) (rate(a_bucket{}[5m])))") == ["sum by (le) (rate(a_bucket{}"]
    assert sum(map(len, map(counters, EXPRESSIONS))) > 50
    assert sum(map(len, map(quantiles, EXPRESSIONS))) > 10


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_counters_are_rates_and_quantiles_are_of_histograms(expr: str) -> None:
    for before, name in counters(expr):
        assert before in ("rate(", "increase("), f"{name} grows for ever: only its rate says anything"
    for quantile in quantiles(expr):
        assert re.match(r"sum by \(le\b", quantile)
        assert "_bucket{" in quantile


def test_the_boards_ask_for_all_declared_metrics_and_for_no_others() -> None:
    asked = {name for expr in EXPRESSIONS for name in ours(expr)}
    assert asked == {metric.name for metric in metrics.ALL}
