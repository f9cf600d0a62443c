"""Erase a tenant from a store, so that no file of its directory has any of its bytes.

SQLite leaves what was deleted in free pages and in the log, and the dictionary of the compression has parts of the
documents of all tenants. So the rows of the others are compressed again without it, and the file is written anew. A
server trains another dictionary, and makes another index.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runspan.backends.sqlite import queries
from runspan.backends.sqlite.compression import Compression, CorruptFrame
from runspan.backends.sqlite.index import feed
from runspan.backends.sqlite.queries import SUPERSEDED, FragmentRow
from runspan.backends.sqlite.revision import split_ids
from runspan.backends.sqlite.schema import FILE_NAME, open_writer
from runspan.backends.sqlite.wal import MARK_COMMIT, require_own_log
from runspan.errors import StoreError
from runspan.storage.data_directory import INDEX_FILE, exclusive_use
from runspan.storage.sqlite_file import open_read_only, transaction, translate_errors
from runspan.system import sync_path

_BATCH: Final = 500
_TABLES: Final = ("foreign_spans", "fragments", "runs")
_COPIES: Final = ("replaced-", "set-aside-", "restore-")
"""What the names of files and folders begin with that earlier commands have put aside."""

OnProgress = Callable[[str, int, int], None]
"""Called with what is done, how many rows of it, and how many there are; 0 if that is not known."""


@dataclass(frozen=True, slots=True)
class TenantContent:
    """What a store has of a tenant."""

    runs: int
    foreign_spans: int
    fragments: int
    """Rows of spans that wait for others."""


def tenant_content(directory: Path, tenant: str) -> TenantContent:
    """Return what a store has of a tenant, also while a server uses it."""
    path = directory / FILE_NAME
    with translate_errors(path), closing(open_read_only(path)) as connection:
        return _content(connection, tenant)


def copies_in(directory: Path) -> list[Path]:
    """Return the files and folders in which earlier commands have put rows or files of the store aside."""
    return sorted(file for file in directory.iterdir() if file.name.startswith(_COPIES))


def erase_tenant(directory: Path, tenant: str, on_progress: OnProgress) -> TenantContent:
    """Delete everything that a tenant has sent to a store, and return what that was.

    It can be repeated: what an interrupted call has left is erased by the next one. Spans that other tenants have sent
    into the traces of this one stay theirs. Raise StoreError when the directory is in use, or when a row of another
    tenant is damaged, which would be lost.
    """
    path = directory / FILE_NAME
    with exclusive_use(directory):
        require_own_log(path)
        with translate_errors(path):
            with closing(open_writer(path)) as connection:
                found = _content(connection, tenant)
                connection.execute("PRAGMA temp_store = FILE")  # the file that is written anew may be large
                with _transaction(connection):
                    feed.turn_off(connection)
                for table in _TABLES:
                    _delete(connection, table, tenant, on_progress)
                _drop_dictionaries(connection, path, on_progress)
                with _transaction(connection):
                    connection.execute(
                        "DELETE FROM resources WHERE id NOT IN"
                        " (SELECT resource_id FROM runs WHERE resource_id IS NOT NULL)"
                    )
                on_progress("writing the file anew", 0, 0)
                _truncate_log(connection)
                connection.execute("VACUUM")
                _truncate_log(connection)
            for file in directory.glob(f"{INDEX_FILE}*"):
                file.unlink()
            sync_path(directory)
    return found


def _content(connection: sqlite3.Connection, tenant: str) -> TenantContent:
    owner = tenant.encode()
    counts = {
        table: connection.execute(f"SELECT count(*) FROM {table} WHERE tenant = ?", (owner,)).fetchone()[0]  # noqa: S608
        for table in _TABLES
    }
    return TenantContent(**counts)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    with transaction(connection):
        yield
        connection.execute(MARK_COMMIT)


def _delete(connection: sqlite3.Connection, table: str, tenant: str, on_progress: OnProgress) -> None:
    batch = f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE tenant = ? LIMIT ?)"  # noqa: S608 constants
    deleted, count = 0, 1
    while count:
        with _transaction(connection):
            count = connection.execute(batch, (tenant.encode(), _BATCH)).rowcount
        deleted += count
        on_progress(f"deleting from {table}", deleted, 0)


def _drop_dictionaries(connection: sqlite3.Connection, path: Path, on_progress: OnProgress) -> None:
    """Compress everything again that needs a dictionary, and delete the dictionaries."""
    old, new = Compression(), Compression()
    old.load(connection)
    if not connection.execute("SELECT 1 FROM dictionaries").fetchone():
        return

    def recompress(frame: bytes, what: str) -> bytes:
        try:
            return new.compress(old.decompress(frame, connection))
        except CorruptFrame as error:
            hint = "set it aside with `runspan check --set-aside`, then erase again"
            raise StoreError(
                f"{what} of another tenant is damaged", where=str(path), got=str(error), hint=hint
            ) from None

    for table, column in (("runs", "document"), ("foreign_spans", "otlp")):
        total = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 constants
        select = f"SELECT id, {column} FROM {table} WHERE id > ? ORDER BY id LIMIT ?"  # noqa: S608 constants
        update = f"UPDATE {table} SET {column} = ? WHERE id = ?"  # noqa: S608 constants
        last, done = 0, 0
        while rows := connection.execute(select, (last, _BATCH)).fetchall():
            with _transaction(connection):
                connection.executemany(update, [(recompress(frame, "a row"), row_id) for row_id, frame in rows])
            last, done = rows[-1][0], done + len(rows)
            on_progress(f"compressing {table}", done, total)
    columns = ", ".join(FragmentRow._fields)
    select = f"SELECT id, {columns} FROM fragments WHERE kind = {SUPERSEDED} AND kind > 0"  # noqa: S608 constants
    for row_id, *values in connection.execute(select).fetchall():
        row = FragmentRow(*values)
        tenant, time, ids, frame = queries.superseded_content(row.content)
        frame = recompress(frame, "a step")
        changed = queries.superseded_row(row.trace_id, tenant, row.received_at, split_ids(ids), time, frame)
        with _transaction(connection):
            queries.delete_fragments(connection, [row_id])
            queries.insert_fragments(connection, [changed])
    with _transaction(connection):
        connection.execute("DELETE FROM dictionaries")


def _truncate_log(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
