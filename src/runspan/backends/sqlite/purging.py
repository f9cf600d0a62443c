"""Deleting runs that somebody keeps elsewhere: each only while what is stored is exactly what that copy holds."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from runspan.backends.sqlite.tables import with_fragments
from runspan.ids import run_ids

_DIGEST = "SELECT id, digest, incomplete IS NOT NULL FROM runs WHERE trace_id = ?"


class Purged(NamedTuple):
    """deleted: runs. changed: ids of those that stay. gone: runs that were not there. spans: foreign ones deleted."""

    deleted: int
    changed: tuple[str, ...]
    gone: int
    spans: int


def purge(connection: sqlite3.Connection, items: Sequence[tuple[bytes, str]], tenant: str) -> Purged:
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
    return Purged(deleted, tuple(changed), gone, spans)
