"""The statements that write and look up rows, for many at once: what is there already is usually nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from hashlib import sha256
from typing import Any, NamedTuple, TypeVar

from runspan.backends.sqlite.rows import Row, bytes_to_lines, fingerprint, lines_to_bytes, pack_span, unpack_span
from runspan.codec.fields import ROLE
from runspan.model.span import Span
from runspan.otlp.protobuf_reader import ForeignSpan

T = TypeVar("T")

_SIZES = (64, 8, 1)
"""How many ids a look-up takes: few forms, so that each is prepared once."""


class RevisionState(NamedTuple):
    """Which revision of a run is stored. step_ids: the column."""

    revision: int
    digest: bytes
    step_ids: bytes | None


class StoredRow(NamedTuple):
    """A stored run as its columns tell it, the document still compressed. step_ids: the column."""

    run_id: str
    tenant: str
    revision: int
    digest: bytes
    document: bytes
    step_ids: bytes | None
    incomplete: tuple[str, ...]
    resource_id: int | None


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    at = 0
    for size in _SIZES:
        while len(items) - at >= size:
            yield items[at : at + size]
            at += size


_NAMES = ", ".join(Row._fields)
_NEWER = {
    # What was seen of a run stays seen, however the revisions of several senders interleave.
    "observed_at": "iif(excluded.observed_at < runs.observed_at, runs.observed_at, excluded.observed_at)",
}
_UPDATES = ", ".join(f"{name} = {_NEWER.get(name, f'excluded.{name}')}" for name in Row._fields if name != "trace_id")
_INSERT = f"INSERT INTO runs ({_NAMES}) VALUES ({', '.join('?' * len(Row._fields))})"  # noqa: S608 only names and marks
_UPSERT = f"{_INSERT} ON CONFLICT (trace_id) DO UPDATE SET {_UPDATES}"


@cache
def _in_sql(select: str, count: int) -> str:
    return f"{select} IN ({', '.join('?' * count)})"


def upsert(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Writes rows, in place of what is stored of their traces."""
    connection.executemany(_UPSERT, rows)


def seen_again(connection: sqlite3.Connection, trace_id: bytes, revision: int, observed_at: int, now: int) -> None:
    """A run that has not ended was seen again as it is stored. revision: which the stored one is now."""
    connection.execute(
        "UPDATE runs SET written_at = ?1, ended = ?1, observed_at = max(observed_at, ?2), revision = ?3,"
        " superseded = iif(revision = ?3, superseded, NULL) WHERE trace_id = ?4",
        (now, observed_at, revision, trace_id),
    )


def mark_incomplete(
    connection: sqlite3.Connection, trace_id: bytes, incomplete: tuple[str, ...], ended: int, now: int
) -> None:
    """What is missing of newer revisions than the stored one, and when retention begins to count."""
    connection.execute(
        "UPDATE runs SET incomplete = ?, ended = ?, written_at = ? WHERE trace_id = ?",
        (lines_to_bytes(incomplete), ended, now, trace_id),
    )


def superseded(connection: sqlite3.Connection, trace_id: bytes) -> bytes | None:
    """The column of that name of a stored run."""
    row = connection.execute("SELECT superseded FROM runs WHERE trace_id = ?", (trace_id,)).fetchone()
    return None if row is None else row[0]


def states(connection: sqlite3.Connection, trace_ids: Sequence[bytes]) -> dict[bytes, RevisionState]:
    """The stored revisions of these traces; traces without a run are left out."""
    found: dict[bytes, RevisionState] = {}
    for chunk in _chunks(trace_ids):
        sql = _in_sql("SELECT trace_id, revision, digest, step_ids FROM runs WHERE trace_id", len(chunk))
        for trace_id, *columns in connection.execute(sql, chunk):
            found[trace_id] = RevisionState(*columns)
    return found


def with_fragments(connection: sqlite3.Connection, trace_ids: Sequence[bytes], tenant: str) -> set[bytes]:
    """Those of these traces that have fragments of this tenant."""
    found: set[bytes] = set()
    for chunk in _chunks(trace_ids):
        sql = _in_sql("SELECT DISTINCT trace_id FROM fragments WHERE tenant = ? AND trace_id", len(chunk))
        found.update([trace_id for (trace_id,) in connection.execute(sql, (tenant.encode(), *chunk))])
    return found


def stored_run(connection: sqlite3.Connection, trace_id: bytes) -> StoredRow | None:
    """The run of a trace."""
    row = connection.execute(
        "SELECT run_id, tenant, revision, digest, document, step_ids, incomplete, resource_id"
        " FROM runs WHERE trace_id = ?",
        (trace_id,),
    ).fetchone()
    if row is None:
        return None
    run_id, tenant, revision, digest, document, step_ids, incomplete, resource_id = row
    return StoredRow(
        run_id.decode(),
        tenant.decode(),
        revision,
        digest,
        document,
        step_ids,
        bytes_to_lines(incomplete),
        resource_id,
    )


def resource_number(connection: sqlite3.Connection, content: bytes) -> int:
    """The id of a resource, which is stored once."""
    connection.execute("INSERT OR IGNORE INTO resources (content) VALUES (?)", (content,))
    number: int = connection.execute("SELECT id FROM resources WHERE content = ?", (content,)).fetchone()[0]
    return number


# Fragments.


def fragments(connection: sqlite3.Connection, trace_id: bytes, tenant: str) -> list[Span]:
    """The fragments of a trace in order of arrival."""
    rows = connection.execute(
        "SELECT span FROM fragments WHERE trace_id = ? AND tenant = ? ORDER BY id", (trace_id, tenant.encode())
    )
    return [unpack_span(content) for (content,) in rows]


def all_fragments(connection: sqlite3.Connection, trace_id: bytes, tenant: str | None) -> list[Span]:
    """The fragments of a trace; of every tenant without one."""
    rows = connection.execute("SELECT tenant, span FROM fragments WHERE trace_id = ? ORDER BY id", (trace_id,))
    return [unpack_span(span) for owner, span in rows if tenant is None or owner == tenant.encode()]


def revision_spans(connection: sqlite3.Connection, trace_id: bytes, tenant: str) -> list[Span]:
    """The heads among the fragments of a trace."""
    rows = connection.execute(
        "SELECT span FROM fragments WHERE trace_id = ? AND tenant = ? AND head", (trace_id, tenant.encode())
    )
    return [unpack_span(content) for (content,) in rows]


def count_steps(connection: sqlite3.Connection, trace_id: bytes, tenant: str) -> int:
    """How many of the fragments of a trace are steps."""
    sql = "SELECT count(*) FROM fragments WHERE trace_id = ? AND tenant = ? AND NOT head"
    return int(connection.execute(sql, (trace_id, tenant.encode())).fetchone()[0])


def insert_fragments(
    connection: sqlite3.Connection, spans: Iterable[Span], tenant: str, heads: frozenset[str], now: int
) -> None:
    """Keeps fragments. One that is there already counts as arrived anew."""
    connection.executemany(
        "INSERT OR REPLACE INTO fragments (trace_id, tenant, fingerprint, head, received_at, span)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        [
            (
                span.trace_id,
                tenant.encode(),
                fingerprint(span),
                span.attributes().get(ROLE) in heads,
                now,
                pack_span(span),
            )
            for span in spans
        ],
    )


def delete_fragments(connection: sqlite3.Connection, spans: Iterable[Span], tenant: str) -> None:
    """Forgets fragments."""
    connection.executemany(
        "DELETE FROM fragments WHERE trace_id = ? AND tenant = ? AND fingerprint = ?",
        [(span.trace_id, tenant.encode(), fingerprint(span)) for span in spans],
    )


# Foreign spans.


def foreign_row(item: ForeignSpan, tenant: str, now: int, compressed: bytes) -> tuple[Any, ...]:
    """The row of a foreign span. Its digest tells two versions of one span apart and keeps one of equal ones."""
    return (item.trace_id, tenant.encode(), item.span_id, sha256(item.otlp).digest()[:16], now, compressed)


def insert_foreign(connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Keeps foreign spans; those that are there already change nothing."""
    columns = "trace_id, tenant, span_id, digest, received_at, otlp"
    insert = f"INSERT OR IGNORE INTO foreign_spans ({columns}) VALUES (?, ?, ?, ?, ?, ?)"  # noqa: S608 only names
    connection.executemany(insert, rows)


def foreign_of(connection: sqlite3.Connection, trace_id: bytes, tenant: str | None) -> list[bytes]:
    """The foreign spans of a trace, compressed; of every tenant without one."""
    rows = connection.execute("SELECT tenant, otlp FROM foreign_spans WHERE trace_id = ? ORDER BY id", (trace_id,))
    return [otlp for owner, otlp in rows if tenant is None or owner == tenant.encode()]
