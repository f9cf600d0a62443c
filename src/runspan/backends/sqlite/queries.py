"""The rows of the store's tables, and the statements that write them and look them up."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, NamedTuple

import msgspec
from xxhash import xxh3_64_digest

from runspan.codec.fields import ROLE, ROLE_REVISION, ROLE_RUN, ROOT_REVISION, observed_time
from runspan.model.document import LIVE_RUN_STATUSES, TERMINAL_RUN_STATUSES, Envelope, Run, sort_time, str_or_none
from runspan.model.span import Span, run_ids, to_plain
from runspan.model.timestamps import parse_ns
from runspan.otlp.protobuf_reader import ForeignSpan, ReceivedRun
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes

REVISION_ROLES: Final = frozenset({ROLE_RUN, ROLE_REVISION})

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(tuple[str, int, bytes, bytes]).decode


# Runs.


class RunRow(NamedTuple):
    """The columns of a run, in the order in which statements name them. Text is UTF-8, so it sorts by code point."""

    trace_id: bytes
    tenant: bytes
    run_id: bytes
    workflow_id: bytes | None
    status: bytes | None
    workflow_key: int | None
    """See ``workflow_key``."""
    status_key: int | None
    """See ``status_key``."""
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


class StoredHead(NamedTuple):
    """What differs after each change of a stored run: its columns without the document."""

    id: int
    revision: int
    digest: bytes
    written_at: int
    observed_at: int | None
    incomplete: bytes | None
    superseded: bytes | None


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
    id: int
    written_at: int
    observed_at: int | None

    @property
    def head(self) -> StoredHead:
        """What differs after each change of the run."""
        incomplete = lines_to_bytes(self.incomplete)
        return StoredHead(
            self.id, self.revision, self.digest, self.written_at, self.observed_at, incomplete, self.superseded
        )


DAY: Final = 86_400 * 1_000_000_000
"""Nanoseconds."""
ENDED_BEFORE: Final = f"ended / {DAY} <= ? / {DAY} AND ended < ?"
ENDED_WITHIN: Final = f"ended / {DAY} BETWEEN ? / {DAY} AND ? / {DAY} AND ended >= ? AND ended < ?"
"""Conditions on the time of the end, whose values are given twice: ``runs_by_end`` is sorted by the day alone."""

_HEAD: Final = f"SELECT {', '.join(StoredHead._fields)} FROM runs WHERE trace_id = ?"  # noqa: S608 a constant
_LIVE: Final = frozenset(status.encode() for status in LIVE_RUN_STATUSES)
_WORKFLOW_KEY_BYTES: Final = 4
_STATUS_KEY_BYTES: Final = 1
_COMPLETED: Final = b"completed"
_DIGEST_BYTES: Final = 16
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
    digest: bytes | None = None,
) -> RunRow:
    """Return the row of a run.

    document: its text, compressed. time: that of ``StoredRevision``. digest: SHA-256 of its text, if it is known.
    """
    envelope, summary = run.envelope, run.summary()
    owner, run_id = tenant.encode(), envelope.id.encode()
    workflow_id = None if (value := str_or_none(envelope.workflow_id)) is None else value.encode()
    status = None if (value := str_or_none(envelope.status)) is None else value.encode()
    return RunRow(
        run_ids(envelope.id, tenant).trace_id,
        owner,
        run_id,
        workflow_id,
        status,
        None if workflow_id is None else workflow_key(owner, workflow_id),
        status_key(status or b""),
        time,
        retention_start(envelope, written_at),
        revision,
        (digest or sha256(run.text).digest())[:_DIGEST_BYTES],
        summary,
        document,
        step_ids,
        lines_to_bytes(incomplete),
        written_at,
        None,
        observed_time(revision) if status in _LIVE else None,
        None,
        summary_checksum(owner, run_id, time, summary),
    )


def received_row(
    received: ReceivedRun, document: bytes, *, ended: int, written_at: int, step_ids: bytes | None
) -> RunRow:
    """Return the row of a run that was received as a whole. document: its text, compressed."""
    owner, run_id, status = received.tenant.encode(), received.run_id.encode(), received.status.encode()
    workflow_id = None if received.workflow_id is None else received.workflow_id.encode()
    return RunRow(
        received.trace_id,
        owner,
        run_id,
        workflow_id,
        status,
        None if workflow_id is None else workflow_key(owner, workflow_id),
        status_key(status),
        received.position,
        ended,
        ROOT_REVISION,
        received.digest[:_DIGEST_BYTES],
        received.summary,
        document,
        step_ids,
        None,
        written_at,
        None,
        None,
        None,
        summary_checksum(owner, run_id, received.position, received.summary),
    )


@lru_cache(maxsize=1024)
def workflow_key(tenant: bytes, workflow_id: bytes) -> int:
    """Return the number by which indexes find the runs of a workflow; those of a few others may have it too."""
    return int.from_bytes(sha256(_pack((tenant, workflow_id))).digest()[:_WORKFLOW_KEY_BYTES], signed=True)


@lru_cache(maxsize=64)
def status_key(status: bytes) -> int | None:
    """Return the number by which indexes find the runs of a status, None for ``completed``, which most runs are.

    Those of ``RUN_STATUSES`` have different ones. status: empty for runs without one.
    """
    if status == _COMPLETED:
        return None
    return int.from_bytes(sha256(status).digest()[:_STATUS_KEY_BYTES], signed=True)


def summary_checksum(tenant: bytes, run_id: bytes, time: int, summary: bytes) -> bytes:
    """Return 8 bytes that prove what a list shows of a run: whose it is, its place in the list and its summary."""
    return checksum(tenant, run_id, time, summary)


def checksum(*values: object) -> bytes:
    """Return 8 bytes that prove values of a row."""
    return xxh3_64_digest(_pack(values))


class _OwnColumns(NamedTuple):
    """The columns of a run that neither its document nor an index has too."""

    revision: int
    step_ids: bytes | None
    incomplete: bytes | None
    superseded: bytes | None
    written_at: int
    resource_id: int | None


def run_checksum(row: RunRow | _OwnColumns) -> bytes:
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
_UPDATES: Final = ", ".join(
    f"{name} = excluded.{name}" for name in (*RunRow._fields, "row_checksum") if name not in ("trace_id", "observed_at")
)
# An observation stays, however the revisions of several senders interleave.
_ON_CONFLICT: Final = f"""
    ON CONFLICT (trace_id) DO UPDATE SET {_UPDATES},
    observed_at = iif(excluded.observed_at < runs.observed_at, runs.observed_at, excluded.observed_at)
"""
_LISTED: Final = RunRow._fields.index("ended")
"""The first columns of a run, which say whose it is and where lists have it: several indexes have these alone."""
_UPDATE: Final = f"""
    UPDATE runs SET {", ".join(f"{name} = ?" for name in (*RunRow._fields[_LISTED:], "row_checksum"))}
    WHERE trace_id = ? AND ({", ".join(RunRow._fields[:_LISTED])}) IS ({", ".join("?" * _LISTED)})
"""  # noqa: S608 constants
_ROWS: Final = 500
"""Rows of one statement, at most 32 values each: SQLite takes 32766."""


def _insert(connection: sqlite3.Connection, into: str, rows: Sequence[tuple[Any, ...]], then: str = "") -> None:
    """Insert rows by few statements: a thread waits for others after each step of a statement, which is each row."""
    for start in range(0, len(rows), _ROWS):
        batch = rows[start : start + _ROWS]
        values = [value for row in batch for value in row]
        connection.execute(f"INSERT {into} VALUES {_marks(batch)} {then}", values)  # noqa: S608 constants


def _marks(rows: Sequence[tuple[Any, ...]]) -> str:
    """Return the placeholders of rows."""
    return ", ".join([f"({', '.join('?' * len(rows[0]))})"] * len(rows))


def upsert_runs(connection: sqlite3.Connection, rows: Sequence[RunRow]) -> None:
    """Write rows, in place of the stored runs of their traces."""
    _insert(
        connection, f"INTO runs ({_COLUMNS}, row_checksum)", [(*row, run_checksum(row)) for row in rows], _ON_CONFLICT
    )


def update_run(connection: sqlite3.Connection, row: RunRow) -> bool:
    """Write the other columns of a stored run that is listed as before: most of the indexes stay as they are.

    Return False, and write nothing, if it is listed otherwise, as when it is damaged.
    """
    values = (*row[_LISTED:], run_checksum(row), row.trace_id, *row[:_LISTED])
    return connection.execute(_UPDATE, values).rowcount == 1


def update_observation(
    connection: sqlite3.Connection, trace_id: bytes, revision: int, observed_at: int, now: int
) -> None:
    """Record that an unfinished run was observed again as it is stored. revision: its revision from now on."""
    own = _own_columns(connection, trace_id)
    superseded = own.superseded if own.revision == revision else None
    proof = run_checksum(own._replace(revision=revision, superseded=superseded, written_at=now))
    connection.execute(
        "UPDATE runs SET written_at = ?, ended = ?, observed_at = max(observed_at, ?), revision = ?,"
        " superseded = ?, row_checksum = ? WHERE trace_id = ?",
        (now, now, observed_at, revision, superseded, proof, trace_id),
    )


def update_incomplete(
    connection: sqlite3.Connection, trace_id: bytes, incomplete: tuple[str, ...], ended: int, now: int
) -> None:
    """Record what is missing of newer revisions than the stored one, and when retention begins to count."""
    lines = lines_to_bytes(incomplete)
    proof = run_checksum(_own_columns(connection, trace_id)._replace(incomplete=lines, written_at=now))
    connection.execute(
        "UPDATE runs SET incomplete = ?, ended = ?, written_at = ?, row_checksum = ? WHERE trace_id = ?",
        (lines, ended, now, proof, trace_id),
    )


def _own_columns(connection: sqlite3.Connection, trace_id: bytes) -> _OwnColumns:
    select = f"SELECT {', '.join(_OwnColumns._fields)} FROM runs WHERE trace_id = ?"  # noqa: S608 constants
    return _OwnColumns(*connection.execute(select, (trace_id,)).fetchone())


def stored_run(connection: sqlite3.Connection, trace_id: bytes) -> StoredRow | None:
    """Return the run of a trace."""
    columns = ", ".join(StoredRow._fields)
    select = f"SELECT {columns} FROM runs WHERE trace_id = ?"  # noqa: S608 a constant
    row = connection.execute(select, (trace_id,)).fetchone()
    if row is None:
        return None
    run_id, tenant, incomplete, *others = row
    return StoredRow(run_id.decode(), tenant.decode(), bytes_to_lines(incomplete), *others)


def stored_traces(connection: sqlite3.Connection, trace_ids: Sequence[bytes], tenant: str) -> set[bytes]:
    """Return those of the traces of which a run, or a fragment of this tenant, is stored."""
    found: set[bytes] = set()
    for start in range(0, len(trace_ids), _ROWS):
        batch = trace_ids[start : start + _ROWS]
        among = f"trace_id IN ({', '.join('?' * len(batch))})"
        found.update(*connection.execute(f"SELECT trace_id FROM runs WHERE {among}", batch))  # noqa: S608 constants
        sql = f"SELECT trace_id FROM waiting_traces WHERE {among} AND tenant = ?"  # noqa: S608 constants
        found.update(*connection.execute(sql, (*batch, tenant.encode())))
    return found


def stored_head(connection: sqlite3.Connection, trace_id: bytes) -> StoredHead | None:
    """Return what identifies the state of a stored run."""
    row = connection.execute(_HEAD, (trace_id,)).fetchone()
    return None if row is None else StoredHead(*row)


def insert_resource(connection: sqlite3.Connection, content: bytes) -> int:
    """Return the id of a resource, which is stored once."""
    row: tuple[int] | None = connection.execute("SELECT id FROM resources WHERE content = ?", (content,)).fetchone()
    if row is not None:
        return row[0]
    return connection.execute("INSERT INTO resources (content) VALUES (?)", (content,)).lastrowid or 0


# Fragments.

_OWN_PREFIX: Final = "runspan."
_ID_BATCH: Final = 500
"""Span ids in one statement."""
STEP, REVISION, SUPERSEDED = range(3)
"""The kinds of fragments. A row of superseded steps has those of one revision, as a document."""


class Waiting(NamedTuple):
    """How much of a trace waits. It differs after each change of the fragments."""

    spans: int
    bytes: int
    newest: int
    """The id of the newest row that there was."""


class FragmentRow(NamedTuple):
    """The columns of a fragment, except for its id."""

    trace_id: bytes
    tenant: bytes
    span_id: bytes
    """Empty for superseded steps."""
    fingerprint: bytes
    kind: int
    spans: int
    received_at: int
    missing: bytes | None
    """Of a revision span: the id of a step span that has not arrived; None if all have, or nothing is known."""
    tried: int | None
    """Of a revision span whose steps are all there, but do not prove it: how many spans waited then."""
    content: bytes
    """An ExportTraceServiceRequest with the span, or the content of ``superseded_row``."""


_FRAGMENT_COLUMNS: Final = ", ".join((*FragmentRow._fields, "hint_checksum", "row_checksum"))


def hint_checksum(missing: bytes | None, tried: int | None) -> bytes | None:
    """Return the column that proves ``missing`` and ``tried``, which change alone; None if nothing is known."""
    return None if missing is None and tried is None else checksum(missing, tried)


def fragment_checksum(row: FragmentRow) -> bytes:
    """Return the column ``row_checksum`` of a fragment: it proves all columns but ``missing`` and ``tried``."""
    return checksum(*row._replace(missing=None, tried=None))


TRACE_SUMS: Final = (
    "SELECT trace_id, tenant, sum(spans), sum(length(content)), max(id) FROM fragments"
    " GROUP BY trace_id, tenant ORDER BY trace_id, tenant"
)
"""What the table ``waiting_traces`` has, except that the newest row may be gone."""
TENANT_SUMS: Final = "SELECT tenant, sum(spans), sum(bytes) FROM waiting_traces GROUP BY tenant ORDER BY tenant"
"""What the table ``waiting_tenants`` has."""


def waiting(connection: sqlite3.Connection, trace_id: bytes, tenant: str) -> Waiting | None:
    """Return how much of a trace waits, None without a fragment of this tenant."""
    sql = "SELECT spans, bytes, newest FROM waiting_traces WHERE trace_id = ? AND tenant = ?"
    row = connection.execute(sql, (trace_id, tenant.encode())).fetchone()
    return None if row is None else Waiting(*row)


def waiting_of_tenant(connection: sqlite3.Connection, tenant: str) -> tuple[int, int]:
    """Return how many spans of all traces of a tenant wait, and their bytes."""
    sql = "SELECT spans, bytes FROM waiting_tenants WHERE tenant = ?"
    return connection.execute(sql, (tenant.encode(),)).fetchone() or (0, 0)


def fragments(
    connection: sqlite3.Connection,
    trace_id: bytes,
    tenant: str | None,
    *,
    kinds: tuple[int, ...] = (STEP, REVISION, SUPERSEDED),
    span_ids: Sequence[bytes] | None = None,
) -> list[tuple[int, int, bytes]]:
    """Return id, kind and content of the fragments of a trace, in order of arrival.

    tenant: None for those of every tenant. span_ids: only those of spans with these ids.
    """
    owner = None if tenant is None else tenant.encode()
    select = "SELECT id, kind, content FROM fragments WHERE trace_id = ? AND tenant = ifnull(?, tenant)"
    if span_ids is None:
        of_kind = f"kind IN ({', '.join(map(str, kinds))})" + (" AND kind > 0" if STEP not in kinds else "")
        return connection.execute(f"{select} AND {of_kind} ORDER BY id", (trace_id, owner)).fetchall()
    found = []
    for start in range(0, len(span_ids), _ID_BATCH):
        batch = span_ids[start : start + _ID_BATCH]
        of_ids = f"kind = {STEP} AND span_id IN ({', '.join('?' * len(batch))})"
        found += connection.execute(f"{select} AND {of_ids}", (trace_id, owner, *batch)).fetchall()
    return sorted(found)


def fragment_span_ids(connection: sqlite3.Connection, trace_id: bytes, tenant: str) -> set[bytes]:
    """Return the span ids of the fragments of a trace."""
    sql = "SELECT span_id FROM fragments WHERE trace_id = ? AND tenant = ? AND span_id > x''"
    return {span_id for (span_id,) in connection.execute(sql, (trace_id, tenant.encode()))}


def fragment_ids(connection: sqlite3.Connection, trace_id: bytes, tenant: str) -> list[int]:
    """Return the ids of all fragments of a trace."""
    sql = "SELECT id FROM fragments WHERE trace_id = ? AND tenant = ?"
    return [row_id for (row_id,) in connection.execute(sql, (trace_id, tenant.encode()))]


def revision_hints(connection: sqlite3.Connection, trace_id: bytes, tenant: str) -> dict[int, tuple[bytes | None, int]]:
    """Return the columns ``missing`` and ``tried`` of the revision spans that wait, by the id of their row."""
    sql = "SELECT id, missing, tried FROM fragments WHERE trace_id = ? AND tenant = ? AND kind = 1 AND kind > 0"
    rows = connection.execute(sql, (trace_id, tenant.encode()))
    return {row_id: (missing, tried or 0) for row_id, missing, tried in rows}


def superseded_sizes(connection: sqlite3.Connection, trace_id: bytes, tenant: str) -> list[tuple[int, int, int]]:
    """Return id, number of spans and bytes of each row of superseded steps, the newest first."""
    sql = (
        "SELECT id, spans, length(content) FROM fragments WHERE trace_id = ? AND tenant = ? AND kind = 2 AND kind > 0"
        " ORDER BY id DESC"
    )
    return connection.execute(sql, (trace_id, tenant.encode())).fetchall()


def insert_fragments(connection: sqlite3.Connection, rows: Sequence[FragmentRow]) -> None:
    """Store fragments of one trace. One that is stored already counts as arrived now."""
    by_key = {(row.span_id, row.fingerprint): row for row in rows}
    keys = list(by_key)
    for start in range(0, len(keys), _ROWS):
        batch = keys[start : start + _ROWS]
        repeated = (
            f"WITH arrived (span_id, fingerprint) AS (VALUES {_marks(batch)}) DELETE FROM fragments WHERE id IN"  # noqa: S608 constants
            " (SELECT id FROM arrived CROSS JOIN fragments USING (span_id, fingerprint)"
            " WHERE trace_id = ? AND tenant = ?)"
        )
        connection.execute(repeated, [*[value for key in batch for value in key], *rows[0][:2]])
    proved = [(*row, hint_checksum(row.missing, row.tried), fragment_checksum(row)) for row in by_key.values()]
    _insert(connection, f"INTO fragments ({_FRAGMENT_COLUMNS})", proved)


def update_hints(connection: sqlite3.Connection, hints: Iterable[tuple[bytes | None, int | None, int]]) -> None:
    """Record what revision spans wait for: columns ``missing`` and ``tried``, and the id of the row."""
    update = "UPDATE fragments SET missing = ?, tried = ?, hint_checksum = ? WHERE id = ?"
    rows = [(missing, tried, hint_checksum(missing, tried), row_id) for missing, tried, row_id in hints]
    connection.executemany(update, rows)


def rebuild_sums(connection: sqlite3.Connection) -> None:
    """Compute anew how much waits. Triggers keep it right, so only damage makes this necessary."""
    for table in ("waiting_tenants", "waiting_traces"):
        connection.execute(f"DELETE FROM {table}")  # noqa: S608 a constant
    connection.execute(f"INSERT INTO waiting_traces {TRACE_SUMS}")
    connection.execute(f"INSERT INTO waiting_tenants {TENANT_SUMS}")


def delete_fragments(connection: sqlite3.Connection, ids: Sequence[int]) -> None:
    """Delete fragments by the ids of their rows."""
    connection.execute("DELETE FROM fragments WHERE id IN (SELECT value FROM json_each(?))", (str(list(ids)),))


def fragment_row(
    span: Span, tenant: str, now: int, *, missing: bytes | None = None, tried: int | None = None
) -> FragmentRow:
    """Return the row of a span that waits."""
    kind = REVISION if span.attributes().get(ROLE) in REVISION_ROLES else STEP
    content = request_bytes(Resource(), [scoped_bytes(span)])
    owner = tenant.encode()
    return FragmentRow(span.trace_id, owner, span.span_id, fingerprint(span), kind, 1, now, missing, tried, content)


def superseded_row(
    trace_id: bytes, tenant: str, now: int, span_ids: Sequence[bytes], time: int, document: bytes
) -> FragmentRow:
    """Return the row of the steps that a later revision does not have.

    document: a run with these steps, compressed. span_ids and time: those of its ``StoredRevision``.
    """
    content = _pack((tenant, time, b"".join(span_ids), document))
    digest = sha256(content).digest()[:_DIGEST_BYTES]
    return FragmentRow(trace_id, tenant.encode(), b"", digest, SUPERSEDED, len(span_ids), now, None, None, content)


def superseded_content(content: bytes) -> tuple[str, int, bytes, bytes]:
    """Return tenant, time, span ids and compressed document of a row of superseded steps."""
    return _unpack(content)


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
    _insert(connection, f"OR IGNORE INTO foreign_spans ({columns})", rows)


def foreign_count(connection: sqlite3.Connection, trace_id: bytes, owner: bytes, most: int) -> int:
    """Return how many foreign spans of a trace are stored for a tenant, and ``most`` for as many or more."""
    (count,) = connection.execute(
        "SELECT count(*) FROM (SELECT 1 FROM foreign_spans WHERE trace_id = ? AND tenant = ? LIMIT ?)",
        (trace_id, owner, most),
    ).fetchone()
    return int(count)


def has_foreign(connection: sqlite3.Connection, row: tuple[Any, ...]) -> bool:
    """Return whether a foreign span is stored already."""
    found = connection.execute(
        "SELECT 1 FROM foreign_spans WHERE trace_id = ? AND tenant = ? AND span_id = ? AND digest = ?", row[:4]
    )
    return found.fetchone() is not None


def foreign_spans(connection: sqlite3.Connection, trace_id: bytes, tenant: str | None) -> list[bytes]:
    """Return the foreign spans of a trace, compressed. tenant: None for those of every tenant."""
    rows = connection.execute(
        "SELECT otlp FROM foreign_spans WHERE trace_id = ? AND tenant = ifnull(?, tenant) ORDER BY id",
        (trace_id, None if tenant is None else tenant.encode()),
    )
    return [content for (content,) in rows]
