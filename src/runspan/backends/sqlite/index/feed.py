"""What has changed in the store since the index read it: new runs, and a table of others that triggers fill."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final, NamedTuple

from runspan.storage.sqlite_file import read_statements

_STATEMENTS: Final = read_statements(__package__, "feed.sql")
_TRIGGERS: Final = ("run_changed", "run_removed")
_KEPT: Final = 10_000
"""Changes that were read and are still there: more are deleted together."""
_DELETED: Final = 5000
"""Rows of one transaction."""
_DATED: Final = 1000
"""Changed runs among which the one that was stored first is looked for."""


class Position(NamedTuple):
    """How far the store has been read."""

    change_id: int
    """The last row that was read of the table of changes."""
    change_trace_id: bytes
    """Its trace id, by which the store is known again."""
    run: int
    """Runs up to this number were read."""


def is_on(connection: sqlite3.Connection) -> bool:
    """Return whether the store has a feed."""
    triggers = "SELECT count(*) FROM sqlite_schema WHERE type = 'trigger' AND name IN (?, ?)"
    return bool(connection.execute(triggers, _TRIGGERS).fetchone()[0] == len(_TRIGGERS))


def is_off(connection: sqlite3.Connection) -> bool:
    """Return whether the store has nothing of a feed."""
    there = "SELECT 1 FROM sqlite_schema WHERE name IN ('changed_runs', ?, ?)"
    return connection.execute(there, _TRIGGERS).fetchone() is None


def turn_on(connection: sqlite3.Connection) -> None:
    """Create the feed, unless there is one."""
    if not is_on(connection):
        turn_off(connection)
        for statement in _STATEMENTS:
            connection.execute(statement)


def turn_off(connection: sqlite3.Connection) -> None:
    """Delete the feed."""
    for trigger in _TRIGGERS:
        connection.execute(f"DROP TRIGGER IF EXISTS {trigger}")
    connection.execute("DROP TABLE IF EXISTS changed_runs")


def start(connection: sqlite3.Connection) -> Position:
    """Return the position of an index that has no run yet."""
    newest = "SELECT id, trace_id FROM changed_runs ORDER BY id DESC LIMIT 1"
    change_id, trace_id = connection.execute(newest).fetchone()
    return Position(change_id, trace_id, 0)


def end(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return the numbers of the newest change and of the newest run."""
    sql = "SELECT (SELECT max(id) FROM changed_runs), (SELECT ifnull(max(id), 0) FROM runs)"
    change_id, run = connection.execute(sql).fetchone()
    return change_id, run


def is_of_store(connection: sqlite3.Connection, position: Position, is_read: Callable[[bytes], bool]) -> bool:
    """Return whether a position is one in this store, and in this state of it.

    is_read: returns whether the index has a run. Runs that were stored after an older copy of the store was put back
    have the numbers of those that the index read.
    """
    sql = (
        "SELECT max(id), (SELECT trace_id FROM changed_runs WHERE id = ?), (SELECT ifnull(max(id), 0) FROM runs),"
        # By its trace id, since a damaged run that is not found by it cannot be read either.
        " (SELECT trace_id FROM runs WHERE trace_id = (SELECT trace_id FROM runs WHERE id = ?)) FROM changed_runs"
    )
    newest, change_trace_id, last_run, trace_id = connection.execute(sql, (position.change_id, position.run)).fetchone()
    if change_trace_id != position.change_trace_id:
        return False
    if newest > position.change_id:
        return True  # the last run that was read may be gone
    return last_run >= position.run and (trace_id is None or is_read(trace_id))


def after(connection: sqlite3.Connection, position: Position, limit: int) -> dict[bytes, Position]:
    """Return some of the runs that have changed, by trace id; new ones once there are no others.

    Each has the position that is reached once it and all before it are read.
    """
    sql = "SELECT id, trace_id, last_run FROM changed_runs WHERE id > ? ORDER BY id LIMIT ?"
    changes = connection.execute(sql, (position.change_id, limit)).fetchall()
    if not changes:
        sql = "SELECT id, trace_id FROM runs WHERE id > ? ORDER BY id LIMIT ?"
        runs = connection.execute(sql, (position.run, limit))
        return {trace_id: position._replace(run=run) for run, trace_id in runs}
    found: dict[bytes, Position] = {}
    for change_id, trace_id, last_run in changes:
        # The number of a deleted run may be that of a new one.
        position = Position(change_id, trace_id, position.run if last_run is None else min(position.run, last_run))
        found.pop(trace_id, None)  # it is read once, behind all others that changed before it did last
        found[trace_id] = position
    return found


def lag(connection: sqlite3.Connection, position: Position) -> tuple[int, int | None]:
    """Return how many runs have changed or are new, about, and when the first of them that is still there was stored.

    The time is in nanoseconds since 1970. New runs count by their numbers, of which some may be gone: counting them
    would take as long as they are many.
    """
    sql = (
        "SELECT (SELECT count(DISTINCT trace_id) FROM changed_runs WHERE id > ?1),"
        " (SELECT max(0, ifnull(max(id), 0) - ?2) FROM runs),"
        " (SELECT min(written_at) FROM runs WHERE trace_id IN"
        " (SELECT trace_id FROM changed_runs WHERE id > ?1 ORDER BY id LIMIT ?3)),"
        " (SELECT written_at FROM runs WHERE id > ?2 ORDER BY id LIMIT 1)"
    )
    changed, new, *stored = connection.execute(sql, (position.change_id, position.run, _DATED)).fetchone()
    return changed + new, min((time for time in stored if time is not None), default=None)


def has_many_before(connection: sqlite3.Connection, position: Position) -> bool:
    """Return whether there are many changes to delete before a position."""
    (oldest,) = connection.execute("SELECT min(id) FROM changed_runs").fetchone()
    return bool(position.change_id - oldest > _KEPT)


def add(connection: sqlite3.Connection, trace_id: bytes) -> None:
    """Let a run be read again."""
    connection.execute("INSERT INTO changed_runs (trace_id) VALUES (?)", (trace_id,))


def delete_before(connection: sqlite3.Connection, change_id: int) -> bool:
    """Delete some of the changes before one; return whether there may be more."""
    sql = "DELETE FROM changed_runs WHERE id IN (SELECT id FROM changed_runs WHERE id < ? ORDER BY id LIMIT ?)"
    return connection.execute(sql, (change_id, _DELETED)).rowcount == _DELETED
