"""The tables of the embedded store, and how its file is opened."""

from __future__ import annotations

import sqlite3
from functools import partial
from pathlib import Path
from typing import Final

from runspan.backends.sqlite.reserve import Reserve
from runspan.backends.sqlite.wal import application_id, require_own_log
from runspan.errors import StoreError
from runspan.storage.data_directory import STORE_LOCK, DirectoryUse
from runspan.storage.sqlite_file import Schema, open_database, read_statements, translate_errors

FILE_NAME: Final = "runspan.sqlite3"

SCHEMA: Final = Schema(
    name="the embedded store",
    application_id=0x72737061,
    version=1,
    tables=read_statements(__package__, "schema.sql"),
    hint="choose another directory",
    # Small, since a run of a backfill changes a page of each index, which is written to the log and to the database.
    page_pragmas=("page_size = 4096", "auto_vacuum = INCREMENTAL"),
)
BACKUP_ID: Final = 0x7273626B
"""The application id of a backup; see ``backup.py``."""
_WRITER_PRAGMAS: Final = (
    "cache_size = -65536",
    # 40 MiB, so that a large transaction does not make the log longer than 64 MiB.
    "wal_autocheckpoint = 10000",
    "journal_size_limit = 67108864",
    # A deletion writes no page only to overwrite it, which some builds of SQLite do, and no file elsewhere.
    "secure_delete = FAST",
    "temp_store = MEMORY",
)


def use_directory(path: Path) -> DirectoryUse:
    """Return the use of the directory of a store's file, and create the directory when it is not there.

    Raise StoreError when the write-ahead log does not belong to the file.
    """
    with translate_errors(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return DirectoryUse(path.parent, STORE_LOCK, before_first_use=partial(_require_fitting_files, path))


def _require_fitting_files(path: Path) -> None:
    with translate_errors(path):
        if path.exists() and application_id(path) == BACKUP_ID:
            raise StoreError(
                "this is a backup, which is no store yet",
                where=str(path),
                hint="move it to another directory, then: runspan restore --from FILE --data DIR",
            )
    Reserve(path).release_if_nearly_full()  # reading the log needs space for its index
    require_own_log(path)


def open_writer(path: Path) -> sqlite3.Connection:
    """Open the connection that writes. Create the file when it is not there."""
    try:
        return open_database(path, SCHEMA, pragmas=_WRITER_PRAGMAS)
    except StoreError:
        if not Reserve(path).release_if_nearly_full():
            raise
    return open_database(path, SCHEMA, pragmas=_WRITER_PRAGMAS)
