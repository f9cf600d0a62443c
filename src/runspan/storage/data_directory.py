"""Lock a data directory while its files are open, and replace its files as a whole."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from runspan.errors import StoreError
from runspan.storage.sqlite_file import translate_errors
from runspan.system import lock_shared, require_posix, sync_path, try_lock

STORE_LOCK: Final = "runspan.lock"
KEYS_LOCK: Final = "keys.lock"
"""Every process that has the store or the API keys open holds a shared lock on this file, a restore an exclusive one on
both. SQLite's own locks do not exist before a file is opened, and end when it is replaced."""
OPEN_TIMEOUT: Final = 10.0
"""Seconds to wait while another process opens the directory."""

SESSIONS_FILE: Final = "sessions.sqlite3"
INDEX_FILE: Final = "index.sqlite3"
"""It is made from the store, and made again when it is not there."""
_DATABASES: Final = ("runspan", "index", "keys", "sessions", "usage")
_STAGING: Final = "restore-staging"
"""Incomplete files. After an interrupted restore the folder may be deleted."""
_READY: Final = "restore-ready"
"""Complete files, which replace those of the directory: these are moved into a subfolder first."""
_CLEARED: Final = "restore-cleared"
"""The same files; those of the directory have been moved away."""
_REPLACED: Final = "replaced"


_log = logging.getLogger("runspan.restore")


class DirectoryUse:
    """The use of a data directory until ``close``: nothing replaces its files meanwhile.

    lock_file: ``STORE_LOCK`` or ``KEYS_LOCK``, according to what is opened.
    before_first_use: Called if nobody else has the same open, before anybody can open it.
    Raise StoreError when its files are being replaced.
    """

    def __init__(self, directory: Path, lock_file: str, before_first_use: Callable[[], None] = lambda: None) -> None:
        with _opening(directory), ExitStack() as stack:
            lock = _open_lock(directory / lock_file)
            stack.callback(os.close, lock)
            # A replacement is only ever interrupted while nobody has anything open, so all openers find it.
            if _finish_replacement(directory):
                _log.warning("%s: finished a restore that was interrupted", directory)
            if try_lock(lock):
                before_first_use()
            # Only who opens the directory locks exclusively, so this returns at once.
            lock_shared(lock)
            stack.pop_all()
        self._lock: int | None = lock

    def close(self) -> None:
        """Allow that the files are replaced. Idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@contextmanager
def exclusive_use(directory: Path) -> Iterator[bool]:
    """Keep a directory from being opened during the block. Yield whether a replacement was interrupted, and finish it.

    Raise StoreError when another process has it open.
    """
    with _opening(directory), ExitStack() as stack:
        for file in (directory / STORE_LOCK, directory / KEYS_LOCK):
            lock = _open_lock(file)
            stack.callback(os.close, lock)
            if not try_lock(lock):
                raise StoreError(
                    "the data directory is in use",
                    where=str(directory),
                    got="a server or a command that has it open",
                    hint=f"stop it first: `fuser -v {file}` names the process",
                )
        yield _finish_replacement(directory)


@contextmanager
def replacement(directory: Path) -> Iterator[Path]:
    """Yield a folder for new files, which replace all files of the directory once the block ends. Needs exclusive use.

    If the process ends before the block does, the old files are there as before; if later, then whoever opens the
    directory next moves the new files to their places. The old files are moved into a folder ``replaced-…``.
    """
    staging = directory / _STAGING
    with translate_errors(directory):
        _remove(staging)
        staging.mkdir(mode=0o700)
    try:
        yield staging
    except BaseException:
        with suppress(OSError):
            _remove(staging)
        raise
    with translate_errors(directory):
        for file in staging.iterdir():
            sync_path(file)
        sync_path(staging)
        staging.rename(directory / _READY)
        sync_path(directory)
    _finish_replacement(directory)


def lock_files() -> tuple[str, ...]:
    """Return the names of the files that exist only to be locked."""
    return (STORE_LOCK, KEYS_LOCK)


def is_own_file(name: str) -> bool:
    """Return whether a file of this name in a data directory is a database of the server, or belongs to one."""
    stem, _, suffix = name.partition(".")
    return stem in _DATABASES and suffix in ("sqlite3", "sqlite3-wal", "sqlite3-shm", "sqlite3-journal")


def _finish_replacement(directory: Path) -> bool:
    """Move new files that are complete to their places; return whether there were any.

    Each step can be repeated after an interruption.
    """
    ready, cleared = directory / _READY, directory / _CLEARED
    with translate_errors(directory):
        found = ready.exists() or cleared.exists()
        if ready.exists():
            old = ready / _REPLACED
            old.mkdir(mode=0o700, exist_ok=True)
            for file in list(directory.iterdir()):
                if is_own_file(file.name):
                    file.rename(old / file.name)
            for folder in (old, ready, directory):
                sync_path(folder)
            ready.rename(cleared)
            sync_path(directory)
        if cleared.exists():
            for file in list(cleared.iterdir()):
                if is_own_file(file.name):
                    file.rename(directory / file.name)
            sync_path(directory)
            _keep_replaced(directory, cleared / _REPLACED)
            cleared.rmdir()
            sync_path(directory)
    return found


def _keep_replaced(directory: Path, old: Path) -> None:
    """Give the folder of the old files its final name, unless it is empty or was moved already."""
    with suppress(OSError):
        old.rmdir()
    if old.exists():
        now = datetime.now(UTC)
        old.rename(directory / f"{_REPLACED}-{now:%Y%m%dT%H%M%S.%fZ}")


def _remove(folder: Path) -> None:
    if folder.exists():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


@contextmanager
def _opening(directory: Path) -> Iterator[None]:
    """Let one process at a time decide whether the directory is in use."""
    require_posix("a data directory", str(directory))
    with translate_errors(directory):
        descriptor = os.open(directory, os.O_RDONLY)
    try:
        deadline = time.monotonic() + OPEN_TIMEOUT
        while not try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise StoreError(
                    "another process is opening or replacing the files of the data directory",
                    where=str(directory),
                    hint="wait until `runspan restore` has finished, then try again",
                )
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _open_lock(file: Path) -> int:
    with translate_errors(file):
        return os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
