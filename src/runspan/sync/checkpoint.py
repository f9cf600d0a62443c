"""``Checkpoint``: what sync remembers of every run, in a file that survives a kill at any moment.

A commit returns when it is on disk (write-ahead log, synchronous FULL). One process at a time has the file: it holds
SQLite's own exclusive lock, which the system gives back when the process ends, however it ends.

``Entry``: what is remembered of one run between the platform and the receiver; no I/O.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from runspan.errors import ConfigError
from runspan.storage.span_acks import TABLES as SPAN_TABLES
from runspan.storage.span_acks import SpanAcks
from runspan.storage.sqlite_file import Schema, open_database, translate_errors


class TrackState(IntEnum):
    """Where a run stands. The numbers are those of the checkpoint's file."""

    NEW = 0
    """The platform listed it, and the receiver has nothing of it yet: the backlog."""
    ENDED = 1
    """The receiver has it, and it had ended."""
    OPEN = 2
    """The receiver has it as it was before its end: it is fetched again until then."""
    REFUSED = 3
    """Its document cannot be carried, or the receiver does not take it. Asked for again only when it changes."""
    GONE = 4
    """The platform listed it and then did not have it."""


AT_ONCE = 0
"""As ``Entry.due``: next, and not at a certain time."""


@dataclass(slots=True)
class TrackedRun:
    """One run. Times are nanoseconds since 1970.

    time: what the platform sorts it by. due: when it is to be fetched, None: not before something is heard of it.
    failures: fetches in a row that came to nothing.
    listed, own: fingerprints, of the last list item and of the document's own summary; b"" when there was none.
    sent, revision: digest and revision of what was last handed to the delivery, which may have arrived: written down
    before it is sent. acked: digest of what the receiver last said that it has.
    rooted: whether a run span was ever sent, which is written once.
    changed_at: when the document was last seen to be another, or to be gone. sent_at: when the receiver last took it.
    reason: of a run that is REFUSED.
    """

    run_id: str
    time: int
    state: TrackState = TrackState.NEW
    due: int | None = AT_ONCE
    failures: int = 0
    listed: bytes = b""
    own: bytes = b""
    sent: bytes = b""
    revision: int = 0
    acked: bytes = b""
    rooted: bool = False
    changed_at: int = 0
    sent_at: int = 0
    reason: str = ""
    stored: TrackState | None = None
    """Its state as it stands in the file, None when it is not there."""
    again: bool = False
    """It was listed as another while it was fetched or sent: what was fetched may be the older one."""

    @property
    def key(self) -> bytes:
        """How ``Acknowledged`` calls it."""
        return self.run_id.encode()


_TABLES: Final = (
    "CREATE TABLE binding (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
    """
    CREATE TABLE sweeps (
        filter TEXT PRIMARY KEY,
        newest INTEGER NOT NULL,
        full_began INTEGER NOT NULL,
        full_ended INTEGER NOT NULL,
        edge INTEGER NOT NULL,
        top INTEGER NOT NULL,
        cursor TEXT
    ) STRICT
    """,
    """
    CREATE TABLE runs (
        run_id TEXT PRIMARY KEY,
        time INTEGER NOT NULL,
        state INTEGER NOT NULL,
        due INTEGER,
        failures INTEGER NOT NULL,
        listed BLOB NOT NULL,
        own BLOB NOT NULL,
        sent BLOB NOT NULL,
        revision INTEGER NOT NULL,
        acked BLOB NOT NULL,
        rooted INTEGER NOT NULL,
        changed_at INTEGER NOT NULL,
        sent_at INTEGER NOT NULL,
        reason TEXT NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX runs_by_state ON runs (state, time)",
    "CREATE INDEX runs_known_by_due ON runs (due) WHERE state <> 0 AND due IS NOT NULL",
    "CREATE INDEX runs_failing ON runs (due) WHERE failures > 0",
    *SPAN_TABLES,
)
_SCHEMA: Final = Schema(
    name="the state file of a sync",
    application_id=0x72737963,
    version=1,
    tables=_TABLES,
    hint="name another file with --state-file: every run is fetched again, and none is doubled",
)
_COLUMNS: Final = (
    "run_id, time, state, due, failures, listed, own, sent, revision, acked, rooted, changed_at, sent_at, reason"
)
_SAVE: Final = f"INSERT OR REPLACE INTO runs ({_COLUMNS}) VALUES ({', '.join('?' * 14)})"  # noqa: S608  # only constants
_DUE: Final = "(due <= ? OR (failures > 0 AND failures < ? AND due <= ?))"


@dataclass(frozen=True, slots=True)
class Binding:
    """What a checkpoint is of: its memory means nothing for another source, target, tenant or filter."""

    source: str
    target: str
    tenant: str = ""
    workflows: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()

    def to_rows(self) -> dict[str, str]:
        """Name and text of each part."""
        return {
            "source": self.source,
            "target": self.target,
            "tenant": self.tenant,
            "workflow": json.dumps(sorted(self.workflows)),
            "status": json.dumps(sorted(self.statuses)),
        }


@dataclass(slots=True)
class ListPosition:
    """How far the list of one filter was read. Times are nanoseconds since 1970, 0 for never.

    newest: everything that started until then was listed. full_began, full_ended: the last walk all the way down;
    while it is under way, edge, top and cursor are its own, see ``Sweep``.
    """

    newest: int = 0
    full_began: int = 0
    full_ended: int = 0
    edge: int = 0
    top: int = 0
    cursor: str | None = None

    @property
    def under_way(self) -> bool:
        return self.full_began > self.full_ended


class Checkpoint:
    """The file. Used by one thread; ``begin`` and ``commit`` bound each change. counts: runs by state.

    spans: of runs that are OPEN, by ``Entry.key``. receiver: see ``Acknowledged.belongs_to``.
    ConfigError when it belongs to another binding; StoreError when another process has it, when it was written by a
    newer version, or when it is no checkpoint at all.
    """

    def __init__(self, path: Path, binding: Binding, receiver: bytes = b"") -> None:
        self.path = path
        self.spans = SpanAcks(self._run)
        self._connection = open_database(path, _SCHEMA, exclusive=True, busy_timeout=0)
        try:
            self._bind(binding, receiver)
            rows = self._all("SELECT state, count(*) FROM runs GROUP BY state", ())
            self.counts: Counter[TrackState] = Counter({TrackState(state): count for state, count in rows})
        except BaseException:
            self._connection.close()
            raise

    def begin(self) -> None:
        self._run("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Returns when everything since ``begin`` is on disk."""
        self._run("COMMIT")

    def close(self) -> None:
        """Calling it twice is allowed. What was not committed is forgotten."""
        self._connection.close()

    def entries(self, run_ids: Sequence[str]) -> dict[str, TrackedRun]:
        """What is known of these runs; at most some hundreds at a time."""
        holders = ", ".join("?" * len(run_ids))
        return {entry.run_id: entry for entry in self._entries(f"run_id IN ({holders})", run_ids)}

    def save(self, entry: TrackedRun) -> None:
        """Writes an entry down; it is on disk after ``commit``."""
        if entry.stored is not entry.state:
            if entry.stored is not None:
                self.counts[entry.stored] -= 1
            if entry.stored is TrackState.OPEN:
                self.spans.forget(entry.key)
            self.counts[entry.state] += 1
            entry.stored = entry.state
        values = (
            entry.run_id,
            entry.time,
            entry.state,
            entry.due,
            entry.failures,
            entry.listed,
            entry.own,
            entry.sent,
            entry.revision,
            entry.acked,
            entry.rooted,
            entry.changed_at,
            entry.sent_at,
            entry.reason,
        )
        self._run(_SAVE, values)

    def new_runs(self, limit: int, *, until: int, again: int, patience: int) -> list[TrackedRun]:
        """Runs that the receiver has nothing of, the oldest first. until, again, patience: see ``known``."""
        where = "state = 0 AND due IS NOT NULL AND " + _DUE
        return self._entries(f"{where} ORDER BY time LIMIT ?", (until, patience, again, limit))

    def due_runs(self, limit: int, *, until: int, again: int, patience: int) -> list[TrackedRun]:
        """Runs that are to be fetched again, those first that wait the longest.

        until: which are due. again: which are due among those that failed, but fewer than ``patience`` times in a row.
        """
        where = "state <> 0 AND due IS NOT NULL AND " + _DUE
        return self._entries(f"{where} ORDER BY due LIMIT ?", (until, patience, again, limit))

    def next_retry(self, patience: int) -> int | None:
        """When the first of those is due that failed, but fewer than ``patience`` times in a row."""
        return self._number("SELECT min(due) FROM runs WHERE failures > 0 AND failures < ? AND due > 0", (patience,))

    def oldest(self, state: TrackState) -> int | None:
        """The earliest time of the runs in a state that have one."""
        return self._number("SELECT min(time) FROM runs WHERE state = ? AND time > 0", (state,))

    def backlog_by_time(self, length: int) -> list[tuple[int, int]]:
        """(start, runs) of the spans of time, each so many nanoseconds long, that hold runs of the backlog."""
        return self._all(
            "SELECT time / ? * ?, count(*) FROM runs WHERE state = 0 AND time > 0 GROUP BY 1 ORDER BY 1",
            (length, length),
        )

    def reasons(self, state: TrackState, limit: int) -> list[tuple[str, str]]:
        """(run id, reason) of the first runs in a state."""
        return self._all("SELECT run_id, reason FROM runs WHERE state = ? ORDER BY time LIMIT ?", (state, limit))

    def failing_count(self) -> int:
        """How many runs the last fetch of which came to nothing."""
        return self._number("SELECT count(*) FROM runs WHERE failures > 0", ()) or 0

    def failing(self, limit: int) -> list[tuple[str, str]]:
        """(run id, reason) of the first runs whose last fetch came to nothing."""
        return self._all("SELECT run_id, reason FROM runs WHERE failures > 0 ORDER BY time LIMIT ?", (limit,))

    def reschedule(self, states: Collection[TrackState], *, since: int = 0) -> None:
        """Everything in these states that started since then is to be fetched at once."""
        for state in states:
            self._run("UPDATE runs SET due = 0, failures = 0 WHERE state = ? AND time >= ?", (state, since))

    def resend(self, since: int) -> None:
        """Whatever the receiver acknowledged of runs that started since then, or at an unknown time, is to be sent once
        more, as the same spans."""
        chosen = f"FROM runs WHERE state IN ({TrackState.ENDED:d}, {TrackState.OPEN:d}) AND (time >= ? OR time = 0)"
        self._run(f"DELETE FROM spans WHERE run IN (SELECT CAST(run_id AS BLOB) {chosen})", (since,))  # noqa: S608
        again = "UPDATE runs SET acked = x'', due = 0, failures = 0 WHERE run_id IN (SELECT run_id "
        self._run(f"{again}{chosen})", (since,))

    def clamp_due(self, latest: int) -> None:
        """Whatever is due later than that is due at once."""
        for chosen in ("failures > 0", "state <> 0 AND due IS NOT NULL"):  # as the indices have it
            self._run(f"UPDATE runs SET due = 0 WHERE {chosen} AND due > ?", (latest,))  # noqa: S608  # only constants

    def forget_failures(self) -> None:
        """What could not be fetched by an earlier sync is tried as if for the first time."""
        self._run("UPDATE runs SET due = 0, failures = 0 WHERE failures > 0")

    def list_position(self, filter_name: str) -> ListPosition:
        """How far a filter's list was read."""
        statement = "SELECT newest, full_began, full_ended, edge, top, cursor FROM sweeps WHERE filter = ?"
        rows = self._all(statement, (filter_name,))
        return ListPosition(*rows[0]) if rows else ListPosition()

    def save_list_position(self, filter_name: str, walked: ListPosition) -> None:
        """The same, to be remembered."""
        values = (walked.newest, walked.full_began, walked.full_ended, walked.edge, walked.top, walked.cursor)
        self._run("INSERT OR REPLACE INTO sweeps VALUES (?, ?, ?, ?, ?, ?, ?)", (filter_name, *values))

    def _bind(self, binding: Binding, receiver: bytes) -> None:
        """Write the binding to a new file. Raise ConfigError when the file has another one."""
        self.begin()
        bound = dict(self._all("SELECT name, value FROM binding", ()))
        for name, value in binding.to_rows().items():
            if not bound:
                self._run("INSERT INTO binding VALUES (?, ?)", (name, value))
            elif bound.get(name) != value:
                raise ConfigError(
                    f"the state file belongs to another {name}",
                    where=str(self.path),
                    expected=bound.get(name) or "none",
                    got=value or "none",
                    hint="name another file with --state-file, or sync as before",
                )
        self.spans.bind_receiver(receiver)
        self.commit()

    def _entries(self, where: str, values: Iterable[Any]) -> list[TrackedRun]:
        rows = self._all(f"SELECT {_COLUMNS} FROM runs WHERE {where}", values)  # noqa: S608  # only constants
        return [_entry(row) for row in rows]

    def _number(self, statement: str, values: Iterable[Any]) -> int | None:
        value: int | None = self._all(statement, values)[0][0]
        return value

    def _run(self, statement: str, values: Iterable[Any] = ()) -> sqlite3.Cursor:
        with translate_errors(self.path):
            return self._connection.execute(statement, tuple(values))

    def _all(self, statement: str, values: Iterable[Any]) -> list[Any]:
        with translate_errors(self.path):
            return self._connection.execute(statement, tuple(values)).fetchall()


def _entry(row: Sequence[Any]) -> TrackedRun:
    entry = TrackedRun(*row)
    entry.state = entry.stored = TrackState(row[2])
    entry.rooted = bool(entry.rooted)
    return entry
