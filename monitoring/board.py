"""The parts of a dashboard, apart from how they are shown: `grafana` turns them into JSON, `report` draws them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from monitoring.queries import VARIABLES

COLUMNS = 24


@dataclass(frozen=True)
class Query:
    """One PromQL expression; `legend` is Grafana's template for the names of its series, `{{label}}` or fixed."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One panel. `unit` is Grafana's name of a unit.

    `empty` is shown where there is no data and says what that means; `well` says that no data is a good sign. `needs` names what
    the data needs beside the application; it is empty where the application alone is enough. At the values `warn` and `bad` a
    number changes its colour: upwards, or downwards where `bad` is below `warn`.
    """

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat"] = "timeseries"
    empty: str = "no requests yet"
    well: bool = False
    needs: str = ""
    stacked: bool = False
    warn: float | None = None
    bad: float | None = None


@dataclass(frozen=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]

    @property
    def widths(self) -> list[int]:
        """The widths of the panels in columns. They fill lines of `COLUMNS`, with six numbers or one to four graphs to a line."""
        if self.panels[0].kind == "stat":
            return [COLUMNS // 6] * len(self.panels)
        lines = {1: [1], 2: [2], 3: [3], 4: [4], 5: [3, 2], 6: [3, 3]}[len(self.panels)]
        return [COLUMNS // line for line in lines for _ in range(line)]


@dataclass(frozen=True)
class Board:
    """One dashboard. `question` is what it answers."""

    uid: str
    title: str
    question: str
    rows: tuple[Row, ...]

    @property
    def panels(self) -> Iterator[Panel]:
        """All panels, in order."""
        return (panel for row in self.rows for panel in row.panels)

    @property
    def variables(self) -> list[str]:
        """The variables that its queries use."""
        text = " ".join(query.expr for panel in self.panels for query in panel.queries)
        return [name for name in VARIABLES if f"${name}" in text]


def stat(title: str, description: str, unit: str, expr: str, **options: object) -> Panel:
    """Return a panel with one number."""
    return Panel(title, description, unit, (Query(expr, title),), kind="stat", **options)  # type: ignore[arg-type]


def graph(title: str, description: str, unit: str, *queries: tuple[str, str], **options: object) -> Panel:
    """Return a panel with lines over time, from pairs of expression and legend."""
    return Panel(title, description, unit, tuple(Query(*query) for query in queries), **options)  # type: ignore[arg-type]
