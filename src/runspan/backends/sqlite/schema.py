"""The file: its tables, its format number, and the steps from older formats to this one."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final

from runspan.errors import StoreError
from runspan.storage.sqlite_file import store_error

FILE_NAME: Final = "runspan.sqlite3"
APPLICATION_ID: Final = 0x72737061
FORMAT: Final = 3

_BUSY_SECONDS = 10.0

_LIVE_RUNS: Final = (
    "CREATE INDEX live_runs ON runs (tenant, time, run_id, observed_at, status) WHERE observed_at IS NOT NULL"
)
"""Has only pending and running runs, with all columns that a search for stuck runs compares."""

_TABLES: Final = (
    # The columns that a list needs precede the document, so that a list reads no overflow pages.
    """
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY,
        trace_id BLOB NOT NULL UNIQUE,
        tenant BLOB NOT NULL,
        run_id BLOB NOT NULL,
        workflow_id BLOB,
        status BLOB,
        time INTEGER NOT NULL,
        ended INTEGER NOT NULL,
        revision INTEGER NOT NULL,
        digest BLOB NOT NULL,
        observed_at INTEGER,
        superseded BLOB,
        summary BLOB NOT NULL,
        document BLOB NOT NULL,
        step_ids BLOB,
        incomplete BLOB,
        written_at INTEGER NOT NULL,
        resource_id INTEGER
    ) STRICT
    """,
    "CREATE INDEX runs_by_time ON runs (tenant, time, run_id)",
    "CREATE INDEX runs_by_workflow ON runs (tenant, workflow_id, time, run_id)",
    "CREATE INDEX runs_by_status ON runs (tenant, status, time, run_id)",
    "CREATE INDEX runs_by_workflow_and_status ON runs (tenant, workflow_id, status, time, run_id)",
    "CREATE INDEX runs_by_end ON runs (ended)",
    _LIVE_RUNS,
    """
    CREATE TABLE fragments (
        id INTEGER PRIMARY KEY,
        trace_id BLOB NOT NULL,
        tenant BLOB NOT NULL,
        fingerprint BLOB NOT NULL,
        is_revision_span INTEGER NOT NULL,
        received_at INTEGER NOT NULL,
        span BLOB NOT NULL,
        UNIQUE (trace_id, tenant, fingerprint)
    ) STRICT
    """,
    """
    CREATE TABLE foreign_spans (
        id INTEGER PRIMARY KEY,
        trace_id BLOB NOT NULL,
        tenant BLOB NOT NULL,
        span_id BLOB NOT NULL,
        digest BLOB NOT NULL,
        received_at INTEGER NOT NULL,
        otlp BLOB NOT NULL,
        UNIQUE (trace_id, tenant, span_id, digest)
    ) STRICT
    """,
    "CREATE TABLE dictionaries (id INTEGER PRIMARY KEY, content BLOB NOT NULL) STRICT",
    "CREATE TABLE resources (id INTEGER PRIMARY KEY, content BLOB NOT NULL UNIQUE) STRICT",
)

_MIGRATIONS: Final = {
    1: (
        "CREATE TABLE resources (id INTEGER PRIMARY KEY, content BLOB NOT NULL UNIQUE) STRICT",
        "ALTER TABLE runs ADD COLUMN resource_id INTEGER",
    ),
    2: (
        "ALTER TABLE runs ADD COLUMN observed_at INTEGER",
        "ALTER TABLE runs ADD COLUMN superseded BLOB",
        # See fields.observation.
        "UPDATE runs SET observed_at = revision % 4611686018427387904"
        " WHERE status IN (CAST('pending' AS BLOB), CAST('running' AS BLOB))",
        _LIVE_RUNS,
    ),
}
"""Format number → the statements that lead to the next one."""


def open_writer(path: Path) -> sqlite3.Connection:
    """The connection that writes, on a file of this format: created, or migrated from an older one."""
    connection: sqlite3.Connection | None = None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Payloads are nobody else's business on this machine; SQLite gives the files beside it the same mode.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        _check_application(connection, path)
        if not _number(connection, "user_version"):  # neither has an effect once a page is written
            connection.execute("PRAGMA page_size = 8192")  # rows of 900 bytes would leave a tenth of 4096 empty
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            hint = "network file systems cannot; choose a local disk"
            raise StoreError(where=str(path), expected="a file system with shared memory", got=mode, hint=hint)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA cache_size = -65536")
        connection.execute("PRAGMA wal_autocheckpoint = 16000")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        _migrate(connection)
    except (sqlite3.Error, OSError) as error:
        if connection is not None:
            connection.close()
        raise store_error(error, path) from error
    except StoreError:
        if connection is not None:
            connection.close()
        raise
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection that cannot write."""
    connection = sqlite3.connect(
        path.absolute().as_uri() + "?mode=ro",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.execute("PRAGMA cache_size = -16384")
    return connection


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])


def _check_application(connection: sqlite3.Connection, path: Path) -> None:
    """StoreError unless the file is empty or a store of this format or an older one."""
    application, version = _number(connection, "application_id"), _number(connection, "user_version")
    if application == APPLICATION_ID and 1 <= version <= FORMAT:
        return
    if application == APPLICATION_ID:
        raise StoreError(
            "the store was written by another version of runspan",
            where=str(path),
            expected=f"format 1 to {FORMAT}",
            got=f"format {version}",
            hint="use the newest version of runspan that ever opened this directory",
        )
    if application or version or _number(connection, "schema_version"):
        raise StoreError(
            where=str(path),
            expected="a runspan store",
            got="another application's database",
            hint="choose another directory",
        )


def _migrate(connection: sqlite3.Connection) -> None:
    """Creates the tables or migrates them, in one transaction: after a crash the file is as before."""
    if _number(connection, "application_id") and _number(connection, "user_version") == FORMAT:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _number(connection, "user_version")  # another process may have been faster
        steps = _TABLES if version == 0 else [step for old in range(version, FORMAT) for step in _MIGRATIONS[old]]
        for step in steps:
            connection.execute(step)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {FORMAT}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
