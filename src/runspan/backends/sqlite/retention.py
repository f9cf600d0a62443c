"""How long runs are kept: refused past the edge on arrival, deleted past it later, and the disk given back.

Deleting goes through the writer in small batches, so that what arrives meanwhile waits for milliseconds.

Deleting runs that somebody keeps elsewhere: each only while what is stored is exactly what that copy holds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final, NamedTuple

from runspan.backends.sqlite.queries import states, with_fragments
from runspan.backends.sqlite.writer import GroupWriter
from runspan.model.ids import run_ids

_DIGEST = "SELECT id, digest, incomplete IS NOT NULL FROM runs WHERE trace_id = ?"


class PurgeResult(NamedTuple):
    """deleted: runs. changed: ids of those that stay. gone: runs that were not there. spans: foreign ones deleted."""

    deleted: int
    changed: tuple[str, ...]
    gone: int
    spans: int


def purge(connection: sqlite3.Connection, items: Sequence[tuple[bytes, str]], tenant: str) -> PurgeResult:
    """Deletes runs in the transaction that compares them. items: SHA-256 of the document's text, and run id.

    A run stays when its document is another, when a newer revision of it is known but not proved yet, or when spans
    that its tenant sent wait for others. What another tenant left in its trace goes with it.
    """
    deleted = gone = spans = 0
    changed = []
    named = [(run_ids(run_id, tenant).trace_id, digest, run_id) for digest, run_id in items]
    waiting = with_fragments(connection, [trace_id for trace_id, _, _ in named], tenant)
    for trace_id, digest, run_id in named:
        row = connection.execute(_DIGEST, (trace_id,)).fetchone()
        if row is None:
            gone += 1
        elif row[1] != digest[: len(row[1])] or row[2] or trace_id in waiting:
            changed.append(run_id)
        else:
            spans += connection.execute("DELETE FROM foreign_spans WHERE trace_id = ?", (trace_id,)).rowcount
            connection.execute("DELETE FROM fragments WHERE trace_id = ?", (trace_id,))
            connection.execute("DELETE FROM runs WHERE id = ?", (row[0],))
            deleted += 1
    return PurgeResult(deleted, tuple(changed), gone, spans)


DAY: Final = 86_400 * 1_000_000_000
_BATCH = 500
_VACUUM_PAGES = 2000
_SETTLED_FRAGMENTS = DAY
"""How long a fragment waits that the newest proved revision of its run does not name: then its head, if there ever is
one, tells an older revision, or it was lost."""


@dataclass(frozen=True, slots=True)
class Retention:
    """days: counted from a run's end, and for one that has not ended from when it was last written; see
    ``rows.end_time``. None keeps everything."""

    days: float | None = None

    def edge(self, now: int) -> int | None:
        """Runs that ended before this are past retention."""
        return None if self.days is None else now - int(self.days * DAY)

    def refusal(self, ended: int, now: int) -> str | None:
        """Why a run that ended then is not taken; None when it is."""
        edge = self.edge(now)
        if edge is None or ended >= edge:
            return None
        when = datetime.fromtimestamp(ended // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return f"it ended {when}, and this store keeps runs for {self.days:g} days"


def expire(writer: GroupWriter, retention: Retention, now: int) -> int:
    """Deletes what is past retention, frees the disk, and tells how many runs were deleted."""
    edge = retention.edge(now)
    deleted = 0
    if edge is not None:
        while count := writer.submit(lambda connection: _delete_runs(connection, edge)):
            deleted += count
        _in_batches(writer, "foreign_spans", edge)
        _in_batches(writer, "fragments", edge)
    _in_batches(writer, "fragments", now - _SETTLED_FRAGMENTS, settled=True)
    release_pages(writer)
    return deleted


def release_pages(writer: GroupWriter) -> None:
    """Gives the disk space of what was deleted back to the file system."""
    while writer.submit(_vacuum):
        pass
    writer.submit(lambda connection: connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall(), alone=True)


def _delete_runs(connection: sqlite3.Connection, edge: int) -> int:
    rows = connection.execute(
        "SELECT id, trace_id FROM runs WHERE ended < ? ORDER BY ended LIMIT ?", (edge, _BATCH)
    ).fetchall()
    trace_ids = [(trace_id,) for _, trace_id in rows]
    connection.executemany("DELETE FROM foreign_spans WHERE trace_id = ?", trace_ids)
    connection.executemany("DELETE FROM fragments WHERE trace_id = ?", trace_ids)
    connection.executemany("DELETE FROM runs WHERE id = ?", [(number,) for number, _ in rows])
    return len(rows)


def _in_batches(writer: GroupWriter, table: str, edge: int, *, settled: bool = False) -> None:
    after: int | None = 0
    while after is not None:
        after = writer.submit(partial(_delete_old, table=table, edge=edge, settled=settled, after=after))


def _delete_old(connection: sqlite3.Connection, *, table: str, edge: int, settled: bool, after: int) -> int | None:
    """Deletes spans that came before the edge, looking at one batch; where the next batch begins, None at the end.

    Without settled: those whose trace has no run, because the others go with their run. With it: those whose run is
    complete without them.
    """
    select = f"SELECT id, trace_id, received_at FROM {table} WHERE id > ? ORDER BY id LIMIT ?"  # noqa: S608 a constant
    rows = connection.execute(select, (after, _BATCH)).fetchall()
    old = [(number, trace_id) for number, trace_id, received_at in rows if received_at < edge]
    known = states(connection, list({trace_id for _, trace_id in old}))
    if settled:
        gone = [number for number, trace_id in old if trace_id in known and not _incomplete(connection, trace_id)]
    else:
        gone = [number for number, trace_id in old if trace_id not in known]
    connection.executemany(f"DELETE FROM {table} WHERE id = ?", [(number,) for number in gone])  # noqa: S608 a constant
    # Ids grow with time, so after a batch without an old span there is none.
    return rows[-1][0] if old and len(rows) == _BATCH else None


def _incomplete(connection: sqlite3.Connection, trace_id: bytes) -> bool:
    row = connection.execute("SELECT incomplete FROM runs WHERE trace_id = ?", (trace_id,)).fetchone()
    return row is not None and row[0] is not None


def _vacuum(connection: sqlite3.Connection) -> int:
    """Gives a bounded number of free pages back; how many are left."""
    connection.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
    left: int = connection.execute("PRAGMA freelist_count").fetchone()[0]
    return left
