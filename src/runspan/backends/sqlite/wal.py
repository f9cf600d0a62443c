"""Prove that a database and the write-ahead log next to it belong together, before SQLite applies the log.

SQLite applies any log to any database: a log that was left behind when another file was copied over the database
damages it without an error. So every transaction writes the table ``last_commit``: a random marker, and the marker of
the transaction before. A log belongs to the database if its first transaction follows the one that the database has,
or if the database already has pages of a transaction of the log, because a process was killed while it moved them.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

from runspan.errors import StoreError, StoreFull
from runspan.storage.sqlite_file import READ_ERRORS, open_read_only, store_error, translate_errors
from runspan.system import sync_file, sync_path

MARK_COMMIT: Final = "UPDATE last_commit SET previous = marker, marker = randomblob(16)"
"""The statement that each transaction executes."""

_MARKER_PAGE: Final = 3
"""The root page of ``last_commit``, the first table. Page 2 has pointers, as in every file that can be vacuumed."""
_MARKER_BYTES: Final = 16
_CELL: Final = bytes([4 + 2 * _MARKER_BYTES, 1, 4, 0, 12 + 2 * _MARKER_BYTES, 12 + 2 * _MARKER_BYTES])
"""The beginning of the only row: its size, its number, and the types of its columns."""
_LEAF_WITH_ONE_CELL: Final = (13, 1)

_LOG_HEADER: Final = Struct(">8I")
_FRAME_HEADER: Final = Struct(">6I")
_MAGIC: Final = 0x377F0682
_HEADER_VERSION: Final = 3007000
_APPLICATION_ID: Final = slice(68, 72)


class _Commit(NamedTuple):
    """The row of ``last_commit`` in a page."""

    marker: bytes
    previous: bytes


class _Log(NamedTuple):
    """What the headers of a log and of its frames say, of whose frames SQLite may reject some."""

    page_bytes: int
    commits: list[int]
    """The numbers of the frames that end a transaction; the first frame is 1."""
    markers: list[int]
    """The numbers of the frames with the page of the marker."""


class LogFault(NamedTuple):
    """Why a log must not be applied as it is."""

    error: StoreError
    applicable: int
    """How many bytes of it may be applied."""


def require_own_log(path: Path) -> None:
    """Raise StoreError unless the log next to a database is its own, complete, or not there.

    The files must not be open. They are not changed.
    """
    fault = _find_fault(path)
    if fault is not None:
        raise fault.error


def set_log_aside(path: Path, target: Path) -> StoreError | None:
    """Move what must not be applied of a log to a file ``target``; return what was wrong, None if nothing was.

    A log of another database is moved. Of a damaged one, what can be applied stays, and the file has all of it.
    The files must not be open.
    """
    fault = _find_fault(path)
    if fault is None:
        return None
    wal = log_path(path)
    with translate_errors(target):
        with wal.open("rb") as source, open(target, "xb", opener=partial(os.open, mode=0o600)) as copy:
            shutil.copyfileobj(source, copy)
            sync_file(copy.fileno())
        sync_path(target.parent)
        os.truncate(wal, fault.applicable)
        sync_path(wal)
    return fault.error


def _find_fault(path: Path) -> LogFault | None:
    with translate_errors(path):
        wal = log_path(path)
        size = wal.stat().st_size if wal.exists() else 0
        if size <= _LOG_HEADER.size:
            return None
        log = _read_log(wal, size)
        if log is None:
            return LogFault(_damaged(wal, "a header that is not SQLite's"), 0)
        if not log.commits:
            return None
        if not _belongs(path, wal, log):
            error = StoreError(
                "the write-ahead log is not of this database: applied to it, it would damage it",
                where=str(wal),
                got="a log of another file, or of another state of it: was a copy put in the place of the database?",
                hint="move the log away with `runspan check --set-aside`, or put the database of the log back",
            )
            return LogFault(error, 0)
        accepted = _accepted_frames(path)
        beyond = sum(number > accepted for number in log.commits)
        # The transaction that was being written when the power failed may be incomplete, and was not confirmed.
        if beyond > 1:
            error = _damaged(wal, f"{beyond} transactions after the first damaged page")
            return LogFault(error, _frame_start(accepted + 1, log.page_bytes))
    return None


def log_path(path: Path) -> Path:
    """Return the path of the log of a database."""
    return path.with_name(f"{path.name}-wal")


def application_id(path: Path) -> int:
    """Return the application id in the file itself, whatever its log contains; 0 for a file that is no database."""
    with path.open("rb") as file:
        return int.from_bytes(file.read(_APPLICATION_ID.stop)[_APPLICATION_ID], "big")


def _damaged(wal: Path, got: str) -> StoreError:
    return StoreError(
        "the write-ahead log is damaged: writes that were confirmed cannot be read from it",
        where=str(wal),
        got=got,
        hint="`runspan check --set-aside` keeps a copy, and goes on with what is readable; send the last runs again",
    )


def _belongs(path: Path, wal: Path, log: _Log) -> bool:
    database = _database_commit(path, log.page_bytes)
    if database is None:
        return False
    commits = _log_commits(wal, log)
    first = next(commits, None)
    if first is None:
        return False
    return database.marker in (first.previous, first.marker) or any(
        database.marker == commit.marker for commit in commits if commit is not None
    )


def _database_commit(path: Path, page_bytes: int) -> _Commit | None:
    """Return the last transaction that the database has without its log; None if it is no database of the store."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        size = int.from_bytes(file.read(18)[16:], "big")
        if size != page_bytes:
            return None
        file.seek(page_bytes * (_MARKER_PAGE - 1))
        return _commit_of(file.read(page_bytes))


def _log_commits(wal: Path, log: _Log) -> Iterator[_Commit | None]:
    """Yield the transactions in a log up to its last complete one. None stands for a page of another kind of file."""
    with wal.open("rb") as file:
        for number in log.markers:
            if number > log.commits[-1]:
                return
            file.seek(_frame_start(number, log.page_bytes) + _FRAME_HEADER.size)
            yield _commit_of(file.read(log.page_bytes))


def _commit_of(page: bytes) -> _Commit | None:
    start = int.from_bytes(page[8:10], "big")
    content = page[start + len(_CELL) :]
    is_leaf = len(page) > 10 and (page[0], int.from_bytes(page[3:5], "big")) == _LEAF_WITH_ONE_CELL
    if not is_leaf or page[start : start + len(_CELL)] != _CELL or len(content) < 2 * _MARKER_BYTES:
        return None
    return _Commit(content[:_MARKER_BYTES], content[_MARKER_BYTES : 2 * _MARKER_BYTES])


def _read_log(wal: Path, size: int) -> _Log | None:
    """Read the headers of a log; None when SQLite would reject the first one."""
    with wal.open("rb", buffering=0) as file:
        header = file.read(_LOG_HEADER.size)
        magic, version, page_bytes, _, *salts, sum0, sum1 = _LOG_HEADER.unpack(header)
        is_big = magic & 1
        if magic & ~1 != _MAGIC or version != _HEADER_VERSION or _checksum(header[:24], big=is_big) != (sum0, sum1):
            return None
        log = _Log(page_bytes, [], [])
        for number in range(1, 1 + (size - _LOG_HEADER.size) // (_FRAME_HEADER.size + page_bytes)):
            file.seek(_frame_start(number, page_bytes))
            page, pages_after, *frame_salts, _, _ = _FRAME_HEADER.unpack(file.read(_FRAME_HEADER.size))
            if frame_salts != salts:
                continue  # left over from an earlier use of the file
            if page == _MARKER_PAGE:
                log.markers.append(number)
            if pages_after:
                log.commits.append(number)
    return log


def _frame_start(number: int, page_bytes: int) -> int:
    return _LOG_HEADER.size + (number - 1) * (_FRAME_HEADER.size + page_bytes)


def _checksum(content: bytes, *, big: int) -> tuple[int, int]:
    """Return the checksum of SQLite's file format."""
    words = Struct(f"{'>' if big else '<'}{len(content) // 4}I").unpack(content)
    sum0 = sum1 = 0
    for first, second in zip(words[::2], words[1::2], strict=True):
        sum0 = (sum0 + first + sum1) & 0xFFFFFFFF
        sum1 = (sum1 + second + sum0) & 0xFFFFFFFF
    return sum0, sum1


def _accepted_frames(path: Path) -> int:
    """Return how many frames of the log SQLite accepts: it reads it, and writes the number into its index."""
    try:
        with closing(open_read_only(path)) as connection:
            connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
            index = path.with_name(f"{path.name}-shm").read_bytes()
    except READ_ERRORS as error:
        if isinstance(error, sqlite3.Error) and isinstance(failure := store_error(error, path), StoreFull):
            raise failure from error
        return sys.maxsize  # the file is damaged, which the caller finds out when it opens it
    return int.from_bytes(index[16:20], sys.byteorder)
