"""Statistics of many runs: sums by tenant, workflow and hour, kept in step with the runs, and read in one query."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from runspan.codec.facts import RunFacts, RunOutcome
from runspan.model.document import RUN_STATUSES, TERMINAL_RUN_STATUSES
from runspan.model.timestamps import UNITS

HOUR: Final = UNITS["h"]
SPANS: Final = (1, 24, 24 * 32)
"""Hours of a row: each longer span is made of whole shorter ones."""
MAX_NAME: Final = 200
"""Characters of a name, a model or an error code that are compared."""
FAILURES: Final = ("failed", "timed_out")
"""Statuses of the runs whose errors are counted."""
OTHER: Final = "other"
"""Stands for all statuses that are not the platform's."""
NOT_EXECUTED: Final = ("pending", "skipped")
"""Statuses of the steps that are not counted."""
MICROSECOND: Final = 1_000
"""Durations are summed in it: the 64 bits of a sum have room for 290,000 years."""
_MAX_SUMMAND: Final = 1 << 53
_MAX_SUM: Final = (1 << 63) - 1
_BUCKET_BITS: Final = 6
"""A power of two of durations has this power of two of buckets, so half of one is less than 0.8 % of its durations."""


class Table(NamedTuple):
    """A table of sums. Its key is series, span, start and labels."""

    name: str
    labels: tuple[str, ...]
    sums: tuple[str, ...]
    """A row goes when the first one is 0: the others are 0 too then."""


RUNS: Final = Table("run_sums", ("status",), ("runs", "timed", "duration"))
DURATIONS: Final = Table("duration_sums", ("bucket",), ("runs",))
MODELS: Final = Table("model_sums", ("model",), ("steps", "input_tokens", "output_tokens", "cost"))
STEPS: Final = Table("step_sums", ("name", "type"), ("executions", "failed", "timed", "duration"))
ERRORS: Final = Table("error_sums", ("code", "failed_step"), ("runs",))
_TABLES: Final = (RUNS, DURATIONS, MODELS, STEPS, ERRORS)

_Labels = tuple[bytes | int, ...]
_Sums = Sequence[int]
_Series = tuple[bytes, bytes | None]
"""Tenant and workflow."""
_Row = tuple[_Series, int, _Labels]
"""Series, start and labels of a row; its span is known."""

_SERIES: Final = """
    INSERT INTO series (tenant, workflow_id, runs) VALUES (?, ?, ?)
    ON CONFLICT (tenant, coalesce(workflow_id, 0)) DO UPDATE SET runs = runs + excluded.runs RETURNING id, runs
"""


def _add_statement(table: Table) -> str:
    # A sum that leaves 64 bits becomes a float, which the cast bounds: no run can make the index fail.
    sums = ", ".join(f"{name} = CAST({name} + excluded.{name} AS INTEGER)" for name in table.sums)
    values = ", ".join("?" * (3 + len(table.labels) + len(table.sums)))
    return f"INSERT INTO {table.name} VALUES ({values}) ON CONFLICT DO UPDATE SET {sums}"  # noqa: S608 constants


def _remove_statement(table: Table) -> str:
    labels = "".join(f" AND {name} = ?" for name in table.labels)
    return (
        f"DELETE FROM {table.name} WHERE series = ? AND span = ? AND start = ?{labels} "  # noqa: S608 constants
        f"AND {table.sums[0]} <= 0"
    )


_ADD: Final = {table: _add_statement(table) for table in _TABLES}
_REMOVE: Final = {table: _remove_statement(table) for table in _TABLES}


def apply(connection: sqlite3.Connection, changes: Iterable[tuple[str, RunFacts, int]]) -> None:
    """Add runs to the sums of their tenants, workflows and hours, or take them out of them, in one transaction.

    changes: Tenant, facts and sign: 1 for the facts that a run has now, and -1 for those that it had when it was added.
    The rows of many changes are written once each, and those of what has not changed of a run are not written.
    """
    series: dict[_Series, int] = {}
    added: dict[Table, dict[_Row, _Sums]] = {table: {} for table in _TABLES}
    for tenant, facts, sign in changes:
        key = utf8(tenant), None if facts.workflow_id is None else utf8(facts.workflow_id)
        series[key] = series.get(key, 0) + sign
        hour = facts.time // HOUR
        for table, labels, numbers in _summands(facts):
            _add(added[table], (key, hour, labels), [sign * min(number, _MAX_SUMMAND) for number in numbers])
    counts = {key: connection.execute(_SERIES, (*key, count)).fetchone() for key, count in series.items()}
    for table, rows in added.items():
        changed = [
            (counts[key][0], span, start, *labels, *[max(-_MAX_SUM, min(number, _MAX_SUM)) for number in numbers])
            for span in SPANS
            for (key, start, labels), numbers in _in_spans(rows, span).items()
            if any(numbers)
        ]
        connection.executemany(_ADD[table], changed)
        width = 3 + len(table.labels)
        connection.executemany(_REMOVE[table], [row[:width] for row in changed if row[width] < 0])
    connection.executemany("DELETE FROM series WHERE id = ?", [(row,) for row, runs in counts.values() if runs <= 0])


def _add(rows: dict[_Row, _Sums], row: _Row, numbers: _Sums) -> None:
    before = rows.get(row)
    rows[row] = numbers if before is None else [*map(int.__add__, before, numbers)]


def _in_spans(rows: dict[_Row, _Sums], span: int) -> dict[_Row, _Sums]:
    """Return the sums of hours as sums of longer spans."""
    found: dict[_Row, _Sums] = {}
    for (key, hour, labels), numbers in rows.items():
        _add(found, (key, hour - hour % span, labels), numbers)
    return found


def _summands(facts: RunFacts) -> Iterator[tuple[Table, _Labels, _Sums]]:
    """Yield what a run adds to each table: the labels of a row, and numbers. Several may be of one row."""
    status = facts.status if facts.status in RUN_STATUSES else OTHER
    duration = facts.duration if status in TERMINAL_RUN_STATUSES else None
    yield RUNS, (_label(status),), (1, *_timed(duration))
    if duration is not None:
        yield DURATIONS, (bucket_of(duration),), (1,)
    for use in facts.models:
        yield MODELS, (_label(use.model),), (use.steps, use.input_tokens, use.output_tokens, use.cost)
    for step in facts.steps:
        if step.status not in NOT_EXECUTED:
            failed = int(step.status == "failed")
            yield STEPS, (_label(step.name), _label(step.type)), (1, failed, *_timed(step.duration))
    if status in FAILURES:
        yield ERRORS, tuple(map(utf8, error_labels(facts))), (1,)


def error_labels(facts: RunOutcome) -> tuple[str, str]:
    """Return error code and failed step of a run, as failures are grouped by them; empty without one."""
    return (facts.error_code or "")[:MAX_NAME], (facts.failed_step or "")[:MAX_NAME]


def _timed(duration: int | None) -> tuple[int, int]:
    """Return how many durations a duration is, and its microseconds."""
    return (0, 0) if duration is None else (1, duration // MICROSECOND)


def bucket_of(duration: int) -> int:
    """Return the bucket that counts the runs of a duration in nanoseconds."""
    shift = max(0, duration.bit_length() - _BUCKET_BITS - 1)
    return (shift << _BUCKET_BITS) + (duration >> shift)


def duration_of(bucket: int) -> int:
    """Return the nanoseconds in the middle of a bucket, which differ from each duration in it by less than 0.8 %."""
    shift = max(0, (bucket >> _BUCKET_BITS) - 1)
    return ((bucket - (shift << _BUCKET_BITS)) << shift) + ((1 << shift) >> 1)


def _label(text: str) -> bytes:
    return utf8(text[:MAX_NAME])


def utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
