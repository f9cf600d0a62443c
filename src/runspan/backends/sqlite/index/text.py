"""The text index: which runs may contain a text.

It has a full-text table for each calendar month (UTC) of the runs' times, with the trigrams of each run. Tables are
dropped as a whole, and rows never change: the row of a run that was deleted, or has changed since, is a candidate that
the document does not confirm.

Rows are numbered in order of arrival: of each trigram, the index stores the distances between its rows, and these are
one byte where the numbers are dense. Numbers by time would take three times the space.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from heapq import heappop, heappush
from itertools import accumulate
from typing import Final

from runspan.codec.full_text import fold, searchable_text
from runspan.model.document import Run

_MONTH_BITS: Final = 32
"""Bits of the number of a row within its month; those above are the months since 1970."""
_BLOCK_BITS: Final = 8
_MONTH_BLOCK_BITS: Final = _MONTH_BITS - _BLOCK_BITS
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
    " WHERE {0} MATCH ? AND {0}.rowid BETWEEN ? AND ? ORDER BY {0}.rowid DESC"
)


def add(connection: sqlite3.Connection, rowid: int, run: Run) -> None:
    """Add a run. ``rowid``: its id in ``indexed_runs``, about its time in milliseconds since 1970."""
    month = _month_of(rowid)
    table, first = _table(month), month << _MONTH_BITS
    (last,) = connection.execute(_LAST_ROW, (first, first + (1 << _MONTH_BITS))).fetchone()
    if last is None and not _exists(connection, table):
        connection.execute(_CREATE.format(table))
        connection.execute(_HASH_SIZE.format(table))
    row = first if last is None else last + 1
    text = _indexable(searchable_text(run))
    connection.execute(f"INSERT INTO {table} (rowid, content) VALUES (?, ?)", (row, text))  # noqa: S608 our own name
    connection.execute(_ADD_ROW, (row, rowid))
    connection.execute(_ADD_TO_BLOCK, (row >> _BLOCK_BITS, rowid, rowid))


def candidates(connection: sqlite3.Connection, text: str, before_rowid: int) -> Iterator[int]:
    """Yield the ids of runs that may contain a text, each once, the greatest first.

    Every run that was added and contains the text is among them. Others are too: those that have its trigrams in other
    places, and those that were deleted or contained it before they changed.

    ``text``: at least ``full_text.MIN_TEXT`` characters. ``before_rowid``: only ids less than it.
    """
    match = _conjunction(text)
    months: dict[int, list[tuple[int, int, int]]] = {}
    for block in connection.execute("SELECT block, least, greatest FROM text_blocks ORDER BY block"):
        months.setdefault(block[0] >> _MONTH_BLOCK_BITS, []).append(block)
    last = before_rowid
    for month, blocks in sorted(months.items(), reverse=True):
        for run in _of_month(connection, _table(month), blocks, match, before_rowid):
            if run < last:
                last = run
                yield run


def drop_before(connection: sqlite3.Connection, time_ms: int) -> None:
    """Drop the months that ended before a time, in milliseconds since 1970."""
    month = _month_of(time_ms)
    past = "SELECT DISTINCT block >> ? FROM text_blocks WHERE block < ?"
    for (found,) in connection.execute(past, (_MONTH_BLOCK_BITS, month << _MONTH_BLOCK_BITS)).fetchall():
        connection.execute(f"DROP TABLE {_table(found)}")
    connection.execute("DELETE FROM text_blocks WHERE block < ?", (month << _MONTH_BLOCK_BITS,))
    connection.execute("DELETE FROM text_rows WHERE id < ?", (month << _MONTH_BITS,))


def _of_month(
    connection: sqlite3.Connection, table: str, blocks: list[tuple[int, int, int]], match: str, before: int
) -> Iterator[int]:
    """Yield the candidates of a month, the greatest first."""
    usable = [block for block, least, _ in blocks if least < before]
    if not usable:
        return
    greatest = accumulate([greatest for _, _, greatest in blocks], max)
    greatest_until = dict(zip([block for block, _, _ in blocks], greatest, strict=True))
    found: list[int] = []
    """Negative ids, as a heap: they wait for greater ones that may follow."""
    rows = connection.execute(
        _FIND.format(table), (match, usable[0] << _BLOCK_BITS, (usable[-1] + 1 << _BLOCK_BITS) - 1)
    )
    block = usable[-1]
    for row, run in rows:
        if row >> _BLOCK_BITS < block:
            block = row >> _BLOCK_BITS
            while found and -found[0] > greatest_until[block]:
                yield -heappop(found)
        if run < before:
            heappush(found, -run)
    while found:
        yield -heappop(found)


def _month_of(milliseconds: int) -> int:
    moment = datetime.fromtimestamp(milliseconds // 1000, UTC)
    return (moment.year - 1970) * 12 + moment.month - 1


def _table(month: int) -> str:
    return f"text_{1970 + month // 12:04}_{month % 12 + 1:02}"


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
