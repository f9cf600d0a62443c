"""``runspan stats``: statistics of many runs, as a table or JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

import click
import msgspec
from rich.text import Text

from runspan.cli import options
from runspan.cli.output import escape_control, new_table, print_table
from runspan.contracts import MAX_STATS_LIMIT, STATS_DIMENSIONS, StatsDimension, StatsGroup, StatsPage, StatsQuery
from runspan.model.timestamps import SECOND, UNITS, parse_ns, rfc3339

_SHOWN_BY_DEFAULT: Final = {"day": 30 * UNITS["d"], "hour": UNITS["d"]}
"""How far days and hours go back without ``--from``, in nanoseconds."""
_LONGEST_CELL: Final = 100
_LONG_UNITS: Final = (("d", 86_400), ("h", 3_600), ("min", 60))
"""Units of durations with their seconds; from two of one on, it is shown."""
_FAILURES: Final = ("failed", "timed_out")


class _Column(NamedTuple):
    heading: str
    cell: Callable[[StatsGroup], str]
    is_number: bool = False


@click.command()
@options.backend
@options.option(
    "--by",
    "group_by",
    type=click.Choice(STATS_DIMENSIONS),
    multiple=True,
    default=("workflow",),
    metavar="GROUP",
    help=f"What the runs are divided by: {', '.join(STATS_DIMENSIONS)}. Repeat it for several: --by day --by model. "
    "Model, step and error exclude each other, and so do day and hour.",
)
@options.workflow("Count")
@options.start_range(
    "Count",
    "in the hour of this time or later",
    "before the end of the hour before this time",
    show_default="all runs; by day 30d, by hour 24h",
)
@options.option(
    "--time-zone",
    default="UTC",
    metavar="NAME",
    help="Zone that days are of, as the IANA database calls it, such as Europe/Berlin.",
)
@options.count("--limit", least=1, most=MAX_STATS_LIMIT, default=100, help="Maximum number of groups.")
@options.as_json
def stats(
    backend: options.BackendOptions,
    group_by: tuple[StatsDimension, ...],
    workflow_id: str | None,
    since: int | None,
    until: int | None,
    time_zone: str,
    limit: int,
    as_json: bool,
) -> None:
    """Print how many runs there were, how long they took, what they cost, and how they failed.

    Each run counts once, as it is now, in the hour of UTC in which it started. The success rate is that of the runs
    that completed, failed or timed out. Percentiles are exact within 1 %. With --json, each line is one group, with the
    members that GET /api/v1/stats documents.

    Only the embedded store, or a server that has one, keeps statistics.

    \b
    Examples, the first: what did the agents spend today, by workflow?
      runspan stats --data ./data --from "$(date +%F)"
      runspan stats --data ./data --by day --by model --from 7d --time-zone Europe/Berlin
      runspan stats --data ./data --by error --workflow wf_xyz789 --from 24h
      runspan stats --backend http://127.0.0.1:8321 --by step --workflow wf_xyz789
      runspan stats --data ./data --json | jq -s 'map(.usage.costUsd) | add'
    """
    now = time.time_ns()
    reach = max((_SHOWN_BY_DEFAULT.get(group, 0) for group in group_by), default=0)
    if reach:
        until = now if until is None else until
        since = max(0, until - reach) if since is None else since
    query = StatsQuery(
        tenant=backend.tenant,
        workflow_id=workflow_id,
        since=since,
        until=until,
        group_by=tuple(dict.fromkeys(group_by)),
        time_zone=time_zone,
        limit=limit,
    )
    with closing(backend.open_reader()) as reader:
        page = reader.run_stats(query)
    for note in page.partial:
        click.echo(f"runspan: the statistics are incomplete: {escape_control(note)}", err=True)
    if as_json:
        for group in page.groups:
            click.echo(msgspec.json.encode(group))
    else:
        _print_groups(page, query)
    if page.has_more:
        click.echo(f"more groups than --limit {limit}, each smaller than these", err=True)


def _print_groups(page: StatsPage, query: StatsQuery) -> None:
    edges = ("the first run" if page.since is None else rfc3339(page.since), page.until and rfc3339(page.until))
    click.echo(f"runs from {edges[0]} to {edges[1] or 'the last one'}", err=True)
    if not page.groups:
        click.echo("no runs match", err=True)
        return
    columns = [*_columns(query)]
    table = new_table(
        *[column.heading for column in columns], right=[column.heading for column in columns if column.is_number]
    )
    for group in page.groups:
        table.add_row(*[Text(_bounded(column.cell(group))) for column in columns])
    print_table(table)


def _columns(query: StatsQuery) -> Sequence[_Column]:
    """Return the columns of a table: what each group is of, and its numbers."""
    found: list[_Column] = []
    if query.is_by_time:
        zone = ZoneInfo(query.time_zone)
        is_by_day = "day" in query.group_by
        found.append(
            _Column("DAY" if is_by_day else "HOUR", lambda group: _start(group, zone if is_by_day else ZoneInfo("UTC")))
        )
    if query.is_by_workflow:
        found.append(_Column("WORKFLOW", lambda group: group.workflow_id or "(none)"))
    return [*found, *_PART_COLUMNS[query.part], *(_NEWEST if query.part == "error" and not query.is_by_time else ())]


def _start(group: StatsGroup, zone: ZoneInfo) -> str:
    start = datetime.fromtimestamp((parse_ns(str(group.from_)) or 0) // SECOND, zone)
    return f"{start:%Y-%m-%d}" if start.hour == start.minute == 0 else f"{start:%Y-%m-%d %H:%M}"


def _bounded(text: str) -> str:
    cell = escape_control(text)
    return cell if len(cell) <= _LONGEST_CELL else cell[: _LONGEST_CELL - 1] + "…"


def _failures(group: StatsGroup) -> int:
    statuses: Any = group.statuses
    return sum(statuses.get(status, 0) for status in _FAILURES)


def _success_rate(group: StatsGroup) -> str:
    statuses: Any = group.statuses
    completed = statuses.get("completed", 0)
    decided = completed + _failures(group)
    return f"{100 * completed / decided:.1f} %" if decided else ""


def _milliseconds(value: float | None) -> str:
    if value is None:
        return ""
    if value < 1000:
        return f"{value:.0f} ms"
    seconds = value / 1000
    unit, length = next(((unit, length) for unit, length in _LONG_UNITS if seconds >= 2 * length), ("s", 1))
    return f"{seconds / length:.1f} {unit}"


def _number(member: str) -> Callable[[StatsGroup], str]:
    return lambda group: f"{getattr(group, member):,}"


def _duration(member: str) -> Callable[[StatsGroup], str]:
    return lambda group: _milliseconds(getattr(group.duration_ms, member)) if _has_durations(group) else ""


def _has_durations(group: StatsGroup) -> bool:
    return getattr(group.duration_ms, "count", 0) > 0


def _total(group: StatsGroup) -> str:
    durations: Any = group.duration_ms
    return _milliseconds(durations.mean * durations.count) if durations.count else ""


def _usage(member: str) -> Callable[[StatsGroup], str]:
    def cell(group: StatsGroup) -> str:
        usage: Any = group.usage
        return f"{getattr(usage, member):,}" if usage.steps else ""

    return cell


def _cost(group: StatsGroup) -> str:
    usage: Any = group.usage
    return f"${usage.cost_usd:,.4f}" if usage.steps else ""


def _newest(member: str) -> Callable[[StatsGroup], str]:
    return lambda group: getattr(group.newest_failure, member) if group.newest_failure else ""


_USAGE: Final = (
    _Column("INPUT TOKENS", _usage("input_tokens"), is_number=True),
    _Column("OUTPUT TOKENS", _usage("output_tokens"), is_number=True),
    _Column("COST", _cost, is_number=True),
)
_NEWEST: Final = (_Column("NEWEST RUN", _newest("id")), _Column("STARTED", _newest("time")))
_PART_COLUMNS: Final[dict[str, Sequence[_Column]]] = {
    "": (
        _Column("RUNS", _number("runs"), is_number=True),
        _Column("FAILED", lambda group: f"{_failures(group):,}", is_number=True),
        _Column("SUCCESS", _success_rate, is_number=True),
        _Column("P50", _duration("p50"), is_number=True),
        _Column("P95", _duration("p95"), is_number=True),
        *_USAGE,
    ),
    "model": (
        _Column("MODEL", lambda group: str(group.model)),
        _Column("STEPS", _usage("steps"), is_number=True),
        *_USAGE,
    ),
    "step": (
        _Column("STEP", lambda group: str(group.step)),
        _Column("TYPE", lambda group: str(group.step_type)),
        _Column("EXECUTIONS", _number("executions"), is_number=True),
        _Column("FAILED", _number("failed"), is_number=True),
        _Column("MEAN", _duration("mean"), is_number=True),
        _Column("TOTAL", _total, is_number=True),
    ),
    "error": (
        _Column("ERROR", lambda group: str(group.error_code)),
        _Column("FAILED STEP", lambda group: str(group.failed_step)),
        _Column("RUNS", _number("runs"), is_number=True),
    ),
}
"""The columns of each kind of group."""
