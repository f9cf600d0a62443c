"""The connection that writes, one caller at a time: it commits the work of all callers that wait for it together."""

from __future__ import annotations

import os
import sqlite3
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, TypeVar

from runspan.backends.sqlite.schema import SCHEMA
from runspan.backends.sqlite.wal import MARK_COMMIT
from runspan.errors import StoreError
from runspan.storage.sqlite_file import store_error, translate_errors

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

_MAX_GROUP = 64
"""Jobs of one transaction: enough to share the cost of the fsync, few enough that the first caller returns soon."""


class _Job(NamedTuple):
    work: Work[Any]
    future: Future[Any]


class GroupWriter:
    """Runs work in transactions and in the order of submission. May be used from several threads.

    after_commit: called after each commit.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path, after_commit: Work[None]) -> None:
        self._connection = connection
        self._path = path
        connection.execute("SELECT 1 FROM sqlite_schema").fetchone()  # the first read creates the write-ahead log
        self._files = _identities(path)
        self._failed = False
        self._after_commit = after_commit
        self._jobs: deque[_Job] = deque()
        """A job leaves it when its future is done, so that a caller that is interrupted leaves its group to others."""
        self._in_use = Lock()
        self._closed = False

    def submit(self, work: Work[T], *, alone: bool = False) -> T:
        """Return the result of the work once it is on disk. Raise its exception when it failed; it is rolled back then.

        The work may run in the thread of another caller, and twice, when a transaction fails that it shares; so it must
        not keep state.
        alone: run it outside of a transaction, and no other work at the same time.
        """
        if alone:
            with self._in_use, translate_errors(self._path):
                self._require_open()
                return work(self._connection)
        job = _Job(work, Future())
        self._jobs.append(job)
        with self._in_use:
            while not job.future.done():
                self._require_open()
                self._commit_waiting()
        result: T = job.future.result()
        return result

    def check(self) -> None:
        """Raise StoreError if work cannot be submitted, or cannot be written to the disk."""
        self._require_open()
        self.check_files()
        if self._failed:
            # A server that is not ready gets no writes, so this one finds out whether they succeed again.
            self.submit(lambda connection: connection.execute(f"PRAGMA user_version = {SCHEMA.version}"))

    def close(self) -> None:
        """Finish the submitted work, then close the connection. Calling it twice is allowed."""
        with self._in_use:
            while self._jobs and not self._closed:
                self._commit_waiting()
            self._closed = True
            self._connection.close()

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed", where=str(self._path))

    def _commit_waiting(self) -> None:
        """Run the jobs that have waited longest, as many as one transaction takes."""
        jobs = [self._jobs[index] for index in range(min(len(self._jobs), _MAX_GROUP))]
        self._commit([job for job in jobs if not job.future.done()])
        while self._jobs and self._jobs[0].future.done():
            self._jobs.popleft()
        # It is retried after a later commit, so its failure must not fail this one, which is on disk.
        with suppress(Exception):
            self._after_commit(self._connection)
        self._roll_back()

    def _commit(self, group: list[_Job]) -> None:
        """Run a group in one transaction; if one of it fails, each in a transaction of its own."""
        execute = self._connection.execute
        try:
            execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            for job in group:
                self._fail(job, error)
            return
        failure: Exception | None = None
        try:
            execute(MARK_COMMIT)
            results = [job.work(self._connection) for job in group]
            execute("COMMIT")
            self.check_files()
        except Exception as error:
            failure = error
        finally:
            self._roll_back()
        if failure is None:
            self._failed = False
            for job, result in zip(group, results, strict=True):
                job.future.set_result(result)
        elif len(group) == 1:
            self._fail(group[0], failure)
        else:
            for job in group:
                self._commit([job])

    def _roll_back(self) -> None:
        """End a transaction that was not committed."""
        if self._connection.in_transaction:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    def _fail(self, job: _Job, error: Exception) -> None:
        if isinstance(error, sqlite3.Error):
            self._failed = True
            error = store_error(error, self._path)
        job.future.set_exception(error)

    def check_files(self) -> None:
        """Raise StoreError unless the files at the path are those that were opened: others do not have what is written.

        SQLite continues to write to files that were deleted or replaced, and they vanish with the process.
        """
        with suppress(OSError):
            if _identities(self._path) == self._files:
                return
        raise StoreError(
            "the file was deleted, moved or replaced while it was open",
            where=str(self._path),
            hint="put it back and restart the process: what is written now would be lost",
        )


def _identities(path: Path) -> list[tuple[int, int]]:
    """Return device and inode of the database and of its write-ahead log."""
    statuses = [os.stat(file) for file in (path, f"{path}-wal")]
    return [(status.st_dev, status.st_ino) for status in statuses]
