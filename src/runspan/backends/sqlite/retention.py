"""Deletion of runs: past retention they are rejected on arrival and deleted later; archived runs can be purged.

Runs are deleted in small batches by the writer, so that other writes wait for milliseconds only. On a full disk the
batches are smaller still, and use the space that is reserved for them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final, Protocol, TypeVar

from runspan.backends.sqlite.queries import DAY, ENDED_BEFORE, waiting
from runspan.backends.sqlite.writer import GroupWriter, free_pages
from runspan.errors import StoreError, StoreFull
from runspan.model.span import run_ids

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_BATCH: Final = 500
_SMALL_BATCHES: Final = (20, 1)
_VACUUM_PAGES: Final = 400
_FRAGMENT_LIFETIME: Final = DAY
"""How long fragments of a complete run are kept: then their revision span is outdated or lost."""
_FEW_RUNS: Final = 10
"""So many are always deleted: when a store has only a handful of runs, any of them is a large share."""
_DRIFT: Final = 300 * 1_000_000_000
"""Nanoseconds by which two clocks may differ that advance together."""
_OVERDUE: Final = f"SELECT count(*), (SELECT count(*) FROM runs) FROM runs INDEXED BY runs_by_end WHERE {ENDED_BEFORE}"  # noqa: S608 constants
_EXPIRED: Final = (
    f"SELECT trace_id FROM runs INDEXED BY runs_by_end WHERE {ENDED_BEFORE} ORDER BY ended / {DAY}, id LIMIT ?"  # noqa: S608 constants
)


# Expiry.


class ArrivalClock:
    """The clock by which arrival is recorded. It stays where it was while the wall clock is behind.

    What arrives then would look old, and be deleted, as soon as the wall clock is right again.
    """

    def __init__(self, clock: Callable[[], int], connection: sqlite3.Connection) -> None:
        """``clock``: nanoseconds since 1970."""
        self._clock = clock
        newest = connection.execute("SELECT written_at FROM runs ORDER BY id DESC LIMIT 1").fetchone()
        self._latest: int = newest[0] if newest is not None else 0

    def __call__(self) -> int:
        self._latest = max(self._latest, self._clock())
        return self._latest


class Retention:
    """How long runs are kept, and which may be deleted.

    A clock that was set ahead makes every run look old, and so does a retention that is too short by mistake. So the
    share of the runs that are deleted at once is limited, except for what became old while this process was running.
    """

    def __init__(self, days: float | None, max_share: float, monotonic: Callable[[], int]) -> None:
        """``days`` count from ``queries.retention_start``; None keeps everything. ``max_share``: 1 is no limit.

        ``monotonic``: nanoseconds of a clock that nobody sets.
        """
        self._days = days
        self._max_share = max_share
        self._monotonic = monotonic
        self._confirmed: tuple[int, int] | None = None
        """The last cutoff that the limit allowed, and when that was by the monotonic clock."""
        self.overdue = 0
        """Runs past retention that are kept because they are too many at once."""

    def refusal(self, ended: int) -> str | None:
        """Return why a run that ended then is rejected; None when it is not.

        A run is rejected only if ``cutoff`` was allowed to delete such runs: a wrong clock must not reject new ones.
        """
        if self._days is None or self._confirmed is None or ended >= self._confirmed[0]:
            return None
        return f"it ended {_timestamp(ended)}, and this store keeps runs for {self._days:g} days"

    def cutoff(self, connection: sqlite3.Connection, now: int) -> int | None:
        """Return the time before which a run that ended is to be deleted; None without one.

        Raise StoreError when these runs are too many to be deleted at once.
        """
        if self._days is None:
            return None
        cutoff, uptime = now - int(self._days * DAY), self._monotonic()
        overdue, runs = connection.execute(_OVERDUE, (cutoff, cutoff)).fetchone()
        is_steady = self._confirmed is not None and cutoff - self._confirmed[0] <= uptime - self._confirmed[1] + _DRIFT
        if is_steady or overdue <= self._max_share * runs:
            self._confirmed = cutoff, uptime
        elif overdue > _FEW_RUNS:
            self.overdue = overdue
            raise StoreError(
                "too many runs are past their retention to delete them at once: nothing was deleted",
                expected=f"at most {self._max_share:.0%} of {runs} runs",
                got=f"{overdue} runs that ended more than {self._days:g} days before {_timestamp(now)}",
                hint="correct the clock or --retention; if both are right, restart with --max-expire-share 100",
            )
        self.overdue = 0
        return cutoff


def expire(writer: GroupWriter, retention: Retention, now: int) -> int:
    """Delete what is past retention and free the disk space; return how many runs were deleted.

    Raise StoreError, and delete nothing, when ``retention`` does.
    """
    cutoff = writer.submit(lambda connection: retention.cutoff(connection, now), alone=True)
    deleted = 0
    if cutoff is not None:
        while (count := _submit(writer, partial(_delete_runs, cutoff=cutoff))) != 0:
            deleted += count or 0
        _delete_spans(writer, "foreign_spans", cutoff)
        _delete_spans(writer, "fragments", cutoff)
    _delete_spans(writer, "fragments", now - _FRAGMENT_LIFETIME, "runs.id IS NOT NULL AND runs.incomplete IS NULL")
    release_pages(writer)
    return deleted


def release_pages(writer: GroupWriter) -> None:
    """Return the disk space of what was deleted to the file system."""
    with suppress(StoreFull):
        while _release_some(writer):
            pass
    writer.truncate_log()


def _release_some(writer: GroupWriter) -> int:
    """Free a bounded number of pages; return how many are left to free, about."""
    try:
        return writer.submit(_vacuum)
    except StoreFull:  # there is no room for an ordinary write yet, but the reserve is for this
        return writer.submit_to_full_disk(_count_free_pages)


def _timestamp(moment: int) -> str:
    return datetime.fromtimestamp(moment // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class _Deletion(Protocol[T_co]):
    """Deletes up to ``limit`` rows, and returns what the caller needs to go on."""

    def __call__(self, connection: sqlite3.Connection, limit: int) -> T_co: ...


def _submit(writer: GroupWriter, delete: _Deletion[T]) -> T:
    """Return the result of a deletion: of many rows at once, of few on a full disk."""
    try:
        return writer.submit(partial(delete, limit=_BATCH))
    except StoreFull as error:
        failure = error
    for size in _SMALL_BATCHES:
        try:
            return writer.submit_to_full_disk(partial(delete, limit=size))
        except StoreFull as error:
            failure = error
    raise failure


def _delete_runs(connection: sqlite3.Connection, limit: int, *, cutoff: int) -> int | None:
    """Delete a batch of runs with their traces; return how many runs it had, None if it had more spans than a batch."""
    for table in ("foreign_spans", "fragments"):
        spans = f"SELECT id FROM {table} WHERE trace_id IN ({_EXPIRED}) LIMIT ?"  # noqa: S608 constants
        delete = f"DELETE FROM {table} WHERE id IN ({spans})"  # noqa: S608 constants
        if connection.execute(delete, (cutoff, cutoff, limit, limit)).rowcount == limit:
            return None
    return connection.execute(f"DELETE FROM runs WHERE trace_id IN ({_EXPIRED})", (cutoff, cutoff, limit)).rowcount  # noqa: S608 constants


def _delete_spans(writer: GroupWriter, table: str, cutoff: int, condition: str = "runs.id IS NULL") -> None:
    """Delete spans that arrived before the cutoff, in batches.

    condition: on the run of their trace. By default there is none, since the spans of a run are deleted with it.
    """
    select = (
        f"SELECT spans.id, received_at < ?, {condition} FROM {table} AS spans"  # noqa: S608 constants
        " LEFT JOIN runs ON runs.trace_id = spans.trace_id WHERE spans.id > ? ORDER BY spans.id LIMIT ?"
    )
    after: int | None = 0

    def delete_batch(connection: sqlite3.Connection, limit: int) -> int | None:
        """Return where the next batch begins, None at the end."""
        rows = connection.execute(select, (cutoff, after, limit)).fetchall()
        expired = [(row_id,) for row_id, is_old, meets_condition in rows if is_old and meets_condition]
        connection.executemany(f"DELETE FROM {table} WHERE id = ?", expired)  # noqa: S608 a constant
        # Ids grow with time, so after a batch without an old span there are none.
        return rows[-1][0] if len(rows) == limit and any(is_old for _, is_old, _ in rows) else None

    while after is not None:
        after = _submit(writer, delete_batch)


def _vacuum(connection: sqlite3.Connection) -> int:
    """Free a bounded number of pages; return how many are left to free."""
    free_pages(connection, _VACUUM_PAGES)
    return _count_free_pages(connection)


def _count_free_pages(connection: sqlite3.Connection) -> int:
    count: int = connection.execute("PRAGMA freelist_count").fetchone()[0]
    return count


# Purging.


@dataclass(frozen=True, slots=True)
class PurgeReport:
    """What was deleted from the store."""

    deleted: int = 0
    changed: int = 0
    """Runs that stay because their stored document is not the archived one."""
    named: tuple[str, ...] = ()
    """The ids of these runs, or of the first of them."""
    gone: int = 0
    """Runs that were not in the store any more."""
    spans: int = 0
    """Foreign spans that were deleted with their runs. An archive does not contain them."""

    def __add__(self, other: PurgeReport) -> PurgeReport:
        return PurgeReport(
            self.deleted + other.deleted,
            self.changed + other.changed,
            self.named + other.named,
            self.gone + other.gone,
            self.spans + other.spans,
        )


_STORED_DIGEST: Final = "SELECT id, digest, incomplete IS NOT NULL FROM runs WHERE trace_id = ?"


def purge(writer: GroupWriter, items: Sequence[tuple[bytes, str]], tenant: str) -> PurgeReport:
    """Delete runs, each in the transaction that compares it. items: SHA-256 of the document's text, and run id.

    A run stays when its document has changed, when a newer revision of it is known but not proved yet, or when its
    tenant has fragments in its trace. Spans of other tenants in its trace are deleted with it.
    """
    report = PurgeReport()
    start = 0

    def purge_batch(connection: sqlite3.Connection, limit: int) -> tuple[int, PurgeReport]:
        batch = items[start : start + limit]
        return len(batch), _purge(connection, batch, tenant)

    while start < len(items):
        count, purged = _submit(writer, purge_batch)
        start += count
        report += purged
    return report


def _purge(connection: sqlite3.Connection, items: Sequence[tuple[bytes, str]], tenant: str) -> PurgeReport:
    deleted = gone = spans = 0
    changed = []
    for digest, run_id in items:
        trace_id = run_ids(run_id, tenant).trace_id
        row = connection.execute(_STORED_DIGEST, (trace_id,)).fetchone()
        if row is None:
            gone += 1
        elif row[1] != digest[: len(row[1])] or row[2] or waiting(connection, trace_id, tenant) is not None:
            changed.append(run_id)
        else:
            spans += connection.execute("DELETE FROM foreign_spans WHERE trace_id = ?", (trace_id,)).rowcount
            connection.execute("DELETE FROM fragments WHERE trace_id = ?", (trace_id,))
            connection.execute("DELETE FROM runs WHERE id = ?", (row[0],))
            deleted += 1
    return PurgeReport(deleted, len(changed), tuple(changed), gone, spans)
