"""Check the index: whether its rows are those that its facts say, and its runs those of the store."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import Final

from runspan.backends.sqlite.index import feed
from runspan.backends.sqlite.index.facts_index import columns_of, unpack, values_of
from runspan.backends.sqlite.index.feed import Position
from runspan.storage.sqlite_file import READ_ERRORS, integrity_faults

_MAX_FAULTS: Final = 3
_ROWS: Final = """
    SELECT runs.id, run_id, tenant, facts, duration, cost, (SELECT name FROM names WHERE id = workflow_id),
    (SELECT name FROM names WHERE id = status), (SELECT name FROM names WHERE id = trigger_type),
    (SELECT name FROM names WHERE id = error_code)
    FROM indexed_runs AS runs LEFT JOIN counted_facts ON counted_facts.id = runs.id
"""
_VALUE: Final = """
    SELECT 1 FROM run_values WHERE tenant = ? AND kind = ? AND value = (SELECT id FROM names WHERE name = ?) AND run = ?
"""
_WITHOUT_TEXT: Final = """
    SELECT 1 FROM indexed_runs LEFT JOIN text_rows ON text_rows.id = text_row
    WHERE text_row IS NOT NULL AND run IS NOT indexed_runs.id
"""
_STORED: Final = "SELECT trace_id, run_id, tenant, time FROM runs ORDER BY trace_id"
_INDEXED: Final = """
    SELECT trace_id, run_id, (SELECT name FROM names WHERE id = tenant), time FROM indexed_runs
    UNION ALL SELECT trace_id, run_id, NULL, NULL FROM damaged_runs ORDER BY trace_id
"""


def find_faults(path: Path, index: sqlite3.Connection, store: sqlite3.Connection) -> list[str]:
    """Return some of what is damaged in an index; nothing if it is sound.

    The connections must be in autocommit mode. Runs that the index has not read yet are not missing.
    """
    if faults := integrity_faults(path):
        return faults[:_MAX_FAULTS]
    try:
        index.execute("BEGIN")
        store.execute("BEGIN")
        return list(islice(_faults(index, store), _MAX_FAULTS))
    except READ_ERRORS as error:
        return [str(error)]
    finally:
        for connection in (index, store):
            if connection.in_transaction:
                connection.execute("ROLLBACK")


def _faults(index: sqlite3.Connection, store: sqlite3.Connection) -> Iterator[str]:
    count = 0
    for row_id, run_id, tenant, packed, *columns in index.execute(_ROWS):
        facts = unpack(packed)
        values = list(values_of(facts))
        count += len(values)
        are_found = all(index.execute(_VALUE, (tenant, *value, row_id)).fetchone() for value in values)
        if tuple(columns) != columns_of(facts) or not are_found:
            yield f"run {run_id.decode(errors='replace')}: its columns are not those of its facts"
    if index.execute(_WITHOUT_TEXT).fetchone() is not None:
        yield "it has no text of a run"
    if index.execute("SELECT count(*) FROM run_values").fetchone()[0] != count:
        yield "it has values of no run"
    row = index.execute("SELECT change_id, change_trace_id, run FROM progress").fetchone()
    position = None if row is None else Position(*row)
    if position is None or not feed.is_on(store) or feed.end(store) != (position.change_id, position.run):
        return
    for stored, indexed in zip_longest(store.execute(_STORED), index.execute(_INDEXED)):
        is_same = stored is not None and indexed is not None and stored[:2] == indexed[:2]
        if not is_same or (indexed[2] is not None and stored[2:] != indexed[2:]):
            yield "its runs are not those of the store"
            return
