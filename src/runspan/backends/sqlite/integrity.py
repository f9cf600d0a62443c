"""Check every row of a store against its digests, checksums and ids, and mend what is damaged.

SQLite's own check finds damaged pages and indexes. It does not find changed content, so each document is compared with
its digest, each list item with its checksum and its document, and each stored span with the columns that it gave.
"""

from __future__ import annotations

import json
import re
import sqlite3
from array import array
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import zip_longest
from typing import Any, Final, Literal

from google.protobuf.message import DecodeError
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from runspan.backends.sqlite import queries
from runspan.backends.sqlite.compression import Compression, CorruptFrame
from runspan.backends.sqlite.queries import FragmentRow, RunRow
from runspan.backends.sqlite.revision import from_row, split_ids
from runspan.backends.sqlite.wal import MARK_COMMIT
from runspan.codec.fields import ROLE, ROLE_STEP, ROOT_REVISION
from runspan.errors import DocumentError, PayloadError
from runspan.model.document import Run, sort_time
from runspan.model.span import run_ids
from runspan.otlp.protobuf_reader import read_spans
from runspan.storage.sqlite_file import READ_ERRORS

Remedy = Literal["repair", "set aside", "rebuild", "restore"]
"""How damage is mended: from what is sound; by moving the row out of the store; by copying what can be read into a new
file, since pages of the file are damaged; or only by a backup."""
OnProgress = Callable[[int], None]
"""Called with the number of further rows that were checked; also while SQLite checks its file, with 0."""

_MAX_MESSAGES: Final = 1000
_PROGRESS_STEPS: Final = 1_000_000
"""Instructions of SQLite's virtual machine between two calls of the progress handler."""

_ID_INDEXES: Final = {
    "resources": "sqlite_autoindex_resources_1",
    "runs": "runs_by_time",
    "fragments": "sqlite_autoindex_fragments_1",
    "foreign_spans": "sqlite_autoindex_foreign_spans_1",
}
"""The tables whose rows are checked, each with an index that has the number of every row too."""
_COLUMNS: Final = {
    "resources": ("content",),
    "runs": (*RunRow._fields, "row_checksum"),
    "fragments": (*FragmentRow._fields, "hint_checksum", "row_checksum"),
    "foreign_spans": ("trace_id", "tenant", "span_id", "digest", "received_at", "otlp", "row_checksum"),
}
_LABELS: Final = ("workflow_id", "status", "workflow_key", "status_key")

_SUMS: Final = {
    "waiting_traces": (
        queries.TRACE_SUMS,
        "SELECT trace_id, tenant, spans, bytes, newest FROM waiting_traces ORDER BY trace_id, tenant",
    ),
    "waiting_tenants": (
        queries.TENANT_SUMS,
        "SELECT tenant, spans, bytes FROM waiting_tenants ORDER BY tenant",
    ),
}
"""The tables of what waits, each with what it should have, and what it has."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Something in a store that is not as it was written."""

    what: str
    remedy: Remedy
    table: str = ""
    """The table or index; empty for the file itself."""
    row: int | None = None
    """The number of the row; None if it is not a single row."""
    tenant: str = ""
    run_id: str = ""
    """The run, as far as the row still says it."""

    def __str__(self) -> str:
        run = f"run {self.run_id}" if self.run_id else ""
        tenant = f"tenant {self.tenant}" if self.tenant else ""
        place = f"row {self.row} of {self.table}" if self.row is not None else self.table or "the file"
        named = ", ".join(filter(None, (run, tenant)))
        return f"{named} ({place}): {self.what}" if named else f"{place}: {self.what}"


def count_rows(connection: sqlite3.Connection) -> int:
    """Return how many rows ``find_damage`` checks, about."""
    total = 0
    for table in _ID_INDEXES:
        with suppress(*READ_ERRORS):
            total += connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 a constant
    return total


def find_damage(
    connection: sqlite3.Connection, compression: Compression, on_progress: OnProgress = lambda rows: None
) -> Iterator[Damage]:
    """Yield what is damaged in one state of a store, which is read in order and with bounded memory.

    The connection must be in autocommit mode; others may write meanwhile.
    """
    connection.text_factory = partial(str, encoding="utf-8", errors="replace")
    try:
        connection.execute("BEGIN")
        connection.set_progress_handler(lambda: on_progress(0), _PROGRESS_STEPS)
        yield from _guarded("", _file_damage(connection))
        connection.set_progress_handler(None, 0)
        check = RowCheck(connection, compression)
        yield from _guarded("dictionaries", check.dictionaries())
        for table in _ID_INDEXES:
            yield from _guarded(table, _row_damage(connection, check, table, on_progress))
        for table in _SUMS:
            yield from _guarded(table, _sum_damage(connection, table))
    except READ_ERRORS as error:
        yield Damage(str(error), "rebuild")
    finally:
        connection.set_progress_handler(None, 0)
        with suppress(*READ_ERRORS):
            connection.execute("ROLLBACK")


def _guarded(table: str, damages: Iterator[Damage]) -> Iterator[Damage]:
    """Yield the damages, and one more if they cannot be read to the end."""
    try:
        yield from damages
    except READ_ERRORS as error:
        if getattr(error, "sqlite_errorname", "") == "SQLITE_INTERRUPT":  # a signal, while the progress was shown
            raise KeyboardInterrupt from None
        yield Damage(f"it cannot be read: {error!s}", "rebuild", table)


def _row_damage(
    connection: sqlite3.Connection, check: RowCheck, table: str, on_progress: OnProgress
) -> Iterator[Damage]:
    found = array("q")
    for row_id, row in _rows(connection, table):
        on_progress(1)
        found.append(row_id)
        damage = check.unreadable(table, row_id) if row is None else check.row(table, row_id, row)
        if damage is not None:
            yield damage
    # A damaged page may lack rows that an index still has.
    index = f"SELECT count(*) FROM {table} INDEXED BY {_ID_INDEXES[table]}"  # noqa: S608 constants
    if connection.execute(index).fetchone()[0] != len(found):
        there = set(found)
        for row_id in _indexed_ids(connection, table, -1):
            if row_id not in there:
                yield check.unreadable(table, row_id)


def _sum_damage(connection: sqlite3.Connection, table: str) -> Iterator[Damage]:
    """Yield a damage if a table of what waits is not as the fragments say."""
    computed, stored = _SUMS[table]
    with closing(connection.execute(computed)) as expected, closing(connection.execute(stored)) as found:
        for sums, row in zip_longest(expected, found):
            if sums is None or row is None or sums[:4] != row[:4] or sums[4:] > row[4:]:
                yield Damage("its sums are not those of the spans that wait", "repair", table)
                return


def _file_damage(connection: sqlite3.Connection) -> Iterator[Damage]:
    """Yield what SQLite finds; damage of indexes once for each index."""
    schema = connection.execute("SELECT rootpage, name, type, tbl_name FROM sqlite_schema").fetchall()
    roots = {str(root): name for root, name, _, _ in schema}
    indexes = {name for _, name, kind, _ in schema if kind == "index"}
    named: set[str] = set()
    with closing(connection.execute(f"PRAGMA integrity_check({_MAX_MESSAGES})")) as messages:
        for (message,) in messages:
            if message == "ok" or re.search(rf" value in ({'|'.join((*_ID_INDEXES, *_SUMS))})\.", message):
                continue  # the rows are checked below
            found = re.search(r"index (\S+)$", message) or re.search(r"Tree (\d+) ", message)
            name = str(roots.get(found[1], found[1])) if found else ""
            if name not in indexes:
                yield Damage(" ".join(message.split()), "rebuild", name)
            elif name not in named:
                named.add(name)
                yield Damage(f"SQLite found: {message}", "repair", name)
    rows = connection.execute("SELECT length(marker), length(previous) FROM last_commit").fetchall()
    if rows != [(16, 16)]:
        yield Damage("its row is not as every transaction leaves it", "rebuild", "last_commit")


def _rows(connection: sqlite3.Connection, table: str) -> Iterator[tuple[int, tuple[Any, ...] | None]]:
    """Yield the number and the columns of each row; None for columns that cannot be read."""
    columns = ", ".join(_COLUMNS[table])
    select = f"SELECT id, {columns} FROM {table} NOT INDEXED ORDER BY id"  # noqa: S608 constants
    last = -1
    try:
        for row_id, *row in connection.execute(select):  # one at a time: a document may be large
            yield row_id, tuple(row)
            last = row_id
    except READ_ERRORS:
        # A page of the table is damaged. An index still says which rows there are.
        for row_id in sorted(_indexed_ids(connection, table, last)):
            yield row_id, read_row(connection, table, row_id)


def _indexed_ids(connection: sqlite3.Connection, table: str, after: int) -> array[int]:
    """Return the numbers of the rows after one, from an index."""
    select = f"SELECT id FROM {table} INDEXED BY {_ID_INDEXES[table]} WHERE id > ?"  # noqa: S608 constants
    ids = array("q")
    for (row_id,) in connection.execute(select, (after,)):
        ids.append(row_id)
    return ids


def read_row(connection: sqlite3.Connection, table: str, row_id: int) -> tuple[Any, ...] | None:
    """Return the columns of a row; None if it cannot be read, or is not there."""
    columns = ", ".join(_COLUMNS[table])
    try:
        row: tuple[Any, ...] | None = connection.execute(
            f"SELECT {columns} FROM {table} NOT INDEXED WHERE id = ?",  # noqa: S608 constants
            (row_id,),
        ).fetchone()
    except READ_ERRORS:
        return None
    return row


class RowCheck:
    """Checks single rows of a store."""

    def __init__(self, connection: sqlite3.Connection, compression: Compression) -> None:
        self._connection = connection
        self._compression = compression
        self._types = {table: _column_types(connection, table) for table in _ID_INDEXES}
        self._resources = {row_id for (row_id,) in connection.execute("SELECT id FROM resources")}

    def dictionaries(self) -> Iterator[Damage]:
        """Yield damaged dictionaries, without which no frame that needs them can be decompressed."""
        for number, content, digest in self._connection.execute("SELECT id, content, digest FROM dictionaries"):
            if sha256(content).digest() != digest:
                what = "its digest is another: documents that were compressed with it may look damaged"
                yield Damage(what, "restore", "dictionaries", number)

    def unreadable(self, table: str, row_id: int) -> Damage:
        """Return the damage of a row whose page cannot be read."""
        tenant = run_id = b""
        if table == "runs":
            by_time = f"SELECT tenant, run_id FROM runs INDEXED BY {_ID_INDEXES['runs']} WHERE id = ?"  # noqa: S608
            with suppress(*READ_ERRORS):
                tenant, run_id = self._connection.execute(by_time, (row_id,)).fetchone() or (b"", b"")
        what = "its page of the file is damaged"
        return Damage(what, "rebuild", table, row_id, _text(tenant), _text(run_id))

    def row(self, table: str, row_id: int, row: tuple[Any, ...]) -> Damage | None:
        """Return what is damaged in a row."""
        for (name, allowed), value in zip(self._types[table].items(), row, strict=True):
            if not isinstance(value, allowed):
                columns = dict(zip(self._types[table], row, strict=True))
                tenant, run_id = _text(columns.get("tenant")), _text(columns.get("run_id"))
                return Damage(f"its column {name} has another type", "set aside", table, row_id, tenant, run_id)
        if table == "runs":
            return self._run(row_id, row)
        checks: dict[str, Callable[..., str | None]]
        checks = {"fragments": self._fragment, "foreign_spans": self._foreign_span, "resources": self._resource}
        what = checks[table](*row)
        tenant = _text(row[1]) if table != "resources" else ""
        if what is None and table == "fragments":
            fragment = FragmentRow(*row[:-2])
            if queries.hint_checksum(fragment.missing, fragment.tried) != row[-2]:
                return Damage("its columns missing and tried have another checksum", "repair", table, row_id, tenant)
        return Damage(what, "set aside", table, row_id, tenant) if what else None

    def repaired(self, table: str, columns: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Return the columns of a run or a fragment with those that follow from the others made anew; None without."""
        if table == "runs":
            return self._repaired_run(columns)
        if table != "fragments" or self._fragment(*columns) is not None:
            return None
        # Without a hint, the next span of the trace shows what is missing.
        fragment = FragmentRow(*columns[:-2])._replace(missing=None, tried=None)
        return (*fragment, None, columns[-1])

    def _repaired_run(self, columns: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Return the columns of a run with those that follow from its document made anew.

        None if the document is damaged, or what follows from nothing else. Whose run it is must be proved by the trace
        id, which follows from both, or by the checksum of the list item.
        """
        row = RunRow(*columns[:-1])
        try:
            run, tenant = self._document(row), row.tenant.decode()
        except (_Unsound, UnicodeDecodeError):
            return None
        is_item_sound = queries.summary_checksum(row.tenant, row.run_id, row.time, row.summary) == row.checksum
        is_owner_proved = is_item_sound or run_ids(run.id, tenant).trace_id == row.trace_id
        time = row.time if is_item_sound else sort_time(run.envelope)
        if not is_owner_proved or time is None or queries.run_checksum(row) != columns[-1]:
            return None
        made = queries.run_row(run, tenant, row.revision, row.document, time=time, written_at=row.written_at)
        made = made._replace(
            step_ids=row.step_ids,
            incomplete=row.incomplete,
            superseded=row.superseded,
            resource_id=row.resource_id if row.resource_id in self._resources else None,
            observed_at=row.observed_at if made.observed_at is not None and row.observed_at else made.observed_at,
        )
        return (*made, queries.run_checksum(made)) if self._own_columns(made, run) is None else None

    def _run(self, row_id: int, columns: tuple[Any, ...]) -> Damage | None:
        row = RunRow(*columns[:-1])
        damaged = partial(Damage, table="runs", row=row_id, tenant=_text(row.tenant), run_id=_text(row.run_id))
        try:
            run = self._document(row)
            what = self._list_item(row, run)
        except _Unsound as error:
            return damaged(str(error), "set aside")
        except UnicodeDecodeError:
            return damaged("its tenant or run id is no text", "set aside")
        if what is not None:
            return damaged(what, "repair" if self._repaired_run(columns) else "set aside")
        what = self._own_columns(row, run)
        if what is None and queries.run_checksum(row) != columns[-1]:
            what = "its row has another checksum"
        return damaged(what, "set aside") if what else None

    def _document(self, row: RunRow) -> Run:
        """Return the document of a row. Raise _Unsound when it is not the one that the digest says."""
        try:
            text = self._compression.decompress(row.document, self._connection)
        except CorruptFrame as error:
            raise _Unsound(f"its document cannot be decompressed: {error}") from None
        if not sha256(text).digest().startswith(row.digest):
            raise _Unsound("its document has another digest")
        try:
            return Run.from_json(text)
        except DocumentError as error:
            raise _Unsound(f"its document cannot be read: {error}") from None

    def _list_item(self, row: RunRow, run: Run) -> str | None:
        """Return which column is not as the document says."""
        if queries.summary_checksum(row.tenant, row.run_id, row.time, row.summary) != row.checksum:
            return "its list item has another checksum"
        made = queries.run_row(
            run, row.tenant.decode(), row.revision, row.document, time=row.time, written_at=row.written_at
        )
        for name in ("trace_id", "run_id", *_LABELS, "ended", "digest", "summary"):
            if getattr(made, name) != getattr(row, name):
                return f"its column {name} does not follow from its document"
        if (made.observed_at is None) != (row.observed_at is None):
            return "its column observed_at does not fit its status"
        if row.resource_id is not None and row.resource_id not in self._resources:
            return "its resource is missing"
        return None

    def _own_columns(self, row: RunRow, run: Run) -> str | None:
        """Return which of the columns that do not follow from the document cannot be right."""
        if not 0 <= row.revision < 2 * ROOT_REVISION:
            return f"its revision is {row.revision}"
        if row.step_ids is not None:
            try:
                from_row(run, row.tenant.decode(), row.revision, row.step_ids, row.time)
            except ValueError as error:
                return f"its column step_ids does not fit its document: {error}"
        if row.superseded is not None and len(row.superseded) % len(row.digest):
            return "its column superseded is no list of digests"
        try:
            queries.bytes_to_lines(row.incomplete)
        except UnicodeDecodeError:
            return "its column incomplete is no text"
        return None

    def _fragment(self, *columns: Any) -> str | None:
        row = FragmentRow(*columns[:-2])
        if queries.fragment_checksum(row) != columns[-1]:
            return "its row has another checksum"
        if row.kind == queries.SUPERSEDED:
            return self._superseded(row)
        try:
            (span,) = read_spans(row.content)
        except (PayloadError, ValueError):
            return "its span cannot be read"
        found = (span.trace_id, span.span_id, queries.fingerprint(span), 1)
        if found != (row.trace_id, row.span_id, row.fingerprint, row.spans):
            return "its span is another than its columns say"
        roles = {queries.STEP: {ROLE_STEP}, queries.REVISION: queries.REVISION_ROLES}
        if span.attributes().get(ROLE) not in roles.get(row.kind, ()):
            return "its role is another than its columns say"
        return _no_text(row.tenant)

    def _superseded(self, row: FragmentRow) -> str | None:
        """Return what is damaged in a row of superseded steps."""
        try:
            tenant, time, span_ids, frame = queries.superseded_content(row.content)
            run = Run.from_json(self._compression.decompress(frame, self._connection))
            from_row(run, tenant, 0, span_ids, time)
        except CorruptFrame as error:
            return f"its steps cannot be decompressed: {error}"
        except (ValueError, DocumentError) as error:
            return f"its steps cannot be read: {error}"
        made = queries.superseded_row(row.trace_id, tenant, row.received_at, split_ids(span_ids), time, frame)
        if made != row or run_ids(run.id, tenant).trace_id != row.trace_id:
            return "its steps are others than its columns say"
        return None

    def _foreign_span(
        self,
        trace_id: bytes,
        tenant: bytes,
        span_id: bytes,
        digest: bytes,
        received_at: int,
        otlp: bytes,
        row_checksum: bytes,
    ) -> str | None:
        if queries.checksum(trace_id, tenant, span_id, digest, received_at) != row_checksum:
            return "its row has another checksum"
        try:
            content = self._compression.decompress(otlp, self._connection)
            (span,) = read_spans(content)
        except CorruptFrame as error:
            return f"its span cannot be decompressed: {error}"
        except (PayloadError, ValueError):
            return "its span cannot be read"
        if not sha256(content).digest().startswith(digest) or (span.trace_id, span.span_id) != (trace_id, span_id):
            return "its span is another than its columns say"
        return _no_text(tenant)

    def _resource(self, content: bytes) -> str | None:
        try:
            Resource.FromString(content)
        except DecodeError:
            return "it is no resource of OTLP"
        return None


class _Unsound(Exception):
    """A document is not the one that was written. The message says why."""


def _column_types(connection: sqlite3.Connection, table: str) -> dict[str, tuple[type, ...]]:
    """Return the types of values that each column may have. SQLite enforces them when it writes, not when it reads.

    Raise sqlite3.DatabaseError when a damaged schema has other columns.
    """
    types: dict[str, tuple[type, ...]] = {"BLOB": (bytes,), "INTEGER": (int,)}
    info = {name: (kind, required) for _, name, kind, required, *_ in connection.execute(f"PRAGMA table_info({table})")}
    try:
        kinds = {name: (types[info[name][0]], info[name][1]) for name in _COLUMNS[table]}
    except KeyError as error:
        raise sqlite3.DatabaseError(f"the schema of table {table} has no {error}") from None
    return {name: kind if required else (*kind, type(None)) for name, (kind, required) in kinds.items()}


def _text(content: object) -> str:
    return content.decode(errors="backslashreplace") if isinstance(content, bytes) else ""


def _no_text(tenant: bytes) -> str | None:
    try:
        tenant.decode()
    except UnicodeDecodeError:
        return "its tenant is no text"
    return None


# Mending.


def repair(connection: sqlite3.Connection, compression: Compression, damage: Damage) -> bool:
    """Make what is damaged from what is sound; return False if that cannot be done."""
    if damage.row is not None:
        return _repair_row(connection, compression, damage.table, damage.row)
    if damage.table in _SUMS:
        queries.rebuild_sums(connection)
    else:
        _rebuild_index(connection, damage.table)
    return True


def _rebuild_index(connection: sqlite3.Connection, name: str) -> None:
    quoted = name.replace('"', '""')
    connection.execute(f'REINDEX "{quoted}"')


def _repair_row(connection: sqlite3.Connection, compression: Compression, table: str, row_id: int) -> bool:
    row = read_row(connection, table, row_id)
    made = None if row is None else RowCheck(connection, compression).repaired(table, row)
    if made is None:
        return False
    assignments = ", ".join(f"{name} = ?" for name in _COLUMNS[table])
    connection.execute(f"UPDATE {table} SET {assignments} WHERE id = ?", (*made, row_id))  # noqa: S608 constants
    return True


def take_out(connection: sqlite3.Connection, compression: Compression, damage: Damage) -> bytes | None:
    """Delete a row that is still damaged; return it as a line of JSON, None if it is sound or gone."""
    row = None if damage.row is None else read_row(connection, damage.table, damage.row)
    if row is None or damage.row is None:
        return None
    found = RowCheck(connection, compression).row(damage.table, damage.row, row)
    if found is None:
        return None
    connection.execute(f"DELETE FROM {damage.table} WHERE id = ?", (damage.row,))  # noqa: S608 a constant
    return _line(found, row)


def copy_sound_rows(
    source: sqlite3.Connection,
    target: sqlite3.Connection,
    compression: Compression,
    keep: Callable[[bytes], None],
    on_progress: OnProgress,
) -> int:
    """Copy the rows that can be read and are sound, or can be repaired, to an empty store; return how many.

    keep: Called with each other row as a line of JSON, also with those that only an index still has.
    """
    copied = 0
    source.text_factory = partial(str, encoding="utf-8", errors="replace")
    check = RowCheck(source, compression)
    target.execute("BEGIN IMMEDIATE")
    target.execute(MARK_COMMIT)
    with suppress(*READ_ERRORS):
        dictionaries = source.execute("SELECT id, content, digest FROM dictionaries").fetchall()
        target.executemany("INSERT INTO dictionaries VALUES (?, ?, ?)", dictionaries)
    for table, columns in _COLUMNS.items():
        insert = f"INSERT INTO {table} (id, {', '.join(columns)}) VALUES (?{', ?' * len(columns)})"  # noqa: S608 constants
        seen: set[int] = set()
        for row_id, row in _readable(source, table):
            on_progress(1)
            seen.add(row_id)
            damage = check.unreadable(table, row_id) if row is None else check.row(table, row_id, row)
            made = check.repaired(table, row) if row and damage and damage.remedy == "repair" else None
            sound = made or (row if damage is None else None)
            try:
                if sound is not None:
                    target.execute(insert, (row_id, *sound))
                    copied += 1
                    continue
            except sqlite3.IntegrityError as error:
                damage = Damage(str(error), "rebuild", table, row_id)
            if damage is not None:
                keep(_line(damage, row))
        with suppress(*READ_ERRORS):
            for row_id in _indexed_ids(source, table, -1):
                if row_id not in seen:
                    keep(_line(check.unreadable(table, row_id), None))
    target.execute("COMMIT")
    return copied


def _readable(connection: sqlite3.Connection, table: str) -> Iterator[tuple[int, tuple[Any, ...] | None]]:
    """Yield the rows of a table until neither the table nor its index can be read further."""
    with suppress(*READ_ERRORS):
        yield from _rows(connection, table)


def _line(damage: Damage, row: tuple[Any, ...] | None) -> bytes:
    """Return a damaged row as a line of JSON. row: None if it cannot be read."""
    line: dict[str, Any] = {"table": damage.table, "row": damage.row, "tenant": damage.tenant, "run": damage.run_id}
    line["what"] = damage.what
    if row is not None:
        line["columns"] = dict(zip(_COLUMNS[damage.table], map(_plain, row), strict=True))
    return json.dumps(line).encode() + b"\n"


def _plain(value: Any) -> Any:
    """Return a column's value as JSON: bytes as an object with their base64."""
    return {"base64": b64encode(value).decode()} if isinstance(value, bytes) else value
