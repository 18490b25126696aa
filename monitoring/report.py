"""`make report`: draws the dashboards from a Prometheus, for people without Grafana: a PNG for each board, and a page with all.

    python -m monitoring.report [--prometheus http://127.0.0.1:9090] [--minutes 60] [--out .run/report]

Panels, queries, units and empty states are the same as Grafana's. Empty panels that need nothing beside the application are named,
and then the exit status is 1.
"""

import argparse
import html
import math
import re
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.dates import DateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from monitoring.board import COLUMNS, Board, Panel, Query
from monitoring.boards.catalogue import BOARDS
from monitoring.queries import VARIABLES
from monitoring.serve import get

OUT = Path(__file__).parent.parent / ".run" / "report"
SCRAPE_S, POINTS, SHORT_S = 5, 180, 900
WIDTH, GRAPH, STAT, HEADING = 18.0, 8, 4, 2
GOOD, WARN, BAD, PLAIN = "#1a7f37", "#bf6a02", "#cf222e", "#24292f"
Series = tuple[str, list[float], list[float]]


class Source:
    """The last `seconds` of a Prometheus."""

    def __init__(self, url: str, seconds: float) -> None:
        self._url, self._seconds = url.rstrip("/"), seconds
        self._end = time.time()
        self._step = max(1.0, seconds / POINTS)

    @property
    def moments(self) -> list[float]:
        """The times for which values are queried."""
        return [self._end - self._seconds + place * self._step for place in range(int(self._seconds / self._step) + 1)]

    def _fill(self, expr: str) -> str:
        """Return an expression as Grafana sends it with all variables set to "All"."""
        window = f"{math.ceil(max(self._step + SCRAPE_S, 4 * SCRAPE_S))}s"
        return re.sub(rf"\$({'|'.join(VARIABLES)})\b", ".*", expr.replace("$__rate_interval", window))

    def number(self, query: Query) -> float | None:
        """Return the one value of an expression, or None where there is none."""
        found = get(self._url, "query", query=self._fill(query.expr), time=self._end)["result"]
        value = float(found[0]["value"][1]) if found else math.nan
        return value if math.isfinite(value) else None

    def series(self, query: Query) -> list[Series]:
        """Return the series of an expression: name, times, values."""
        asked = {"query": self._fill(query.expr), "start": self._end - self._seconds, "end": self._end, "step": self._step}
        made = []
        for one in get(self._url, "query_range", **asked)["result"]:
            name = query.legend
            for label in re.findall(r"{{(\w+)}}", name):
                name = name.replace(f"{{{{{label}}}}}", one["metric"].get(label, ""))
            made.append((name, [float(at) for at, _ in one["values"]], [float(value) for _, value in one["values"]]))
        return made


def written(unit: str) -> Callable[[float], str]:
    """Return a function that writes values of a unit."""

    def scaled(value: float, steps: list[tuple[float, str]], digits: int = 3) -> str:
        for size, name in steps:
            if abs(value) >= size:
                return f"{value / size:.{digits}g}{name}"
        return f"{value:.{digits}g}{steps[-1][1] if steps[-1][0] == 1 else ''}"

    match unit:
        case "s":
            return lambda value: (
                scaled(value, [(86400, " d"), (3600, " h"), (60, " min"), (1, " s"), (1e-3, " ms"), (1e-6, " µs")])
                if value
                else "0"
            )
        case "percentunit":
            return lambda value: f"{value * 100:.3g} %" if abs(value) < 10 else f"{value * 100:,.0f} %"
        case "percent":
            return lambda value: f"{value:.3g} %"
        case "bytes":
            return lambda value: scaled(value, [(2**30, " GiB"), (2**20, " MiB"), (2**10, " KiB"), (1, " B")])
        case "reqps":
            return lambda value: f"{value:.3g}/s"
        case _:
            return lambda value: scaled(value, [(1e6, " M"), (1e4 / 10, " k"), (1, "")])


def colour(panel: Panel, value: float) -> str:
    """Return the colour of a number, by the panel's limits."""
    if panel.warn is None or panel.bad is None:
        return PLAIN
    if panel.bad < panel.warn:
        return GOOD if value >= panel.warn else WARN if value >= panel.bad else BAD
    return BAD if value >= panel.bad else WARN if value >= panel.warn else GOOD


def draw_stat(axes: Axes, panel: Panel, source: Source) -> bool:
    """Draw a number; return whether there is one."""
    value = source.number(panel.queries[0])
    axes.set_xticks([])
    axes.set_yticks([])
    text, size = (panel.empty, 11) if value is None else (written(panel.unit)(value), 22)
    shade = "#6e7781" if value is None else colour(panel, value)
    axes.text(0.5, 0.45, text, ha="center", va="center", fontsize=size, color=shade, transform=axes.transAxes)
    return value is not None


def draw_graph(axes: Axes, panel: Panel, source: Source) -> bool:
    """Draw lines over time; return whether there are any."""
    lines = [line for query in panel.queries for line in source.series(query) if any(map(math.isfinite, line[2]))]
    if not lines:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, panel.empty, ha="center", va="center", fontsize=11, color="#6e7781", transform=axes.transAxes)
        return False
    if panel.stacked:
        _stack(axes, lines, source.moments)
    else:
        for line in lines:
            axes.plot([_day(at) for at in source.moments], _level(line, source.moments), label=line[0], linewidth=1.3)
    axes.set_xlim(_day(source.moments[0]), _day(source.moments[-1]))
    axes.set_ylim(0, None if any(value > 0 for _, _, values in lines for value in values) else 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(panel.unit)(value)))
    if panel.unit == "bytes":
        axes.yaxis.set_major_locator(MultipleLocator(2 ** math.floor(math.log2(axes.get_ylim()[1] / 4))))
    short = source.moments[-1] - source.moments[0] < SHORT_S
    axes.xaxis.set_major_formatter(DateFormatter("%H:%M:%S" if short else "%H:%M"))  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(color="#d0d7de", linewidth=0.5)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=7.5, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.09), frameon=False)
    return True


def _level(line: Series, moments: list[float]) -> list[float]:
    """Return a line's values at these times, NaN where it has none."""
    first, step = moments[0], moments[1] - moments[0]
    _, times, values = line
    known = {round((at - first) / step): value for at, value in zip(times, values, strict=True)}
    return [known.get(place, math.nan) for place in range(len(moments))]


def _stack(axes: Axes, lines: list[Series], moments: list[float]) -> None:
    """Draw lines as stacked areas; a line without a value adds nothing."""
    levels = [[value if math.isfinite(value) else 0.0 for value in _level(line, moments)] for line in lines]
    axes.stackplot([_day(at) for at in moments], *levels, labels=[name for name, _, _ in lines], alpha=0.75)


def draw(board: Board, source: Source) -> tuple[Figure, list[str]]:
    """Return a board as a figure, and the titles of panels that are empty although they should not be."""
    places = list(_places(board))
    height = max(y + h for _, _, y, _, h in places)
    figure = pyplot.figure(figsize=(WIDTH, height * 0.42), facecolor="white")
    top = height * 0.42
    figure.suptitle(f"{board.title}: {board.question}", x=0.02, y=1 - 0.12 / top, ha="left", va="top", fontsize=15, weight="bold")
    grid = GridSpec(
        height, COLUMNS, figure=figure, left=0.045, right=0.99, top=1 - 0.35 / top, bottom=0.25 / top, wspace=4.5, hspace=0.4
    )
    empty = []
    for what, x, y, w, h in places:
        if isinstance(what, str):
            axes = figure.add_subplot(grid[y : y + h, :])
            axes.axis("off")
            axes.text(-0.02, 0.55, what, fontsize=12, weight="bold", color="#57606a", transform=axes.transAxes)
            continue
        axes = figure.add_subplot(grid[y : y + h - (2 if what.kind == "timeseries" else 1), x : x + w])
        axes.set_title(what.title, fontsize=10, loc="left", color=PLAIN)
        for spine in axes.spines.values():
            spine.set_color("#d0d7de")
        there = (draw_stat if what.kind == "stat" else draw_graph)(axes, what, source)
        if not there and not what.needs and not what.well:
            empty.append(f"{board.title}: {what.title}")
    return figure, empty


def _places(board: Board) -> Any:
    """Yield each heading or panel and its place (x, y, width, height), as Grafana lays them out."""
    y = 1
    for row in board.rows:
        yield row.title, 0, y, COLUMNS, HEADING
        y, x, tall = y + HEADING, 0, 0
        for panel, width in zip(row.panels, row.widths, strict=True):
            h = GRAPH if panel.kind == "timeseries" else STAT
            if x + width > COLUMNS:
                x, y, tall = 0, y + tall, 0
            yield panel, x, y, width, h
            x, tall = x + width, max(tall, h)
        y += tall


def _day(at: float) -> Any:
    """Return a time in matplotlib's unit."""
    return date2num(datetime.fromtimestamp(at))  # type: ignore[no-untyped-call]


def page(boards: list[Board]) -> str:
    """Return the page with all boards."""
    parts = [
        f'<h2 id="{board.uid}">{html.escape(board.title)}</h2>\n<img src="{board.uid}.png" alt="{html.escape(board.question)}">'
        for board in boards
    ]
    style = "body{font-family:sans-serif;margin:2em}img{max-width:100%}"
    title = f"satori-serve, {time.strftime('%Y-%m-%d %H:%M')}"
    return (
        f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{style}</style><h1>{title}</h1>\n"
        + "\n".join(parts)
        + "\n"
    )


def main(arguments: list[str]) -> int:
    """Draw all boards; return the exit status."""
    parser = argparse.ArgumentParser(description="Draw the dashboards from a Prometheus.")
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    source = Source(options.prometheus, options.minutes * 60)
    empty: list[str] = []
    try:
        for board in BOARDS:
            figure, missing = draw(board, source)
            figure.savefig(options.out / f"{board.uid}.png", dpi=80)
            pyplot.close(figure)
            empty += missing
    except OSError as error:
        print(f"error: {options.prometheus} does not answer ({error}); start it with make monitoring", file=sys.stderr)
        return 1
    (options.out / "index.html").write_text(page(list(BOARDS)))
    print(f"{options.out / 'index.html'}")
    for panel in empty:
        print(f"empty: {panel}", file=sys.stderr)
    return 1 if empty else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
