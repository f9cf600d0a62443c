"""Open, create, check and lock runspan's SQLite files, and translate SQLite's errors."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Final

from runspan.errors import StoreError, StoreFull

BUSY_TIMEOUT: Final = 10.0
"""Seconds to wait for the lock of another process."""

EXCLUSIVE_TIMEOUT: Final = 1.0
"""The same for a file that another process may hold for as long as it runs."""

_MESSAGES: Final = {
    "SQLITE_FULL": ("the disk is full", "free space or shorten the retention, then try again: nothing was taken"),
    "SQLITE_BUSY": ("another process holds the write lock", "stop the other writer, or wait until it has finished"),
    "SQLITE_LOCKED": ("another connection holds the table", "try again"),
    "SQLITE_READONLY": ("the file or its directory is read-only", "give the user of this process write permission"),
    "SQLITE_CANTOPEN": ("the file cannot be opened", "the directory must exist and be writable, also to read"),
    "SQLITE_PERM": ("the file may not be accessed", "give the user of this process read and write permission"),
    "SQLITE_IOERR": ("the disk failed", "look at the system's log; check the disk and the space on it"),
    "SQLITE_CORRUPT": (
        "the file is damaged",
        "look at it with `runspan check`, or restore a backup with `runspan restore`",
    ),
    "SQLITE_NOTADB": ("the file is no SQLite database", "choose another path, or move the file away"),
    "SQLITE_TOOBIG": ("a value is too large to store", "split the run, or keep large payloads elsewhere"),
}
"""SQLite's primary result code → what happened, and what to do next."""


_NO_HINTS: Final[Mapping[str, str]] = {}
READ_ERRORS: Final = (sqlite3.Error, UnicodeDecodeError)
"""What reading a damaged file raises: the text of an error may quote a damaged page."""


@dataclass(frozen=True, slots=True)
class Schema:
    """What distinguishes one kind of SQLite file from the others, and what is in it."""

    name: str
    """What errors call such a file, with its article: ``the embedded store``."""
    application_id: int
    version: int
    tables: tuple[str, ...]
    """The statements that create the tables and indexes of a new file."""
    hint: str
    """What to do instead of using a file that is another application's, another version's, or in use."""
    page_pragmas: tuple[str, ...] = ()
    """Settings of the file itself, which have no effect once its first page is written."""
    hints: Mapping[str, str] = field(default_factory=dict)
    """SQLite's primary result code, or "" for an error of the file system → what to do about such a file, where that
    differs from what helps the embedded store."""


def read_statements(package: str, file: str) -> tuple[str, ...]:
    """Return the statements of an SQL file in a package."""
    text = resources.files(package).joinpath(file).read_text(encoding="utf-8")
    statements = [""]
    for line in text.splitlines(keepends=True):
        statements[-1] += line
        if sqlite3.complete_statement(statements[-1]):  # a trigger has statements of its own
            statements.append("")
    return tuple(filter(None, map(str.strip, statements)))


def open_database(
    path: Path | str | None,
    schema: Schema,
    *,
    exclusive: bool = False,
    pragmas: tuple[str, ...] = (),
) -> sqlite3.Connection:
    """Open a file to read and write, and create it with its tables when there is none or an empty one.

    The connection is in autocommit mode, with a write-ahead log and ``synchronous = FULL``. Several threads may use it,
    one at a time. Only the user of this process may read or write the file (mode 0600); SQLite creates the files next
    to it with the same mode.

    - ``path``: None opens a database in memory.
    - ``exclusive``: allow no other connection, also of other processes, until this one is closed. The system releases
      the lock when the process ends, however it ends.
    - ``pragmas``: settings of the connection, such as ``cache_size = -65536``.

    Raise StoreError, and leave the file as it is, when it cannot be opened, is damaged, is another application's, was
    written by another version, or is locked.
    """
    busy_timeout = EXCLUSIVE_TIMEOUT if exclusive else BUSY_TIMEOUT
    where = Path(path) if path is not None else Path(":memory:")
    connection: sqlite3.Connection | None = None
    try:
        # Only a new file is opened here: closing it would release the locks that this process has on an existing one.
        if path is not None and not where.exists():
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        connection = _connect(str(where), busy_timeout)
        _create_or_check(connection, where, schema, exclusive=exclusive)
        mode = _use_write_ahead_log(connection, busy_timeout)
        if mode != "wal" and path is not None:
            hint = "network file systems cannot; choose a local disk"
            raise StoreError(where=str(where), expected="a file system with shared memory", got=mode, hint=hint)
        # What macOS calls a sync leaves the data in the drive without the second one.
        for pragma in ("synchronous = FULL", "fullfsync = ON", *pragmas):
            connection.execute(f"PRAGMA {pragma}")
    except BaseException as error:
        if connection is not None:
            connection.close()
        if isinstance(error, UnicodeDecodeError):  # the text of an error that quotes a damaged page
            error = sqlite3.DatabaseError(ascii(error.object))
        if not isinstance(error, sqlite3.Error | OSError):
            raise
        if exclusive and primary_code(error) in ("SQLITE_BUSY", "SQLITE_LOCKED"):
            hint = f"stop the other process, or {schema.hint}"
            raise StoreError(f"another process is using {schema.name}", where=str(where), hint=hint) from error
        raise store_error(error, where, schema.hints) from error
    return connection


class SharedDatabase:
    """A ``Database`` in an SQLite file, or in memory. Its statements are executed one at a time."""

    def __init__(self, path: Path | str | None, schema: Schema, *, pragmas: tuple[str, ...] = ()) -> None:
        """``path``, ``pragmas``: see ``open_database``."""
        self._path = Path(path or ":memory:")
        self._hints = schema.hints
        self._lock = threading.Lock()
        self._connection = open_database(path, schema, pragmas=pragmas)

    def execute(self, statement: str, *values: object) -> list[Any]:
        """See ``Database``."""
        with self._lock, translate_errors(self._path, self._hints):
            return self._execute(statement, *values)

    @contextmanager
    def transaction(self) -> Iterator[Callable[..., list[Any]]]:
        """See ``Database``."""
        with self._lock, translate_errors(self._path, self._hints), transaction(self._connection):
            yield self._execute

    def compact(self) -> None:
        """Write the file anew, so that it has no byte of what was deleted."""
        self.execute("VACUUM")
        self.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def version(self) -> int | None:
        """See ``Database``. SQLite finds it in shared memory."""
        with self._lock, translate_errors(self._path, self._hints):
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            self._connection.close()

    def _execute(self, statement: str, *values: object) -> list[Any]:
        return self._connection.execute(statement, values).fetchall()


class SqliteSession:
    """A ``Session`` of a file; for the parameters and errors see ``open_database``."""

    def __init__(self, path: Path, schema: Schema, *, exclusive: bool = False, pragmas: tuple[str, ...] = ()) -> None:
        self._path = path
        self._schema = schema
        self._connection = open_database(path, schema, exclusive=exclusive, pragmas=pragmas)

    @property
    def where(self) -> str:
        """See ``Session``."""
        return str(self._path)

    @property
    def what(self) -> str:
        """See ``Session``."""
        return self._schema.name

    @property
    def hint(self) -> str:
        """See ``Session``."""
        return self._schema.hint

    @property
    def in_transaction(self) -> bool:
        """See ``Session``."""
        return self._connection.in_transaction

    def begin(self) -> None:
        """See ``Session``."""
        self.execute("BEGIN IMMEDIATE")

    def execute(self, statement: str, values: Iterable[Any] = ()) -> sqlite3.Cursor:
        """See ``Session``. Raises OverflowError for a number of more than 64 bits."""
        with self.errors():
            return self._connection.execute(statement, tuple(values))

    def commit(self) -> None:
        """See ``Session``."""
        self.execute("COMMIT")

    def roll_back(self) -> None:
        """See ``Session``."""
        self.execute("ROLLBACK")

    def errors(self) -> AbstractContextManager[None]:
        """See ``Session``."""
        return translate_errors(self._path, self._schema.hints)

    def flush(self) -> None:
        """See ``Session``."""
        self.execute("PRAGMA wal_checkpoint").fetchall()

    def indexed_by(self, index: str) -> str:
        """See ``Session``. SQLite does not choose a partial index by itself if another one seems as good."""
        return f" INDEXED BY {index}"

    def close(self) -> None:
        """See ``Session``."""
        self._connection.close()


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what the block changes when it ends, or nothing of it if it raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # after some errors SQLite has rolled back already
            connection.execute("ROLLBACK")
        raise


def open_read_only(path: Path, *, pragmas: tuple[str, ...] = ()) -> sqlite3.Connection:
    """Open a file that ``open_database`` has created, to read. Raise sqlite3.Error when it cannot be opened."""
    connection = _connect(path.absolute().as_uri() + "?mode=ro", BUSY_TIMEOUT, uri=True)
    for pragma in pragmas:
        connection.execute(f"PRAGMA {pragma}")
    return connection


def file_bytes(path: Path) -> int:
    """Return the size of a database file and its write-ahead log."""
    size = 0
    for file in (path, f"{path}-wal"):
        with suppress(OSError):
            size += os.stat(file).st_size
    return size


def integrity_faults(path: Path) -> list[str]:
    """Return what SQLite's own check finds in a file; nothing if it is sound."""
    try:
        with closing(open_read_only(path)) as connection:
            connection.text_factory = partial(str, encoding="utf-8", errors="replace")
            found = [message for (message,) in connection.execute("PRAGMA integrity_check")]
    except READ_ERRORS as error:
        return [str(error)]
    return [message for message in found if message != "ok"]


@contextmanager
def translate_errors(path: Path, hints: Mapping[str, str] = _NO_HINTS) -> Iterator[None]:
    """Raise SQLite's and the file system's errors as StoreError; see ``store_error``."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise store_error(sqlite3.DatabaseError(ascii(error.object)), path) from error
    except (sqlite3.Error, OSError) as error:
        raise store_error(error, path, hints) from error


def store_error(error: sqlite3.Error | OSError, path: Path, hints: Mapping[str, str] = _NO_HINTS) -> StoreError:
    """Return the StoreError that says what happened to the file, and what to do next. ``hints``: see ``Schema``."""
    name, code = getattr(error, "sqlite_errorname", ""), primary_code(error)
    if isinstance(error, OSError):
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            hint = hints.get("", "check the path and its permissions")
            return StoreError(error.strerror or str(error), where=str(path), hint=hint)
        name, code = errno.errorcode[error.errno], "SQLITE_FULL"
    elif name == "SQLITE_IOERR_SHMSIZE":  # no space for the index of the write-ahead log
        code = "SQLITE_FULL"
    message, hint = _MESSAGES.get(code, ("SQLite failed", "check the file with `runspan check`"))
    kind = StoreFull if code == "SQLITE_FULL" else StoreError
    return kind(message, where=str(path), got=f"{name} {error}".strip(), hint=hints.get(code, hint))


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether SQLite found the file to be damaged."""
    return primary_code(error) in ("SQLITE_CORRUPT", "SQLITE_NOTADB")


def _connect(database: str, busy_timeout: float, *, uri: bool = False) -> sqlite3.Connection:
    return sqlite3.connect(database, uri=uri, timeout=busy_timeout, isolation_level=None, check_same_thread=False)


def _create_or_check(connection: sqlite3.Connection, path: Path, schema: Schema, *, exclusive: bool) -> None:
    execute = connection.execute
    if exclusive:
        execute("PRAGMA locking_mode = EXCLUSIVE")
    else:
        execute("BEGIN")  # the three numbers that are compared are those of one moment
        empty = _is_empty(connection, path, schema)
        execute("COMMIT")
        if not empty:
            return
    for pragma in schema.page_pragmas:
        execute(f"PRAGMA {pragma}")
    execute("BEGIN EXCLUSIVE")
    if _is_empty(connection, path, schema):  # another process may have created the tables meanwhile
        for statement in schema.tables:
            execute(statement)
        execute(f"PRAGMA application_id = {schema.application_id}")
        execute(f"PRAGMA user_version = {schema.version}")
    execute("COMMIT")


def _use_write_ahead_log(connection: sqlite3.Connection, busy_timeout: float) -> str:
    """Return the journal mode that the file has now.

    SQLite does not wait for other connections when it changes the mode, so this does.
    """
    deadline = time.monotonic() + busy_timeout
    while True:
        try:
            return str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if primary_code(error) != "SQLITE_BUSY" or time.monotonic() >= deadline:
                raise
        time.sleep(0.01)


def _is_empty(connection: sqlite3.Connection, path: Path, schema: Schema) -> bool:
    """Return False for a file of this schema and True for an empty one. Raise StoreError for any other."""
    application, version, tables = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("application_id", "user_version", "schema_version")
    )
    if application == schema.application_id and version == schema.version:
        return False
    if application == schema.application_id:
        raise StoreError(
            f"{schema.name} was written by another version of runspan",
            where=str(path),
            expected=f"format {schema.version}",
            got=f"format {version}",
            hint=f"use that version, or {schema.hint}",
        )
    if application or version or tables:
        got = "another application's database"
        raise StoreError(where=str(path), expected=schema.name, got=got, hint=schema.hint)
    return True


def primary_code(error: BaseException) -> str:
    """Return the first two words of an extended result code: SQLITE_IOERR of SQLITE_IOERR_READ."""
    return "_".join(getattr(error, "sqlite_errorname", "").split("_")[:2])
