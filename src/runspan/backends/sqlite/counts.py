"""What a server's metrics show of the store: how much it has, and which of its runs have not ended."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runspan.backends.sqlite import queries
from runspan.backends.sqlite.lists import SILENT
from runspan.model.document import RUN_STATUSES, TERMINAL_RUN_STATUSES
from runspan.storage.sqlite_file import file_bytes

_UNFINISHED_STATUSES: Final = [status.encode() for status in RUN_STATUSES if status not in TERMINAL_RUN_STATUSES]
_COUNTS: Final = """
    SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM foreign_spans),
    (SELECT coalesce(sum(spans), 0) FROM waiting_tenants)
"""
MAX_STUCK_WORKFLOWS: Final = 100
"""How many workflows have a count or an age of their own: each is a series of ``/metrics``."""
_STUCK: Final = f"""
    SELECT workflow_id, count(*), min(observed_at) FROM runs
    WHERE id IN (SELECT id FROM runs INDEXED BY live_runs WHERE {SILENT} AND observed_at - time <= ?)
    GROUP BY workflow_id ORDER BY min(observed_at)
"""  # noqa: S608 a constant
_TENANTS: Final = """
    WITH RECURSIVE tenants (tenant) AS (
        SELECT min(tenant) FROM runs
        UNION ALL
        SELECT (SELECT min(tenant) FROM runs WHERE runs.tenant > tenants.tenant)
        FROM tenants WHERE tenants.tenant IS NOT NULL
    )
"""
"""Skips from tenant to tenant in an index, so that of each only the runs of a status are read."""
_UNFINISHED: Final = f"""
    {_TENANTS}
    SELECT count(*), min(nullif(time, 0)) FROM tenants JOIN runs INDEXED BY runs_by_status
    ON runs.tenant = tenants.tenant AND runs.status_key IN (?, ?, ?) AND runs.status IN (?, ?, ?)
"""  # noqa: S608 a constant
_SUSPENDED: Final = f"""
    {_TENANTS}
    SELECT workflow_id, min(time) FROM tenants JOIN runs INDEXED BY runs_by_status
    ON runs.tenant = tenants.tenant AND runs.status_key = ? AND runs.status = ? AND time >= ?
    GROUP BY workflow_id ORDER BY min(time)
"""  # noqa: S608 a constant


@dataclass(frozen=True, slots=True)
class Stats:
    """What the store contains."""

    runs: int
    bytes: int
    """The size of the database file and its write-ahead log."""
    foreign_spans: int
    fragments: int
    """Spans that wait for others, or for the revision span that needs them."""
    overdue: int
    """Runs past retention that ``expire`` did not delete because they were too many at once."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The runs that have not ended."""

    runs: int
    """How many runs are pending, running or suspended."""
    oldest: int | None
    """The earliest start among them, nanoseconds since 1970; None without one."""


@dataclass(frozen=True, slots=True)
class Stuck:
    """The stuck runs of a workflow."""

    workflow_id: str
    """Empty for runs without one, and for the workflows beyond ``MAX_STUCK_WORKFLOWS`` together."""
    runs: int
    observed_at: int
    """The earliest last observation among them, nanoseconds since 1970."""


def stats(connection: sqlite3.Connection, path: Path, overdue: int) -> Stats:
    """Return counts of what the store in this file contains."""
    runs, foreign_spans, fragments = connection.execute(_COUNTS).fetchone()
    return Stats(runs, file_bytes(path), foreign_spans, fragments, overdue)


def unfinished(connection: sqlite3.Connection) -> Unfinished:
    """Return the runs of all tenants that have not ended.

    The time this takes depends on the number of tenants and of such runs, not on that of all runs.
    """
    values = [*map(queries.status_key, _UNFINISHED_STATUSES), *_UNFINISHED_STATUSES]
    return Unfinished(*connection.execute(_UNFINISHED, values).fetchone())


def stuck(connection: sqlite3.Connection, before: int, max_age: int) -> list[Stuck]:
    """Return the runs of all tenants that a search with this ``stuck_before`` finds, by workflow.

    max_age: nanoseconds; a run that was older when it was last observed is left out. Runs of a backfill are, since they
    count as observed when they are sent.

    The time this takes depends on the number of runs that are pending or running.
    """
    rows = connection.execute(_STUCK, (before, max_age)).fetchall()
    found = {workflow_id or b"": (runs, at) for workflow_id, runs, at in rows[:MAX_STUCK_WORKFLOWS]}
    for _, runs, at in rows[MAX_STUCK_WORKFLOWS:]:
        others, earliest = found.get(b"", (0, at))
        found[b""] = others + runs, min(earliest, at)
    return [Stuck(workflow_id.decode(), runs, at) for workflow_id, (runs, at) in found.items()]


def suspended(connection: sqlite3.Connection, since: int) -> dict[str, int]:
    """Return the earliest start of a suspended run of each workflow, of the runs of all tenants that started since.

    Empty for runs without a workflow, and for those beyond ``MAX_STUCK_WORKFLOWS`` together. Times are nanoseconds
    since 1970. How long this takes depends on the number of tenants and of suspended runs.
    """
    rows = connection.execute(_SUSPENDED, (queries.status_key(b"suspended"), b"suspended", since)).fetchall()
    found: dict[str, int] = {}
    for number, (workflow_id, start) in enumerate(rows):
        found.setdefault((workflow_id or b"").decode() if number < MAX_STUCK_WORKFLOWS else "", start)
    return found
