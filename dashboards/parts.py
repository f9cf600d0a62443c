"""What the dashboards share: variables, panels with title, description and unit, links, and how they become JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from grafana_foundation_sdk.builders import common as shared
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import stat, table, timeseries
from grafana_foundation_sdk.builders.prometheus import Dataquery as PromQuery
from grafana_foundation_sdk.builders.tempo import Dataquery as TempoQuery
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, tempo, units
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

PROMETHEUS: Final = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
TEMPO: Final = common.DataSourceRef(type_val="tempo", uid="${tempo}")
JAEGER: Final = common.DataSourceRef(type_val="jaeger", uid="${jaeger}")

TAG: Final = "runspan"
WIDTH: Final = 24
"""Columns of Grafana's grid."""

SECONDS: Final = units.Seconds
COUNT: Final = units.Short
PER_MINUTE: Final = "cpm"
PER_SECOND: Final = units.CountsPerSecond
BYTES: Final = units.BytesIEC
SHARE: Final = units.PercentUnit
DOLLARS: Final = units.Dollars

OVERVIEW: Final = (
    "/d/runspan-overview?var-workflow=${__value.raw:percentencode}&${datasource:queryparam}&${__url_time_range}"
)
LISTED: Final = "${runspan_url}/?workflowId=${__value.raw:percentencode}"
"""A cell that is a workflow's id leads to its runs: counted, and one by one."""

RUN_PAGE: Final = '${runspan_url}/runs/${__data.fields["runspan.run.id"]:percentencode}'
DOCUMENT: Final = '${runspan_url}/api/v1/runs/${__data.fields["runspan.run.id"]:percentencode}'
DRILL_DOWN: Final = (
    "/d/runspan-run?var-trace_id=${__data.fields.traceIdHidden}"
    "&${tempo:queryparam}&${runspan_url:queryparam}&${__url_time_range}"
)
"""With the time of the table: a run that is found there is found by the searches of the drill-down."""


# Variables.


def datasource_variable(name: str, kind: str, label: str, description: str) -> build.DatasourceVariable:
    """Which data source of a kind the panels ask."""
    return build.DatasourceVariable(name).type(kind).label(label).description(description)


def metric_variable(name: str, label: str, query: str, description: str) -> build.QueryVariable:
    """Values of a label, several at a time; All stands for everything, series without the label too."""
    return (
        build.QueryVariable(name)
        .label(label)
        .description(description)
        .datasource(PROMETHEUS)
        .query(query)
        .definition(query)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(model.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def text_variable(name: str, label: str, default: str, description: str) -> build.TextBoxVariable:
    """A text that people type or that a link carries."""
    return (
        build.TextBoxVariable(name)
        .label(label)
        .description(description)
        .default_value(default)
        .current(model.VariableOption(selected=True, text=default, value=default))
    )


def prometheus_variable() -> build.DatasourceVariable:
    return datasource_variable(
        "datasource", "prometheus", "Prometheus", "The Prometheus that scrapes the Collector and runspan."
    )


def tempo_variable() -> build.DatasourceVariable:
    return datasource_variable("tempo", "tempo", "Tempo", "The Tempo that keeps the runs' traces.")


def runspan_variable() -> build.TextBoxVariable:
    return text_variable(
        "runspan_url",
        "runspan",
        "http://127.0.0.1:8321",
        "Where a browser reaches runspan, for links to run documents and run pages.",
    )


def run_variables() -> list[build.QueryVariable]:
    """The environment and the workflows that are shown."""
    runs = "runspan_runs_total"
    return [
        metric_variable(
            "environment",
            "Environment",
            f"label_values({runs}, deployment_environment_name)",
            "deployment.environment.name of the exporter's resource.",
        ),
        metric_variable(
            "workflow",
            "Workflow",
            f'label_values({runs}{{deployment_environment_name=~"$environment"}}, runspan_workflow_id)',
            "Workflows whose runs are shown.",
        ),
    ]


# Queries.


def prom(expr: str, legend: str = "__auto", *, exemplars: bool = False) -> PromQuery:
    """A query over the time of the panel. exemplars: points that lead to the trace of one run."""
    query = PromQuery().expr(expr).legend_format(legend).range().datasource(PROMETHEUS)
    return query.exemplar(True) if exemplars else query


def prom_now(expr: str, legend: str = "__auto", *, as_table: bool = False) -> PromQuery:
    """A query at the end of the panel's time. as_table: labels become columns."""
    shape = PromQueryFormat.TABLE if as_table else PromQueryFormat.TIME_SERIES
    return PromQuery().expr(expr).legend_format(legend).instant().format(shape).datasource(PROMETHEUS)


def spans(query: str, limit: int = 50) -> TempoQuery:
    """A TraceQL search whose rows are spans."""
    return (
        TempoQuery()
        .query_type("traceql")
        .query(query)
        .table_type(tempo.SearchTableType.SPANS)
        .limit(limit)
        .spss(100)
        .datasource(TEMPO)
    )


# Panels.


Panel = Any
"""A builder of a panel; the SDK's have no type in common that can be configured."""


def number(
    title: str,
    about: str,
    unit: str,
    *exprs: str | tuple[str, str],
    empty: str,
    span: int = 4,
    decimals: int | None = None,
) -> Panel:
    """One number for the whole time of the dashboard, or several, each with its name. empty: two words or three."""
    panel = titled(stat.Panel(), title, about, unit, PROMETHEUS, empty=empty, height=4, span=span)
    with_targets(panel, [prom_now(expr) if isinstance(expr, str) else prom_now(*expr) for expr in exprs])
    panel.graph_mode(common.BigValueGraphMode.NONE).color_mode(common.BigValueColorMode.VALUE)
    panel.color_scheme(build.FieldColor().mode(model.FieldColorModeId.FIXED).fixed_color("text"))
    panel.reduce_options(shared.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    return panel if decimals is None else panel.decimals(decimals)


def judged(panel: Panel, *steps: tuple[float | None, str]) -> Panel:
    """A number whose colour judges it from these values on; the first has none and stands for all below."""
    panel.color_scheme(build.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
    thresholds = [model.Threshold(value=at, color=color) for at, color in steps]
    return panel.thresholds(build.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(thresholds))


def graph(title: str, about: str, unit: str, *targets: PromQuery, empty: str, stacked: bool = False) -> Panel:
    """Lines over time; stacked: areas that add up."""
    panel = titled(timeseries.Panel(), title, about, unit, PROMETHEUS, empty=empty)
    panel.fill_opacity(25 if stacked else 8).show_points(common.VisibilityMode.AUTO).line_width(1)
    panel.legend(
        shared.VizLegendOptions()
        .display_mode(common.LegendDisplayMode.LIST)
        .placement(common.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    panel.tooltip(shared.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING))
    if stacked:
        panel.stacking(shared.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    return with_targets(panel, targets)


def rows(
    title: str, about: str, unit: str, *targets: Any, empty: str, source: common.DataSourceRef = PROMETHEUS
) -> Panel:
    """A table. Its empty cells stay empty; ``empty`` stands in its place when it has no row."""
    panel = titled(table.Panel(), title, about, unit, source, empty=empty, height=9, span=12)
    panel.override_by_regexp(".*", [value("noValue", "")])
    return with_targets(panel.cell_height(common.TableCellHeight.SM), targets)


def ranked(title: str, about: str, unit: str, expr: str, columns: dict[str, str], heading: str, *, empty: str) -> Panel:
    """A table of the largest values. columns: labels and their headings. heading: that of the last column."""
    return compared(title, about, columns, (heading, unit, expr), empty=empty)


def compared(
    title: str, about: str, columns: dict[str, str], *values: tuple[str, str, str], empty: str, links: str = LISTED
) -> Panel:
    """A table with one row for each combination of labels, largest first.

    columns: labels and their headings. values: heading, unit and expression of each column with numbers, and the first
    decides the order. links: where a workflow leads, beside the overview.
    """
    panel = rows(title, about, values[0][1], *[prom_now(expr, as_table=True) for _, _, expr in values], empty=empty)
    if len(values) > 1:
        panel.with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
    # Grafana names the values of several queries after these.
    names = (
        [f"Value #{letter}" for letter, _ in zip("ABCDEFGH", values, strict=False)] if len(values) > 1 else ["Value"]
    )
    headings = {**columns, **{name: heading for name, (heading, _, _) in zip(names, values, strict=True)}}
    organized(panel, headings, ["Time"], headings)
    for heading, unit, _ in values[1:]:
        panel.override_by_name(heading, [value("unit", unit)])
    if "runspan_workflow_id" in columns:
        where = (("Overview of this workflow", OVERVIEW, False), ("Runs in runspan", links, True))
        found = [{"title": name, "url": url, "targetBlank": blank} for name, url, blank in where]
        panel.override_by_name(columns["runspan_workflow_id"], [value("links", found)])
    return panel.sort_by([shared.TableSortByFieldState().display_name(values[0][0]).desc(True)])


def organized(
    panel: Panel, first: Iterable[str], hidden: Iterable[str], headings: Mapping[str, str] | None = None
) -> Panel:
    """A table whose columns begin with these, in this order, and without those; headings: what some are called."""
    options = {
        "excludeByName": dict.fromkeys(hidden, True),
        "indexByName": {name: place for place, name in enumerate(first)},
        "renameByName": dict(headings or {}),
    }
    return panel.with_transformation(model.DataTransformerConfig(id_val="organize", options=options))


FIELD_NAMES: Final = {
    "time": ("time", "Start time"),
    "service": ("traceService", "Trace Service"),
    "root": ("traceName", "Trace Name"),
    "span": ("spanID", "Span ID"),
}
"""Columns of Tempo's tables that are not attributes: their names, and how the data source shows them."""


def span_rows(title: str, about: str, query: str, limit: int = 50, hidden: Iterable[str] = (), *, empty: str) -> Panel:
    """A table of spans, newest first. Run ids lead to the drill-down, the document and the run's page."""
    panel = rows(title, about, units.NoUnit, spans(query, limit), empty=empty, source=TEMPO).span(WIDTH)
    first = ("runspan.workflow.id", "name", "runspan.step.id", "runspan.run.status", "runspan.step.status")
    organized(
        panel,
        [*FIELD_NAMES["time"], *first, "runspan.run.id"],
        [*FIELD_NAMES["service"], *FIELD_NAMES["root"], *FIELD_NAMES["span"], *hidden],
    )
    panel.override_by_name("runspan.run.id", [value("links", run_links())])
    panel.override_by_regexp("^[dD]uration$", [value("unit", units.Nanoseconds)])
    for name in ("runspan.cost.usd", "runspan.run.cost_usd"):
        panel.override_by_name(name, [value("unit", DOLLARS), value("decimals", 4)])
    for name in ("runspan.run.status", "runspan.step.status", "runspan.attempt.status"):
        cell = {"type": "color-text"}
        panel.override_by_name(name, [value("mappings", status_colors()), value("custom.cellOptions", cell)])
    return panel


def run_links() -> list[dict[str, object]]:
    """Where a run id leads: the drill-down, the exact document, runspan's own page."""
    links = (("Trace and steps", DRILL_DOWN), ("Run document (JSON)", DOCUMENT), ("Run page", RUN_PAGE))
    return [{"title": title, "url": url, "targetBlank": url != DRILL_DOWN} for title, url in links]


STATUS_COLORS: Final = {
    "completed": "green",
    "failed": "red",
    "timed_out": "orange",
    "cancelled": "purple",
    "suspended": "yellow",
    "retrying": "yellow",
    "running": "blue",
    "pending": "light-blue",
    "skipped": "text",
}


def status_colors() -> list[dict[str, object]]:
    """A status in its colour; the word stays, so the colour never tells alone."""
    return [{"type": "value", "options": {status: {"color": color} for status, color in STATUS_COLORS.items()}}]


def colored(panel: Panel) -> Panel:
    """Series that are named after a status in its colour."""
    for status, color in STATUS_COLORS.items():
        panel.override_by_name(status, [value("color", {"mode": "fixed", "fixedColor": color})])
    return panel


def titled(
    panel: Panel,
    title: str,
    about: str,
    unit: str,
    source: common.DataSourceRef,
    *,
    empty: str,
    height: int = 8,
    span: int = 12,
) -> Panel:
    """A panel with what every panel has. empty: what it means when there is no data. height, span: rows and columns of
    the grid."""
    panel.title(title).description(about).unit(unit).datasource(source).height(height).span(span)
    return panel.no_value(empty)


def linked(panel: Panel, title: str, path: str) -> Panel:
    """A panel whose heading leads to a page of runspan."""
    link = build.DashboardLink(title).type(model.DashboardLinkType.LINK).url("${runspan_url}" + path).target_blank(True)
    return panel.links([link])


def with_targets(panel: Panel, targets: Iterable[Any]) -> Panel:
    for letter, target in zip("ABCDEFGH", targets, strict=False):
        panel.with_target(target.ref_id(letter))
    return panel


def value(name: str, what: object) -> model.DynamicConfigValue:
    """One setting of an override."""
    return model.DynamicConfigValue(id_val=name, value=what)


# The dashboard.


def new_dashboard(uid: str, title: str, about: str, *, since: str = "now-6h") -> build.Dashboard:
    """An empty dashboard that nobody edits in Grafana; the others are one click away."""
    return (
        build.Dashboard(title)
        .uid(uid)
        .description(about)
        .tags([TAG])
        .readonly()
        .time(since, "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(
            build.DashboardLink("runspan")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .keep_time(True)
            .include_vars(True)
        )
    )


def filled(dashboard: build.Dashboard, sections: Iterable[tuple[str, list[Panel]]]) -> build.Dashboard:
    """The dashboard with its panels, section by section, left to right and top to bottom."""
    identity = 0
    for title, panels in sections:
        dashboard.with_row(build.Row(title))
        for panel in panels:
            identity += 1
            dashboard.with_panel(panel.id(identity))
    return dashboard


def rendered(dashboard: build.Dashboard) -> str:
    """The JSON that Grafana loads."""
    return json.dumps(dashboard.build(), cls=JSONEncoder, indent=2, ensure_ascii=False) + "\n"
