"""Reading: connections that cannot write, one for each caller at a time, and what is asked of them."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from runspan.backends.sqlite import queries as tables
from runspan.backends.sqlite import revision as known
from runspan.backends.sqlite.compression import Compression, CorruptFrame, find_dictionary
from runspan.backends.sqlite.rows import bytes_to_lines
from runspan.backends.sqlite.schema import open_reader
from runspan.codec.decode import verify_run
from runspan.contracts import Cursor, Document, Page, RunQuery
from runspan.errors import NotFound, StoreError
from runspan.model.ids import run_ids
from runspan.model.run import Run
from runspan.model.span import Span
from runspan.model.timestamps import MAX_NS
from runspan.otlp.protobuf_reader import read_spans
from runspan.storage.sqlite_file import store_error

PAGE_BYTES = 16 << 20
"""Summaries in one page of a list. A summary carries the run's error, which has no bound of its own."""


_DOCUMENT = "SELECT document, incomplete FROM runs WHERE trace_id = ?"


@contextmanager
def _snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """All that is read inside is of one state of the store."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("COMMIT")


class ConnectionPool:
    """Connections that wait to be used. A pool and not one a thread: servers make threads by the request."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._idle: deque[sqlite3.Connection] = deque()
        self._closed = False

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A connection for this caller alone; SQLite's errors come out as StoreError."""
        if self._closed:
            raise StoreError("the store is closed", where=str(self.path))
        try:
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = open_reader(self.path)
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            raise store_error(error, self.path) from error
        self._idle.append(connection)
        if self._closed:
            self.close()

    def close(self) -> None:
        """Closes the connections that wait; one in use is closed by its user."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()


class StoreReader:
    """The questions of ``contracts.TraceReader``."""

    def __init__(self, readers: ConnectionPool, compression: Compression) -> None:
        self._readers = readers
        self._compression = compression

    def text(self, connection: sqlite3.Connection, frame: bytes, run_id: str) -> bytes:
        """The canonical text in a stored frame. StoreError when it is damaged: the frame's checksum tells."""
        try:
            return self._compression.decompress(frame, find_dictionary(connection))
        except CorruptFrame as error:
            raise StoreError(
                "what is stored is damaged",
                where=f"{self._readers.path} run {run_id}",
                got=str(error),
                hint="export the run again, or restore a backup",
            ) from None

    def revision(self, connection: sqlite3.Connection, stored: tables.StoredRow) -> known.StoredRevision:
        """The revision of a stored run. StoreError when its columns do not fit together."""
        run = Run.from_json(self.text(connection, stored.document, stored.run_id))
        try:
            return known.from_verified(run, stored.tenant, stored.revision, stored.step_ids)
        except ValueError as error:
            raise StoreError(
                "what is stored cannot be made into spans again",
                where=f"{self._readers.path} run {stored.run_id}",
                got=str(error),
                hint="export the run again",
            ) from None

    def document(self, run_id: str, tenant: str) -> Document:
        trace_id = _trace_id(run_id, tenant)
        loose: Sequence[Span] = ()
        with self._readers.connection() as connection:
            row = connection.execute(_DOCUMENT, (trace_id,)).fetchone()
            if row is None:
                # Both at one moment: between two, the fragments may become the run.
                with _snapshot(connection):
                    row = connection.execute(_DOCUMENT, (trace_id,)).fetchone()
                    loose = tables.fragments(connection, trace_id, tenant) if row is None else ()
            text = b"" if row is None else self.text(connection, row[0], run_id)
        if row is not None:
            return Document(text, bytes_to_lines(row[1]))
        if not loose:
            raise _not_found(f"run {run_id}")
        decoded = verify_run(loose)  # raises TraceIncomplete, or they would not be fragments
        return Document(decoded.run.text, decoded.incomplete)

    def spans(self, trace_id: bytes, tenant: str | None = None) -> list[Span]:
        with self._readers.connection() as connection:
            try:
                with _snapshot(connection):
                    stored = tables.stored_run(connection, trace_id)
                    if stored is not None and tenant not in (None, stored.tenant):
                        stored = None
                    tenant = stored.tenant if stored is not None else tenant
                    loose = tables.all_fragments(connection, trace_id, tenant)
                    find = find_dictionary(connection)
                    foreign = [
                        self._compression.decompress(frame, find)
                        for frame in tables.foreign_of(connection, trace_id, tenant)
                    ]
                    revision = None if stored is None else self.revision(connection, stored)
            except CorruptFrame as error:
                where = f"{self._readers.path} trace {trace_id.hex()}"
                raise StoreError("what is stored is damaged", where=where, got=str(error)) from None
        found = [] if revision is None else known.to_spans(revision)
        made = {span.span_id for span in found}
        beside = [span for otlp in foreign for span in read_spans(otlp) if span.span_id not in made]
        found = [*found, *loose, *beside]
        if not found:
            raise _not_found(f"trace {trace_id.hex()}")
        return found

    def search(self, query: RunQuery) -> Page:
        """A page ends at the query's limit, or before the summary that would take it over PAGE_BYTES."""
        statement, values = _statement(query)
        items: list[bytes] = []
        size = 0
        place: tuple[int, bytes] = (0, b"")
        last: tuple[int, bytes] | None = None
        with self._readers.connection() as connection, closing(connection.execute(statement, values)) as rows:
            for summary, time, run_id in rows:
                size += len(summary)
                if items and (len(items) == query.limit or size > PAGE_BYTES):
                    last = place
                    break
                items.append(summary)
                place = time, run_id
        return Page(items, None if last is None else Cursor(last[0], last[1].decode()))

    def one(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """The first row of a statement, None without one."""
        with self._readers.connection() as connection:
            return connection.execute(statement, values).fetchone()


def _statement(query: RunQuery) -> tuple[str, list[Any]]:
    """The list, straight off the index whose columns are exactly what the query fixes, in the order it wants."""
    index, conditions, bound = "runs_by_time", ["tenant = ?"], list[Any]([_utf8(query.tenant)])
    if query.workflow_id is not None:
        index = "runs_by_workflow"
        conditions.append("workflow_id = ?")
        bound.append(_utf8(query.workflow_id))
    if query.status is not None:
        index = "runs_by_status" if query.workflow_id is None else "runs_by_workflow_and_status"
        conditions.append("status = ?")
        bound.append(_utf8(query.status))
    if query.stuck_before is not None:
        index = "live_runs"  # the runs of which any can be stuck are few, whatever else is asked
        conditions.append("observed_at < ?")
        bound.append(min(query.stuck_before, MAX_NS))
    if query.since is not None:
        conditions.append("time >= ?")
        bound.append(min(query.since, MAX_NS))
    if query.cursor is not None:
        conditions.append("(time, run_id) < (?, ?)")
        bound += [min(query.cursor.time, MAX_NS), _utf8(query.cursor.run_id)]
    where = " AND ".join(conditions)
    order = "ORDER BY time DESC, run_id DESC LIMIT ?"
    statement = f"SELECT summary, time, run_id FROM runs INDEXED BY {index} WHERE {where} {order}"  # noqa: S608 only constants
    return statement, [*bound, query.limit + 1]


def _utf8(text: str) -> bytes:
    """The text as stored. A lone surrogate is in no stored text, and so finds none."""
    return text.encode("utf-8", "surrogatepass")


def _trace_id(run_id: str, tenant: str) -> bytes:
    try:
        return run_ids(run_id, tenant).trace_id
    except UnicodeEncodeError:
        raise _not_found(f"run {run_id!a}") from None


def _not_found(what: str) -> NotFound:
    return NotFound("not in this store", where=what, hint="it was never sent here, or is past retention")
