"""The feed of changed runs, a table of the store that triggers fill and the index reads."""

from __future__ import annotations

import sqlite3
from typing import Final, NamedTuple

from runspan.storage.sqlite_file import read_statements

_STATEMENTS: Final = read_statements(__package__, "feed.sql")
_TRIGGERS: Final = ("run_added", "run_changed", "run_removed")
_DELETED: Final = 5000
"""Rows of one transaction."""


class Change(NamedTuple):
    """A row of the feed."""

    id: int
    trace_id: bytes


def is_on(connection: sqlite3.Connection) -> bool:
    """Return whether the store has a feed."""
    triggers = "SELECT count(*) FROM sqlite_schema WHERE type = 'trigger' AND name IN (?, ?, ?)"
    return bool(connection.execute(triggers, _TRIGGERS).fetchone()[0] == len(_TRIGGERS))


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


def last(connection: sqlite3.Connection) -> Change:
    """Return the newest change."""
    return Change(*connection.execute("SELECT id, trace_id FROM changed_runs ORDER BY id DESC LIMIT 1").fetchone())


def has(connection: sqlite3.Connection, change: Change) -> bool:
    """Return whether the feed has this very row."""
    sql = "SELECT 1 FROM changed_runs WHERE id = ? AND trace_id = ?"
    return connection.execute(sql, change).fetchone() is not None


def after(connection: sqlite3.Connection, number: int, limit: int) -> list[Change]:
    """Return the changes after one, in their order."""
    sql = "SELECT id, trace_id FROM changed_runs WHERE id > ? ORDER BY id LIMIT ?"
    return [Change(*row) for row in connection.execute(sql, (number, limit))]


def add(connection: sqlite3.Connection, trace_id: bytes) -> None:
    """Let a run be read again."""
    connection.execute("INSERT INTO changed_runs (trace_id) VALUES (?)", (trace_id,))


def delete_before(connection: sqlite3.Connection, number: int) -> bool:
    """Delete some of the changes before one; return whether there may be more."""
    sql = "DELETE FROM changed_runs WHERE id IN (SELECT id FROM changed_runs WHERE id < ? ORDER BY id LIMIT ?)"
    return connection.execute(sql, (number, _DELETED)).rowcount == _DELETED
