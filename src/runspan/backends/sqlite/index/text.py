"""The text index: which runs may contain a text.

It has a full-text table for each week (UTC) of the runs' times, with the trigrams of each run. Tables are dropped as a
whole, and rows never change: the row of a run that was deleted, or has changed since, is a candidate that the document
does not confirm.

Rows are numbered in order of arrival: of each trigram, the index stores the distances between its rows, and these are
one byte where the numbers are dense. Numbers by time would take three times the space.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import date, timedelta
from itertools import accumulate
from typing import Final

from runspan.codec.full_text import fold

_WEEK: Final = 7 * 86_400_000
_FIRST_MONDAY: Final = date(1969, 12, 29)
_WEEKS: Final = range(1565, 4175)
"""From 2000 to 2050; earlier and later runs are in the first and the last one, so that tables are not too many."""
_WEEK_BITS: Final = 32
"""Bits of the number of a row within its week; those above are the weeks since the first Monday."""
_BLOCK_BITS: Final = 8
_WEEK_BLOCK_BITS: Final = _WEEK_BITS - _BLOCK_BITS
_CREATE: Final = (
    "CREATE VIRTUAL TABLE {} USING fts5"
    " (content, content = '', columnsize = 0, detail = none, tokenize = 'trigram case_sensitive 1')"
)
"""Texts are folded before: the index and what confirms its candidates agree about the case of every letter."""
_HASH_SIZE: Final = "INSERT INTO {0} ({0}, rank) VALUES ('hashsize', 8388608)"
"""Bytes of new entries in memory before they become a segment of the index."""
_LAST_ROW: Final = "SELECT max(id) FROM text_rows WHERE id >= ? AND id < ?"
_ADD_ROW: Final = "INSERT INTO text_rows VALUES (?, ?)"
_ADD_TO_BLOCK: Final = (
    "INSERT INTO text_blocks VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET"
    " least = min(least, excluded.least), greatest = max(greatest, excluded.greatest)"
)
_FIND: Final = (
    "SELECT id, run FROM {0} CROSS JOIN text_rows ON id = {0}.rowid"
    " WHERE {0} MATCH ? AND {0}.rowid BETWEEN ? AND ? AND run < ? ORDER BY {0}.rowid DESC"
)


def add(connection: sqlite3.Connection, rowid: int, text: str) -> None:
    """Add a run.

    ``rowid``: its id in ``indexed_runs``, about its time in milliseconds since 1970. ``text``: see ``searchable_text``.
    """
    week = _week_of(rowid)
    table, first = _table(week), week << _WEEK_BITS
    (last,) = connection.execute(_LAST_ROW, (first, first + (1 << _WEEK_BITS))).fetchone()
    if last is None and not _exists(connection, table):
        connection.execute(_CREATE.format(table))
        connection.execute(_HASH_SIZE.format(table))
    row = first if last is None else last + 1
    add_text = f"INSERT INTO {table} (rowid, content) VALUES (?, ?)"  # noqa: S608 our own name
    connection.execute(add_text, (row, _indexable(text)))
    connection.execute(_ADD_ROW, (row, rowid))
    connection.execute(_ADD_TO_BLOCK, (row >> _BLOCK_BITS, rowid, rowid))


def candidates(connection: sqlite3.Connection, text: str, before_rowid: int) -> Iterator[int]:
    """Yield the ids of runs that may contain a text, each once, the greatest first.

    Every run that was added and contains the text is among them. Others are too: those that have its trigrams in other
    places, and those that were deleted or contained it before they changed.

    ``text``: at least ``full_text.MIN_TEXT`` characters. ``before_rowid``: only ids less than it.
    """
    match = _conjunction(text)
    weeks: dict[int, list[tuple[int, int, int]]] = {}
    for block in connection.execute("SELECT block, least, greatest FROM text_blocks ORDER BY block"):
        weeks.setdefault(block[0] >> _WEEK_BLOCK_BITS, []).append(block)
    last = before_rowid
    for week, blocks in sorted(weeks.items(), reverse=True):
        for run in _of_week(connection, _table(week), blocks, match, before_rowid):
            if run < last:
                last = run
                yield run


def drop_before(connection: sqlite3.Connection, time_ms: int) -> None:
    """Drop the weeks that ended before a time, in milliseconds since 1970."""
    week = _week_of(time_ms)
    past = "SELECT DISTINCT block >> ? FROM text_blocks WHERE block < ?"
    for (found,) in connection.execute(past, (_WEEK_BLOCK_BITS, week << _WEEK_BLOCK_BITS)).fetchall():
        connection.execute(f"DROP TABLE {_table(found)}")
    connection.execute("DELETE FROM text_blocks WHERE block < ?", (week << _WEEK_BLOCK_BITS,))
    connection.execute("DELETE FROM text_rows WHERE id < ?", (week << _WEEK_BITS,))


def _of_week(
    connection: sqlite3.Connection, table: str, blocks: list[tuple[int, int, int]], match: str, before: int
) -> Iterator[int]:
    """Yield the candidates of a week, the greatest first."""
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


def _table(week: int) -> str:
    return f"text_{_FIRST_MONDAY + timedelta(weeks=week):%Y_%m_%d}"


def _exists(connection: sqlite3.Connection, table: str) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (table,)).fetchone() is not None


def _indexable(text: str) -> str:
    """Return a text that SQLite takes as a whole: UTF-8, without the character that ends a text in C."""
    return text.replace("\0", "\ufffd").encode(errors="replace").decode()


def _conjunction(text: str) -> str:
    """Return the query of FTS5 for rows that have all trigrams of a text."""
    indexed = _indexable(fold(text))
    trigrams = dict.fromkeys(indexed[start : start + 3] for start in range(len(indexed) - 2))
    return " AND ".join(['"' + trigram.replace('"', '""') + '"' for trigram in trigrams])
