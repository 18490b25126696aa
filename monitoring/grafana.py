"""Dashboards as Grafana's JSON, made with its own SDK (grafana-foundation-sdk, schema of Grafana 11)."""

import json
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

from monitoring.board import Board, Panel
from monitoring.boards.catalogue import ANNOTATIONS, BOARDS
from monitoring.queries import VARIABLES

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHT, STAT_HEIGHT = 8, 4


def render(board: Board) -> str:
    """Return a board as JSON text for Grafana."""
    built = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.question)
        .tags(["satori"])
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("10s")
        .link(dashboard.DashboardLink("Satori").type(models.DashboardLinkType.DASHBOARDS).tags(["satori"]).keep_time(True))
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    for name in board.variables:
        built = built.with_variable(_variable(name))
    for name, (expr, color) in ANNOTATIONS.items():
        built = built.annotation(
            dashboard.AnnotationQuery().name(name).datasource(SOURCE).enable(True).icon_color(color).expr(expr)
        )
    for row in board.rows:
        built = built.with_row(dashboard.Row(row.title))
        for panel, width in zip(row.panels, row.widths, strict=True):
            built = built.with_panel(_panel(panel, width))
    return json.dumps(_numbered(json.loads(JSONEncoder(sort_keys=True).encode(built.build()))), indent=1, sort_keys=True) + "\n"


def _numbered(model: dict[str, Any]) -> dict[str, Any]:
    """Return the model with its panels numbered, as Grafana would number them on the first save."""
    for number, panel in enumerate(model["panels"], 1):
        panel["id"] = number
    return model


def _variable(name: str) -> dashboard.QueryVariable:
    before = [f'{other}=~"${other}"' for other in VARIABLES[: VARIABLES.index(name)] if other in ("model", "deployment", "node")]
    selector = ", ".join(['job="satori"', *before])
    return (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(SOURCE)
        .query(f"label_values(up{{{selector}}}, {name})")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )


def _panel(panel: Panel, width: int) -> Any:
    built: Any = _graph(panel) if panel.kind == "timeseries" else _stat()
    needs = f" Needs {panel.needs}." if panel.needs else ""
    built = (
        built.title(panel.title)
        .description(panel.description + needs)
        .datasource(SOURCE)
        .unit(panel.unit)
        .no_value(panel.empty)
        .span(width)
        .height(HEIGHT if panel.kind == "timeseries" else STAT_HEIGHT)
    )
    if panel.warn is not None and panel.bad is not None:
        built = built.thresholds(
            dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(_steps(panel.warn, panel.bad))
        )
    for place, query in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + place))
        built = built.with_target(target.range() if panel.kind == "timeseries" else target.instant())
    return built


def _steps(warn: float, bad: float) -> list[models.Threshold]:
    if bad < warn:  # lower is worse
        return [
            models.Threshold(value=None, color="red"),
            models.Threshold(value=bad, color="orange"),
            models.Threshold(value=warn, color="green"),
        ]
    return [
        models.Threshold(value=None, color="green"),
        models.Threshold(value=warn, color="orange"),
        models.Threshold(value=bad, color="red"),
    ]


def _stat() -> stat.Panel:
    return (
        stat.Panel()
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(common_models.BigValueGraphMode.NONE)
    )


def _graph(panel: Panel) -> timeseries.Panel:
    built = (
        timeseries.Panel()
        .min(0)
        .line_width(1)
        .fill_opacity(10)
        .show_points(common_models.VisibilityMode.NEVER)
        .tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
        .legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
    )
    if panel.stacked:
        built = built.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL)).fill_opacity(40)
    return built


def rendered() -> dict[str, str]:
    """Return all boards' JSON by file name."""
    return {f"{board.uid}.json": render(board) for board in BOARDS}
