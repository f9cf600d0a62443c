"""``WorkerLock``: the number of a worker among those that share a state, and which of the others have ended.

With a state file, each worker locks a file of its own, and the system releases the lock when the process ends, however
it ends. So a worker that was killed is noticed at once, and one that is merely slow keeps its work.

In PostgreSQL, the lock belongs to the session in which the worker reads and writes. It ends with the process or the
connection; if the machine or the network vanishes, after about ``LOST_AFTER`` seconds. A worker that was cut off and
goes on may still send what it has stored before, which another one may send again, as the same spans. It cannot store
anything more, and does not send anything before it is stored.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from runspan.storage.database import Session
from runspan.system import BINARY, try_lock

_LOCK_SPACE: Final = 0x72737963
"""The first number of the advisory locks of workers."""


class WorkerLock(Protocol):
    """Holds the first free number, from 1 on, until it is closed."""

    number: int

    def has_ended(self, number: int) -> bool:
        """Whether no worker has this number at the moment."""
        ...

    @property
    def is_held(self) -> bool:
        """Whether it is not closed."""
        ...

    def close(self) -> None:
        """Release the number. Idempotent."""
        ...


class SessionLock:
    """A ``WorkerLock`` of a session of PostgreSQL. The end of the session releases it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.is_held = True
        self.number = 1
        try:
            while not self._query("SELECT pg_try_advisory_lock(?, ?)", self.number):
                self.number += 1
        except BaseException:
            session.close()
            raise

    def has_ended(self, number: int) -> bool:
        """See ``WorkerLock``."""
        held = (
            "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND classid = ? AND objid = ? AND "
            "objsubid = 2 AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))"
        )
        return number != self.number and not self._query(held, number)

    def close(self) -> None:
        """See ``WorkerLock``."""
        self.is_held = False

    def _query(self, statement: str, number: int) -> bool:
        return bool(self._session.execute(statement, (_LOCK_SPACE, number)).fetchone()[0])


class FileLock:
    """A ``WorkerLock`` of a file beside the state file. Raise OSError if no file can be created or locked."""

    def __init__(self, state_file: Path) -> None:
        self._state_file = Path(os.path.realpath(state_file))  # links to it lead to the same locks
        self._file: int | None = None
        self.number = 0
        while self._file is None:
            self.number += 1
            self._file = _lock(self._path(self.number))

    def has_ended(self, number: int) -> bool:
        """See ``WorkerLock``."""
        if number == self.number:
            return False
        file = _lock(self._path(number), create=False)
        if file is not None:
            os.close(file)
        return file is not None or not self._path(number).exists()

    @property
    def is_held(self) -> bool:
        """See ``WorkerLock``."""
        return self._file is not None

    def close(self) -> None:
        """See ``WorkerLock``."""
        if self._file is not None:
            with suppress(OSError):  # Windows removes no file that is open; the next worker reuses it
                self._path(self.number).unlink()
            os.close(self._file)
            self._file = None

    def _path(self, number: int) -> Path:
        return self._state_file.with_name(f"{self._state_file.name}.worker-{number}")


def _lock(path: Path, *, create: bool = True) -> int | None:
    """Return the locked file; None if another worker has locked or removed it."""
    try:
        file = os.open(path, os.O_RDWR | BINARY | (os.O_CREAT if create else 0), 0o600)
    except FileNotFoundError:
        if create:
            raise
        return None
    is_own = False
    try:
        is_own = try_lock(file) and _is_at(path, file)
    finally:
        if not is_own:
            os.close(file)
    return file if is_own else None


def _is_at(path: Path, file: int) -> bool:
    """Whether the path leads to the file, which another worker may have removed before it was locked."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
