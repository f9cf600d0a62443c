"""SQLite's and the file system's errors as StoreError: what happened, where, and what to do next."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from runspan.errors import StoreError

_KNOWN = {
    "SQLITE_FULL": ("the disk is full", "free space or shorten the retention, then send again: nothing was taken"),
    "SQLITE_BUSY": ("another process holds the write lock", "stop the other writer, or let it finish"),
    "SQLITE_LOCKED": ("another connection holds the table", "try again"),
    "SQLITE_READONLY": ("the file or its directory is read-only", "give the user of this process write permission"),
    "SQLITE_CANTOPEN": ("the file cannot be opened", "the directory must exist and be writable, also to read"),
    "SQLITE_PERM": ("the file may not be accessed", "give the user of this process read and write permission"),
    "SQLITE_IOERR": ("the disk failed", "look at the system's log; check the disk and the space on it"),
    "SQLITE_CORRUPT": ("the file is damaged", "restore a backup, or recover with: sqlite3 FILE .recover"),
    "SQLITE_NOTADB": ("the file is no SQLite database", "choose another directory, or move the file away"),
    "SQLITE_TOOBIG": ("a value is too large to store", "split the run, or keep large payloads elsewhere"),
}


def store_error(error: sqlite3.Error | OSError, path: Path) -> StoreError:
    """The StoreError that tells the caller what this error means for the store at path."""
    if isinstance(error, OSError):
        return StoreError(error.strerror or str(error), where=str(path), hint="choose another directory, or its rights")
    name = getattr(error, "sqlite_errorname", "")
    message, hint = _KNOWN.get("_".join(name.split("_")[:2]), ("the store does not work", "run a check of the file"))
    return StoreError(message, where=str(path), got=f"{name} {error}".strip(), hint=hint)
