"""The tables of the embedded store, and how its file is opened."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from runspan.backends.sqlite.reserve import Reserve
from runspan.errors import StoreError
from runspan.storage.sqlite_file import Schema, open_database, read_statements, translate_errors

FILE_NAME: Final = "runspan.sqlite3"

SCHEMA: Final = Schema(
    name="the embedded store",
    application_id=0x72737061,
    version=1,
    tables=read_statements(__package__, "schema.sql"),
    hint="choose another directory",
    # Rows of 900 bytes would leave a tenth of the default page of 4096 bytes empty.
    page_pragmas=("page_size = 8192", "auto_vacuum = INCREMENTAL"),
)
_WRITER_PRAGMAS: Final = (
    "cache_size = -65536",
    "wal_autocheckpoint = 16000",
    "journal_size_limit = 67108864",
    # A deletion writes no page only to overwrite it, which some builds of SQLite do, and no file elsewhere.
    "secure_delete = FAST",
    "temp_store = MEMORY",
)


def open_writer(path: Path) -> sqlite3.Connection:
    """Open the connection that writes. Create the directory and the file when they are not there."""
    with translate_errors(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        return open_database(path, SCHEMA, pragmas=_WRITER_PRAGMAS)
    except StoreError:
        if not Reserve(path).release_if_nearly_full():
            raise
    return open_database(path, SCHEMA, pragmas=_WRITER_PRAGMAS)
