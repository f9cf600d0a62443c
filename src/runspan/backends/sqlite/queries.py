"""The rows of the store's tables, and the statements that write them and look them up."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any, Final, NamedTuple

import msgspec

from runspan.codec.fields import ROLE, ROLE_REVISION, ROLE_RUN, observed_time
from runspan.model.document import LIVE_RUN_STATUSES, TERMINAL_RUN_STATUSES, Envelope, Run, sort_time, str_or_none
from runspan.model.span import Span, run_ids, to_plain
from runspan.model.timestamps import parse_ns
from runspan.otlp.protobuf_reader import ForeignSpan, read_spans
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes

REVISION_ROLES: Final = frozenset({ROLE_RUN, ROLE_REVISION})

_pack = msgspec.msgpack.Encoder().encode


# Runs.


class RunRow(NamedTuple):
    """The columns of a run, in the order in which statements name them. Text is UTF-8, so it sorts by code point."""

    trace_id: bytes
    tenant: bytes
    run_id: bytes
    workflow_id: bytes | None
    status: bytes | None
    time: int
    """The sort time, see ``contracts.RunQuery``."""
    ended: int
    """When retention begins to count, see ``retention_start``."""
    revision: int
    digest: bytes
    """The first half of the document's SHA-256, which distinguishes a changed document from the same."""
    summary: bytes
    document: bytes
    """The canonical text, compressed."""
    step_ids: bytes | None
    """See ``StoredRevision.packed_step_ids``."""
    incomplete: bytes | None
    """What is missing of a newer revision that is not proved, one line each; None without such a revision."""
    written_at: int
    resource_id: int | None
    observed_at: int | None
    """When a pending or running run was last observed; None for any other run."""
    superseded: bytes | None
    """The digests of earlier documents of this very revision, the latest last."""
    checksum: bytes
    """See ``summary_checksum``."""


class StoredRow(NamedTuple):
    """A stored run, its document still compressed."""

    run_id: str
    tenant: str
    incomplete: tuple[str, ...]
    revision: int
    digest: bytes
    document: bytes
    step_ids: bytes | None
    time: int
    superseded: bytes | None


_DIGEST_BYTES: Final = 16
_CHECKSUM_BYTES: Final = 8
_MAX_SUPERSEDED: Final = 32


def run_row(
    run: Run,
    tenant: str,
    revision: int,
    document: bytes,
    *,
    time: int,
    written_at: int,
    step_ids: bytes | None = None,
    incomplete: tuple[str, ...] = (),
) -> RunRow:
    """Return the row of a run. document: its text, compressed. time: that of ``StoredRevision``."""
    envelope, summary = run.envelope, run.summary()
    owner, run_id = tenant.encode(), envelope.id.encode()
    workflow_id, status = str_or_none(envelope.workflow_id), str_or_none(envelope.status)
    return RunRow(
        run_ids(envelope.id, tenant).trace_id,
        owner,
        run_id,
        None if workflow_id is None else workflow_id.encode(),
        None if status is None else status.encode(),
        time,
        retention_start(envelope, written_at),
        revision,
        sha256(run.text).digest()[:_DIGEST_BYTES],
        summary,
        document,
        step_ids,
        lines_to_bytes(incomplete),
        written_at,
        None,
        observed_time(revision) if status in LIVE_RUN_STATUSES else None,
        None,
        summary_checksum(owner, run_id, time, summary),
    )


def summary_checksum(tenant: bytes, run_id: bytes, time: int, summary: bytes) -> bytes:
    """Return 8 bytes that prove what a list shows of a run: whose it is, its place in the list and its summary."""
    return checksum(tenant, run_id, time, summary)


def checksum(*values: object) -> bytes:
    """Return 8 bytes that prove values of a row."""
    return sha256(_pack(values)).digest()[:_CHECKSUM_BYTES]


def run_checksum(row: RunRow) -> bytes:
    """Return the column ``row_checksum`` of a run: it proves the columns that neither document nor index has too."""
    return checksum(row.revision, row.step_ids, row.incomplete, row.superseded, row.written_at, row.resource_id)


def retention_start(envelope: Envelope, written_at: int) -> int:
    """Return when retention begins to count: at the end of a run that has ended, else when it was written.

    A run may wait for an approval longer than the retention period, and must still be stored when it goes on.
    """
    if str_or_none(envelope.status) not in TERMINAL_RUN_STATUSES:
        return written_at
    completed = str_or_none(envelope.completed_at)
    return (completed and parse_ns(completed)) or sort_time(envelope) or written_at


def split_digests(superseded: bytes | None) -> list[bytes]:
    """Return the digests in the column ``superseded``."""
    content = superseded or b""
    return [content[start : start + _DIGEST_BYTES] for start in range(0, len(content), _DIGEST_BYTES)]


def add_digest(superseded: bytes | None, digest: bytes) -> bytes:
    """Return the column ``superseded`` with one more digest; only the latest are kept."""
    return b"".join([*[found for found in split_digests(superseded) if found != digest], digest][-_MAX_SUPERSEDED:])


def conflicting_digests(superseded: bytes | None, digest: bytes) -> tuple[str, ...]:
    """Return the digests of other documents that arrived as the revision of the stored one, in hex."""
    return tuple([found.hex() for found in split_digests(superseded) if found != digest])


def lines_to_bytes(lines: tuple[str, ...]) -> bytes | None:
    """Return the column ``incomplete``."""
    return "\n".join(line.replace("\n", " ") for line in lines).encode() if lines else None


def bytes_to_lines(content: bytes | None) -> tuple[str, ...]:
    """Return the lines in the column ``incomplete``."""
    return tuple(content.decode().split("\n")) if content else ()


_COLUMNS: Final = ", ".join(RunRow._fields)
_INSERT: Final = f"INSERT INTO runs ({_COLUMNS}, row_checksum) VALUES ({', '.join('?' * len(RunRow._fields))}, ?)"  # noqa: S608 a constant
_UPDATES: Final = ", ".join(
    f"{name} = excluded.{name}" for name in (*RunRow._fields, "row_checksum") if name not in ("trace_id", "observed_at")
)
# An observation stays, however the revisions of several senders interleave.
_UPSERT: Final = f"""
    {_INSERT} ON CONFLICT (trace_id) DO UPDATE SET {_UPDATES},
    observed_at = iif(excluded.observed_at < runs.observed_at, runs.observed_at, excluded.observed_at)
"""


def upsert_runs(connection: sqlite3.Connection, rows: Sequence[RunRow]) -> None:
    """Write rows, in place of the stored runs of their traces."""
    connection.executemany(_UPSERT, [(*row, run_checksum(row)) for row in rows])


def update_observation(
    connection: sqlite3.Connection, trace_id: bytes, revision: int, observed_at: int, now: int
) -> None:
    """Record that an unfinished run was observed again as it is stored. revision: its revision from now on."""
    connection.execute(
        "UPDATE runs SET written_at = ?1, ended = ?1, observed_at = max(observed_at, ?2), revision = ?3,"
        " superseded = iif(revision = ?3, superseded, NULL) WHERE trace_id = ?4",
        (now, observed_at, revision, trace_id),
    )
    _update_checksum(connection, trace_id)


def update_incomplete(
    connection: sqlite3.Connection, trace_id: bytes, incomplete: tuple[str, ...], ended: int, now: int
) -> None:
    """Record what is missing of newer revisions than the stored one, and when retention begins to count."""
    connection.execute(
        "UPDATE runs SET incomplete = ?, ended = ?, written_at = ? WHERE trace_id = ?",
        (lines_to_bytes(incomplete), ended, now, trace_id),
    )
    _update_checksum(connection, trace_id)


def _update_checksum(connection: sqlite3.Connection, trace_id: bytes) -> None:
    select = f"SELECT {_COLUMNS} FROM runs WHERE trace_id = ?"  # noqa: S608 a constant
    row = RunRow(*connection.execute(select, (trace_id,)).fetchone())
    connection.execute("UPDATE runs SET row_checksum = ? WHERE trace_id = ?", (run_checksum(row), trace_id))


def stored_run(connection: sqlite3.Connection, trace_id: bytes) -> StoredRow | None:
    """Return the run of a trace."""
    columns = ", ".join(StoredRow._fields)
    select = f"SELECT {columns} FROM runs WHERE trace_id = ?"  # noqa: S608 a constant
    row = connection.execute(select, (trace_id,)).fetchone()
    if row is None:
        return None
    run_id, tenant, incomplete, *others = row
    return StoredRow(run_id.decode(), tenant.decode(), bytes_to_lines(incomplete), *others)


def insert_resource(connection: sqlite3.Connection, content: bytes) -> int:
    """Return the id of a resource, which is stored once."""
    connection.execute("INSERT OR IGNORE INTO resources (content) VALUES (?)", (content,))
    row: tuple[int] = connection.execute("SELECT id FROM resources WHERE content = ?", (content,)).fetchone()
    return row[0]


# Fragments.

_OWN_PREFIX: Final = "runspan."


def fragments(
    connection: sqlite3.Connection, trace_id: bytes, tenant: str | None, *, only_revision_spans: bool = False
) -> list[Span]:
    """Return the fragments of a trace in order of arrival. tenant: None for those of every tenant."""
    rows = connection.execute(
        "SELECT otlp FROM fragments WHERE trace_id = ?1 AND (?2 IS NULL OR tenant = ?2) AND is_revision_span >= ?3"
        " ORDER BY id",
        (trace_id, None if tenant is None else tenant.encode(), only_revision_spans),
    )
    return [span for (otlp,) in rows for span in read_spans(otlp)]


def count_step_fragments(connection: sqlite3.Connection, trace_id: bytes, tenant: str) -> int:
    """Return how many of the fragments of a trace are step spans."""
    sql = "SELECT count(*) FROM fragments WHERE trace_id = ? AND tenant = ? AND NOT is_revision_span"
    return int(connection.execute(sql, (trace_id, tenant.encode())).fetchone()[0])


def has_fragments(connection: sqlite3.Connection, trace_id: bytes, tenant: str) -> bool:
    """Return whether a trace has fragments of this tenant."""
    sql = "SELECT 1 FROM fragments WHERE trace_id = ? AND tenant = ? LIMIT 1"
    return connection.execute(sql, (trace_id, tenant.encode())).fetchone() is not None


def insert_fragments(connection: sqlite3.Connection, spans: Iterable[Span], tenant: str, now: int) -> None:
    """Store fragments. One that is stored already counts as arrived now."""
    owner = tenant.encode()
    rows = []
    for span in spans:
        is_revision_span = span.attributes().get(ROLE) in REVISION_ROLES
        otlp = request_bytes(Resource(), [scoped_bytes(span)])
        proof = checksum(span.trace_id, owner, is_revision_span, now, otlp)
        rows.append((span.trace_id, owner, fingerprint(span), is_revision_span, now, otlp, proof))
    connection.executemany(
        "INSERT OR REPLACE INTO fragments"
        " (trace_id, tenant, fingerprint, is_revision_span, received_at, otlp, row_checksum)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        rows,
    )


def delete_fragments(connection: sqlite3.Connection, spans: Iterable[Span], tenant: str) -> None:
    """Delete fragments."""
    connection.executemany(
        "DELETE FROM fragments WHERE trace_id = ? AND tenant = ? AND fingerprint = ?",
        [(span.trace_id, tenant.encode(), fingerprint(span)) for span in spans],
    )


def fingerprint(span: Span) -> bytes:
    """Return 16 bytes for what the decoder reads of a span: a Collector that adds attributes does not change them."""
    texts = [found for event in span.events if (found := _own_pairs(event.attributes))]
    content = (span.span_id, span.start, span.end, _own_pairs(span.pairs()), sorted(texts, key=repr))
    return sha256(_pack(content)).digest()[:_DIGEST_BYTES]


def _own_pairs(pairs: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return the attributes of runspan in a fixed order."""
    own = [(key, to_plain(value)) for key, value in pairs if key.startswith(_OWN_PREFIX)]
    return sorted(own, key=lambda pair: (pair[0], repr(pair[1])))


# Foreign spans.


def foreign_row(item: ForeignSpan, tenant: str, now: int, compressed: bytes) -> tuple[Any, ...]:
    """Return the row of a foreign span. Its digest distinguishes two versions of one span."""
    owner, digest = tenant.encode(), sha256(item.otlp).digest()[:_DIGEST_BYTES]
    proof = checksum(item.trace_id, owner, item.span_id, digest, now)
    return (item.trace_id, owner, item.span_id, digest, now, compressed, proof)


def insert_foreign(connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Store foreign spans, except for those that are stored already."""
    columns = "trace_id, tenant, span_id, digest, received_at, otlp, row_checksum"
    insert = f"INSERT OR IGNORE INTO foreign_spans ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 a constant
    connection.executemany(insert, rows)


def foreign_spans(connection: sqlite3.Connection, trace_id: bytes, tenant: str | None) -> list[bytes]:
    """Return the foreign spans of a trace, compressed. tenant: None for those of every tenant."""
    rows = connection.execute(
        "SELECT otlp FROM foreign_spans WHERE trace_id = ?1 AND (?2 IS NULL OR tenant = ?2) ORDER BY id",
        (trace_id, None if tenant is None else tenant.encode()),
    )
    return [content for (content,) in rows]
