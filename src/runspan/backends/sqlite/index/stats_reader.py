"""Reads the sums of the index as the answer to a query for statistics."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import accumulate, islice, pairwise
from typing import Any, Final
from zoneinfo import ZoneInfo

from msgspec import UNSET
from msgspec.structs import replace

from runspan.backends.sqlite.index import stats
from runspan.backends.sqlite.index.facts_index import find_name, find_tenant, first_id, unpack_outcome
from runspan.backends.sqlite.index.stats import HOUR, SPANS, Table, duration_of
from runspan.codec.facts import NANO_DOLLARS
from runspan.contracts import DurationStats, FailedRun, StatsGroup, StatsPage, StatsQuery, UsageStats
from runspan.errors import QueryError
from runspan.model.timestamps import MILLISECOND, SECOND, rfc3339

_WORKFLOW: Final = "SELECT workflow_id FROM series WHERE id = ?"
_NO_BUCKETS: Final[Mapping[int, int]] = {}
_FAILURES: Final = """
    SELECT trace_id, facts FROM indexed_runs NOT INDEXED CROSS JOIN counted_facts USING (id)
    WHERE id >= ? AND id < ? AND tenant = ? AND status IN (?, ?) ORDER BY id DESC LIMIT 1000
"""
_MAX_FAILURES: Final = 20_000
"""Failures that one query reads."""
MAX_BINS: Final = 800
"""Days or hours of one query: two years, or a month."""
_END: Final = SPANS[-1] * 10_000
"""The hour, in the year 2846, at which an open range ends. It is a multiple of all spans, as 0 is."""
_MICROSECONDS: Final = 1_000
"""In a millisecond."""

Bin = tuple[int, int]
"""The first hour of a bin, and the first one after it, since 1970."""
ReadFailure = Callable[[bytes], FailedRun | None]
"""Returns the run of a trace id as the store has it; None if it is gone."""
_Key = tuple[int | None, int]
"""Series, if each workflow has groups of its own, and position of the bin."""
_FailureLabels = tuple[str | None, ...]
"""Workflow, error code and failed step; empty for those that have no groups of their own."""


def read(connection: sqlite3.Connection, query: StatsQuery, read_failure: ReadFailure) -> StatsPage:
    """Return the statistics of a query. Raises QueryError for a time zone that is not known, or too many bins."""
    whole = 0 if query.since is None else query.since // HOUR, _END if query.until is None else -(-query.until // HOUR)
    bins = [*islice(_bins(query, whole), MAX_BINS + 1)]
    if len(bins) > MAX_BINS:
        raise QueryError(where="groupBy", expected=f"at most {MAX_BINS} days or hours", got="more")
    sums = _Sums(connection, query, bins)
    groups = [*(_parts(sums) if query.part else _runs(sums))]
    shown = groups[: query.limit]
    if not query.is_by_time and (query.part == "error" or (query.is_by_workflow and not query.part)):
        hours = sums.newest_failures()
        finder = _FailureFinder(connection, query, read_failure)
        shown = [replace(group, newest_failure=finder.find(group, hours.get(_labels(group), 0))) for group in shown]
    return StatsPage(
        shown,
        None if query.since is None else whole[0] * HOUR,
        None if query.until is None else whole[1] * HOUR,
        has_more=len(groups) > query.limit,
    )


class _Sums:
    """Reads the tables, each in one statement."""

    def __init__(self, connection: sqlite3.Connection, query: StatsQuery, bins: Sequence[Bin]) -> None:
        self._connection = connection
        self.query = query
        self.bins = bins
        self._pieces = [(number, *piece) for number, bin in enumerate(bins) for piece in _pieces(*bin)]
        self._conditions = ["series.tenant = ?"]
        self._values: list[Any] = [stats.utf8(query.tenant)]
        if query.workflow_id is not None:
            self._conditions.append("coalesce(series.workflow_id, 0) = ?")
            self._values.append(stats.utf8(query.workflow_id))

    @property
    def are_few(self) -> bool:
        """Whether there cannot be more groups of whole runs than the limit of the query."""
        limit, series = self.query.limit, 1
        if self.query.is_by_workflow:
            conditions = " AND ".join(self._conditions)
            statement = f"SELECT count(*) FROM (SELECT 1 FROM series WHERE {conditions} LIMIT {limit + 1})"  # noqa: S608
            (series,) = self._connection.execute(statement, self._values).fetchone()
        return series * len(self.bins) <= limit

    def restrict(self, series: Iterable[int]) -> None:
        """Read only these series from now on."""
        self._conditions.append(f"series.id IN ({', '.join(map(str, series))})")

    def rows(
        self, table: Table, labels: Sequence[str] = (), *, largest_by: str = ""
    ) -> Iterator[tuple[_Key, list[Any], list[int]]]:
        """Yield the sums of a table by key and labels.

        largest_by: Yield only one more than the limit of the query, the largest of each bin by this sum first.

        Sums of more than 64 bits are exact: SQLite adds their halves.
        """
        columns = [*(["series.id"] if self.query.is_by_workflow else []), "bin", *labels]
        halves = [f"sum(sums.{name} >> 31), sum(sums.{name} & 2147483647)" for name in table.sums]
        end = f"ORDER BY bin, total(sums.{largest_by}) DESC LIMIT {self.query.limit + 1}" if largest_by else ""
        statement = f"""
            WITH pieces (bin, span, low, high) AS (VALUES {", ".join(["(?, ?, ?, ?)"] * len(self._pieces))})
            SELECT {", ".join([*columns, *halves])}
            FROM pieces CROSS JOIN series CROSS JOIN {table.name} AS sums
            ON sums.series = series.id AND sums.span = pieces.span AND sums.start >= low AND sums.start < high
            WHERE {" AND ".join(self._conditions)} GROUP BY {", ".join(columns)} {end}
        """  # noqa: S608 names of tables and columns
        values = [number for piece in self._pieces for number in piece] + self._values
        key, width = (0 if self.query.is_by_workflow else None), len(columns)
        for row in self._connection.execute(statement, values) if self._pieces else ():
            numbers = [(high << 31) + low for high, low in zip(row[width::2], row[width + 1 :: 2], strict=True)]
            yield (
                (None if key is None else row[0], row[width - len(labels) - 1]),
                row[width - len(labels) : width],
                numbers,
            )

    def newest_failures(self) -> dict[_FailureLabels, int]:
        """Return the hour of the newest failure of each group, of the only bin."""
        columns = {"series.workflow_id": self.query.is_by_workflow}
        columns |= dict.fromkeys(stats.ERRORS.labels, self.query.part == "error")
        grouped = [name for name, is_grouped in columns.items() if is_grouped]
        statement = f"""
            SELECT {", ".join(name if is_grouped else "x''" for name, is_grouped in columns.items())}, max(start)
            FROM series CROSS JOIN error_sums ON series = series.id AND span = 1 AND start >= ? AND start < ?
            WHERE {" AND ".join(self._conditions)} GROUP BY {", ".join(grouped)}
        """  # noqa: S608 names of columns
        rows = self._connection.execute(statement, [*self.bins[0], *self._values])
        return {(*(None if label is None else label.decode() for label in labels),): hour for *labels, hour in rows}

    def group(self, key: _Key) -> StatsGroup:
        """Return the group of a key, without numbers."""
        series, bin = key
        group = StatsGroup()
        if series is not None:
            (workflow_id,) = self._connection.execute(_WORKFLOW, (series,)).fetchone()
            group = replace(group, workflow_id=None if workflow_id is None else workflow_id.decode())
        if self.query.is_by_time:
            start, end = self.bins[bin]
            group = replace(group, from_=rfc3339(start * HOUR), to=rfc3339(end * HOUR))
        return group


class _FailureFinder:
    """Finds the newest run of the failures of a group."""

    def __init__(self, connection: sqlite3.Connection, query: StatsQuery, read_failure: ReadFailure) -> None:
        self._connection = connection
        self._query = query
        self._read_failure = read_failure
        self._tenant = find_tenant(connection, query.tenant)
        self._statuses = [find_name(connection, name) for name in stats.FAILURES]
        self._hours: dict[int, tuple[dict[_FailureLabels, bytes], Iterator[tuple[_FailureLabels, bytes]]]] = {}
        """What was found in an hour, and its further failures: groups share it, so that each is read once."""
        self._left = _MAX_FAILURES

    def find(self, group: StatsGroup, hour: int) -> FailedRun | None:
        """Return the newest run that failed as the group says in an hour.

        Return None without one, and if it is not among the newest failures of the hour, or there are too many to read.
        """
        wanted = _labels(group)
        found, others = self._hours.setdefault(hour, ({}, self._failures(hour)))
        while wanted not in found:
            other = next(others, None)
            if other is None:
                return None
            found.setdefault(*other)
        return self._read_failure(found[wanted])

    def _failures(self, hour: int) -> Iterator[tuple[_FailureLabels, bytes]]:
        """Yield labels and trace ids of the newest failures in an hour, the newest first."""
        query = self._query
        edges = hour * HOUR // MILLISECOND, first_id(self._connection, (hour + 1) * HOUR)
        for trace_id, packed in self._connection.execute(_FAILURES, (*edges, self._tenant, *self._statuses)):
            if self._left == 0:
                return
            self._left -= 1
            outcome = unpack_outcome(packed)
            if outcome.time // HOUR == hour and query.workflow_id in (None, outcome.workflow_id):
                workflow_id = outcome.workflow_id if query.is_by_workflow else ""
                yield (workflow_id, *(stats.error_labels(outcome) if query.part else ("", ""))), trace_id


def _labels(group: StatsGroup) -> _FailureLabels:
    labels = group.workflow_id, group.error_code, group.failed_step
    return tuple("" if label is UNSET else label for label in labels)


def _runs(sums: _Sums) -> Iterator[StatsGroup]:
    """Yield the groups of whole runs."""
    largest: dict[_Key, int] | None = None
    if not sums.are_few:
        largest = {key: runs for key, _, (runs, *_) in sums.rows(stats.RUNS, largest_by="runs")}
        if sums.query.is_by_workflow:
            sums.restrict({series for series, _ in largest if series is not None})
    statuses: defaultdict[_Key, dict[str, int]] = defaultdict(dict)
    timed: defaultdict[_Key, list[int]] = defaultdict(lambda: [0, 0])
    for key, (status,), (runs, count, duration) in sums.rows(stats.RUNS, ("status",)):
        statuses[key][status.decode()] = runs
        timed[key] = [timed[key][0] + count, timed[key][1] + duration]
    buckets: defaultdict[_Key, dict[int, int]] = defaultdict(dict)
    if not sums.query.is_by_time or sums.query.workflow_id is not None:  # else these would be about as many as the runs
        for key, (bucket,), (runs,) in sums.rows(stats.DURATIONS, ("bucket",)):
            buckets[key][bucket] = runs
    usage = {key: _usage(numbers) for key, _, numbers in sums.rows(stats.MODELS)}
    if largest is None:
        counts = {key: sum(found.values()) for key, found in statuses.items()}
        largest = dict(sorted(counts.items(), key=lambda item: (item[0][1], -item[1])))
    for key, runs in largest.items():
        yield replace(
            sums.group(key),
            runs=runs,
            statuses=statuses[key],
            duration_ms=_durations(timed[key][0], timed[key][1], buckets[key]),
            usage=usage.get(key, UsageStats(0, 0, 0, 0.0)),
        )


def _parts(sums: _Sums) -> Iterator[StatsGroup]:
    """Yield the groups of parts of runs."""
    if sums.query.part == "model":
        for key, (model,), numbers in sums.rows(stats.MODELS, ("model",), largest_by="cost"):
            yield replace(sums.group(key), model=model.decode(), usage=_usage(numbers))
    elif sums.query.part == "step":
        rows = sums.rows(stats.STEPS, ("name", "type"), largest_by="duration")
        for key, (name, type_), (executions, failed, timed, duration) in rows:
            yield replace(
                sums.group(key),
                step=name.decode(),
                step_type=type_.decode(),
                executions=executions,
                failed=failed,
                duration_ms=_durations(timed, duration),
            )
    else:
        for key, (code, failed_step), (runs,) in sums.rows(stats.ERRORS, ("code", "failed_step"), largest_by="runs"):
            yield replace(sums.group(key), error_code=code.decode(), failed_step=failed_step.decode(), runs=runs)


def _usage(numbers: Sequence[int]) -> UsageStats:
    steps, input_tokens, output_tokens, cost = numbers
    return UsageStats(steps, input_tokens, output_tokens, cost / NANO_DOLLARS)


def _durations(count: int, duration: int, buckets: Mapping[int, int] = _NO_BUCKETS) -> DurationStats:
    mean = duration / count / _MICROSECONDS if count else 0.0
    if not buckets:
        return DurationStats(count, mean)
    ordered = sorted(buckets.items())
    p50, p95 = (_percentile(ordered, -(-count * percent // 100)) for percent in (50, 95))
    return DurationStats(count, mean, p50, p95)


def _percentile(ordered: Sequence[tuple[int, int]], rank: int) -> float:
    """Return the milliseconds of the duration of a rank, from 1."""
    ends = accumulate(runs for _, runs in ordered)
    bucket = next((bucket for (bucket, _), end in zip(ordered, ends, strict=True) if end >= rank), ordered[-1][0])
    return float(f"{duration_of(bucket) / MILLISECOND:.4g}")  # more digits would promise more


def _bins(query: StatsQuery, whole: Bin) -> Iterator[Bin]:
    """Yield the hours of each bin of a query, which is of these hours as a whole."""
    if not query.is_by_time:
        yield whole
    elif "hour" in query.group_by:
        yield from ((hour, hour + 1) for hour in range(*whole))
    else:
        edges = [whole[0], *islice(_midnights(query.time_zone, whole), MAX_BINS + 1), whole[1]]
        yield from ((start, end) for start, end in pairwise(edges) if start < end)


def _midnights(time_zone: str, whole: Bin) -> Iterator[int]:
    """Yield the hours in which the days of a time zone begin, after the first of a range and before its end.

    A day of a zone that is not whole hours from UTC begins with the hour that contains its midnight.
    """
    try:
        zone = ZoneInfo(time_zone)
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError, and a directory is an OSError
        raise QueryError(
            where="timeZone",
            expected="a name of the IANA time zone database, such as Europe/Berlin",
            got=repr(time_zone[:60]),
            hint="the database is that of the system, or of the package tzdata",
        ) from None
    day = datetime.fromtimestamp(whole[0] * HOUR // SECOND, zone).date()
    while True:
        day += timedelta(days=1)
        hour = int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()) * SECOND // HOUR
        if hour >= whole[1]:
            return
        yield hour


def _pieces(low: int, high: int, spans: Sequence[int] = SPANS) -> Iterator[tuple[int, int, int]]:
    """Yield the fewest ranges of spans that make up a range of hours: span, first start, and last one, excluded."""
    if low >= high:
        return
    *shorter, span = spans
    start, end = -(-low // span) * span, high // span * span
    if start >= end:
        yield from _pieces(low, high, shorter)
        return
    yield from _pieces(low, start, shorter)
    yield span, start, end
    yield from _pieces(end, high, shorter)
