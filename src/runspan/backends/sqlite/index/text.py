"""The text index: which runs may contain a text.

It has a full-text table for each week (UTC) of the runs' times, with the trigrams of each run. A row cannot be deleted
from such a table without the text that it had, which is gone with the run. So the rows that are left are moved to a
second table of the week, from the documents of their runs, and the first one is dropped (``leave_tables``).

Rows are numbered in order of arrival: of each trigram, the index stores the distances between its rows, and these are
one byte where the numbers are dense. Numbers by time would take three times the space.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import date, timedelta
from heapq import merge
from itertools import accumulate
from typing import Final

from runspan.codec.full_text import fold

_WEEK: Final = 7 * 86_400_000
_FIRST_MONDAY: Final = date(1969, 12, 29)
_WEEKS: Final = range(1565, 4175)
"""From 2000 to 2050; earlier and later runs are in the first and the last one, so that tables are not too many."""
_TABLE_BITS: Final = 32
"""Bits of the number of a row within its table; those above are the number of the table: twice the weeks since the
first Monday, and one more for the second table of a week."""
_BLOCK_BITS: Final = 8
_TABLE_BLOCK_BITS: Final = _TABLE_BITS - _BLOCK_BITS
_CREATE: Final = (
    "CREATE VIRTUAL TABLE {} USING fts5"
    " (content, content = '', columnsize = 0, detail = none, tokenize = 'trigram case_sensitive 1')"
)
"""Texts are folded before: the index and what confirms its candidates agree about the case of every letter."""
_HASH_SIZE: Final = "INSERT INTO {0} ({0}, rank) VALUES ('hashsize', 8388608)"
"""Bytes of new entries in memory before they become a segment of the index."""
_OPEN_TABLE: Final = "SELECT id, rows FROM text_tables WHERE id IN (?, ?) AND NOT is_left"
_FREE_TABLE: Final = "SELECT NOT EXISTS (SELECT 1 FROM text_tables WHERE id = ?)"
_ADD_ROW: Final = "INSERT INTO text_rows VALUES (?, ?)"
_ADD_TO_BLOCK: Final = (
    "INSERT INTO text_blocks VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET"
    " least = min(least, excluded.least), greatest = max(greatest, excluded.greatest)"
)
_FIND: Final = (
    "SELECT id, run FROM {0} CROSS JOIN text_rows ON id = {0}.rowid"
    " WHERE {0} MATCH ? AND {0}.rowid BETWEEN ? AND ? AND run < ? ORDER BY {0}.rowid DESC"
)


def add(connection: sqlite3.Connection, run: int, text: str) -> int:
    """Add a run; return its row.

    ``run``: its id in ``indexed_runs``, about its time in milliseconds since 1970. ``text``: see ``searchable_text``.
    """
    first = 2 * _week_of(run)
    table, rows = connection.execute(_OPEN_TABLE, (first, first + 1)).fetchone() or (None, 0)
    if table is None:
        (is_free,) = connection.execute(_FREE_TABLE, (first,)).fetchone()
        table = first if is_free else first + 1
        connection.execute(_CREATE.format(_name(table)))
        connection.execute(_HASH_SIZE.format(_name(table)))
        connection.execute("INSERT INTO text_tables VALUES (?, 0, FALSE, FALSE)", (table,))
    row = (table << _TABLE_BITS) + int(rows)
    add_text = f"INSERT INTO {_name(table)} (rowid, content) VALUES (?, ?)"  # noqa: S608 our own name
    connection.execute(add_text, (row, _indexable(text)))
    connection.execute("UPDATE text_tables SET rows = rows + 1 WHERE id = ?", (table,))
    connection.execute(_ADD_ROW, (row, run))
    connection.execute(_ADD_TO_BLOCK, (row >> _BLOCK_BITS, run, run))
    return row


def remove(connection: sqlite3.Connection, row: int) -> None:
    """Remove a row from the candidates. Its text is gone once its table is, see ``leave_tables``."""
    table = row >> _TABLE_BITS
    connection.execute("DELETE FROM text_rows WHERE id = ?", (row,))
    connection.execute("UPDATE text_tables SET has_removed = TRUE WHERE id = ?", (table,))
    if not _rows(connection, table, 1):
        _drop(connection, table)


def leave_tables(connection: sqlite3.Connection) -> bool:
    """Let the rows be moved from tables that have texts of runs that are gone; return whether there are any.

    Called once no table is left: a week has two at most.
    """
    return connection.execute("UPDATE text_tables SET is_left = TRUE WHERE has_removed").rowcount > 0


def is_any_left(connection: sqlite3.Connection) -> bool:
    """Return whether there is a table whose rows are to be moved."""
    return connection.execute("SELECT 1 FROM text_tables WHERE is_left").fetchone() is not None


def rows_to_move(connection: sqlite3.Connection, limit: int) -> list[tuple[int, int]]:
    """Return some rows of tables that are left, and their runs. Each is to be removed, and its run added again.

    Drop the tables that have none.
    """
    for (table,) in connection.execute("SELECT id FROM text_tables WHERE is_left").fetchall():
        if rows := _rows(connection, table, limit):
            return rows
        _drop(connection, table)
    return []


def candidates(connection: sqlite3.Connection, text: str, before_rowid: int) -> Iterator[int]:
    """Yield the ids of runs that may contain a text, each once, the greatest first.

    Every run that was added and contains the text is among them. Others are too: those that have its trigrams in other
    places.

    ``text``: at least ``full_text.MIN_TEXT`` characters. ``before_rowid``: only ids less than it.
    """
    match = _conjunction(text)
    weeks: dict[int, dict[int, list[tuple[int, int, int]]]] = {}
    for block in connection.execute("SELECT block, least, greatest FROM text_blocks ORDER BY block"):
        table = block[0] >> _TABLE_BLOCK_BITS
        weeks.setdefault(table // 2, {}).setdefault(table, []).append(block)
    last = before_rowid
    for _, tables in sorted(weeks.items(), reverse=True):
        found = [_of_table(connection, _name(table), tables[table], match, before_rowid) for table in tables]
        for run in merge(*found, reverse=True):
            if run < last:
                last = run
                yield run


def _of_table(
    connection: sqlite3.Connection, table: str, blocks: list[tuple[int, int, int]], match: str, before: int
) -> Iterator[int]:
    """Yield the candidates of a table, the greatest first."""
    usable = [block for block, least, _ in blocks if least < before]
    if not usable:
        return
    greatest = accumulate([greatest for _, _, greatest in blocks], max)
    greatest_until = dict(zip([block for block, _, _ in blocks], greatest, strict=True))
    found: list[int] = []
    """Ids that wait for greater ones, which may follow."""
    greatest_found = 0
    block = usable[-1]
    rows = (match, usable[0] << _BLOCK_BITS, (block + 1 << _BLOCK_BITS) - 1, before)
    for row, run in connection.execute(_FIND.format(table), rows):
        if row >> _BLOCK_BITS < block:
            block = row >> _BLOCK_BITS
            if greatest_found > greatest_until[block]:
                found.sort()
                while found and found[-1] > greatest_until[block]:
                    yield found.pop()
                greatest_found = found[-1] if found else 0
        found.append(run)
        greatest_found = max(greatest_found, run)
    yield from sorted(found, reverse=True)


def _week_of(milliseconds: int) -> int:
    week = (milliseconds + 3 * _WEEK // 7) // _WEEK  # 1970 began on a Thursday
    return min(max(week, _WEEKS[0]), _WEEKS[-1])


def _rows(connection: sqlite3.Connection, table: int, limit: int) -> list[tuple[int, int]]:
    sql = "SELECT id, run FROM text_rows WHERE id >= ? AND id < ? ORDER BY id LIMIT ?"
    return connection.execute(sql, (table << _TABLE_BITS, table + 1 << _TABLE_BITS, limit)).fetchall()


def _drop(connection: sqlite3.Connection, table: int) -> None:
    connection.execute(f"DROP TABLE {_name(table)}")
    connection.execute("DELETE FROM text_tables WHERE id = ?", (table,))
    blocks = (table << _TABLE_BLOCK_BITS, table + 1 << _TABLE_BLOCK_BITS)
    connection.execute("DELETE FROM text_blocks WHERE block >= ? AND block < ?", blocks)


def _name(table: int) -> str:
    return f"text_{_FIRST_MONDAY + timedelta(weeks=table // 2):%Y_%m_%d}{'_b' * (table % 2)}"


def _indexable(text: str) -> str:
    """Return a text that SQLite takes as a whole: UTF-8, without the character that ends a text in C."""
    return text.replace("\0", "\ufffd").encode(errors="replace").decode()


def _conjunction(text: str) -> str:
    """Return the query of FTS5 for rows that have all trigrams of a text."""
    indexed = _indexable(fold(text))
    trigrams = dict.fromkeys(indexed[start : start + 3] for start in range(len(indexed) - 2))
    return " AND ".join(['"' + trigram.replace('"', '""') + '"' for trigram in trigrams])
