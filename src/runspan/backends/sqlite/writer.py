"""The thread that owns the write connection, and commits the work of several waiting callers together."""

from __future__ import annotations

import os
import sqlite3
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from threading import Condition, Thread
from typing import Any, NamedTuple, TypeVar

from runspan.backends.sqlite.schema import SCHEMA
from runspan.errors import StoreError
from runspan.storage.sqlite_file import store_error

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

_MAX_GROUP = 64
"""Jobs of one transaction: enough to share the cost of the fsync, few enough that the first caller returns soon."""


class _Job(NamedTuple):
    work: Work[Any]
    alone: bool
    future: Future[Any]


class GroupWriter:
    """Runs work in transactions, in one thread and in the order of submission.

    after_commit: called in the writer thread after each commit, when the callers have their results.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path, after_commit: Work[None]) -> None:
        self._connection = connection
        self._path = path
        connection.execute("SELECT 1 FROM sqlite_schema").fetchone()  # the first read creates the write-ahead log
        self._files = _identity(path)
        self._failed = False
        self._after_commit = after_commit
        self._jobs: deque[_Job] = deque()
        self._changed = Condition()
        self._closed = False
        # A daemon, so that a store that was not closed does not keep the process alive; finished writes are on disk.
        self._thread = Thread(target=self._serve, name="runspan-store-writer", daemon=True)
        self._thread.start()

    def submit(self, work: Work[T], *, alone: bool = False) -> T:
        """Return the result of the work once it is on disk. Raise its exception when it failed; it is rolled back then.

        The work may run twice, when a transaction fails that it shares, so it must not keep state.
        alone: run it outside of a transaction, and no other work at the same time.
        """
        job = _Job(work, alone, Future())
        with self._changed:
            if self._closed:
                raise StoreError("the store is closed", where=str(self._path))
            self._jobs.append(job)
            self._changed.notify()
        result: T = job.future.result()
        return result

    def check(self) -> None:
        """Raise StoreError if work cannot be submitted, or cannot be written to the disk."""
        if not self._thread.is_alive() or self._closed:
            raise StoreError("the writer has stopped", where=str(self._path), hint="restart the process")
        self.check_files()
        if self._failed:
            # Nobody sends writes to a server that is not ready, so this one finds out whether they succeed again.
            self.submit(lambda connection: connection.execute(f"PRAGMA user_version = {SCHEMA.version}"))

    def close(self) -> None:
        """Finish the submitted work, then close the connection. Calling it twice is allowed."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._connection.close()

    def _serve(self) -> None:
        while group := self._next():
            if group[0].alone:
                self._run_alone(group[0])
            else:
                self._commit(group)
                self._run_after_commit()

    def _run_after_commit(self) -> None:
        # No caller waits for it, and it is retried after a later commit, so its failure must not stop the writer.
        with suppress(Exception):
            self._after_commit(self._connection)
        if self._connection.in_transaction:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    def _next(self) -> list[_Job]:
        """Return the jobs of the next transaction; none when the writer is closed and idle."""
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            if not self._jobs:
                return []
            group = [self._jobs.popleft()]
            while not group[0].alone and self._jobs and not self._jobs[0].alone and len(group) < _MAX_GROUP:
                group.append(self._jobs.popleft())
            return group

    def _run_alone(self, job: _Job) -> None:
        try:
            result = job.work(self._connection)
        except Exception as error:
            self._fail(job, error)
        else:
            job.future.set_result(result)

    def _commit(self, group: list[_Job]) -> None:
        """Run a group in one transaction; if one of it fails, each in a transaction of its own."""
        execute = self._connection.execute
        try:
            execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            for job in group:
                self._fail(job, error)
            return
        try:
            results = [job.work(self._connection) for job in group]
            execute("COMMIT")
            self.check_files()
        except Exception as error:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            if len(group) == 1:
                self._fail(group[0], error)
                return
            for job in group:
                self._commit([job])
            return
        self._failed = False
        for job, result in zip(group, results, strict=True):
            job.future.set_result(result)

    def _fail(self, job: _Job, error: Exception) -> None:
        if isinstance(error, sqlite3.Error):
            self._failed = True
            error = store_error(error, self._path)
        job.future.set_exception(error)

    def check_files(self) -> None:
        """Raise StoreError unless the files at the path are those that were opened: others do not have what is written.

        SQLite continues to write to files that were deleted or replaced, and they vanish with the process.
        """
        if _identity(self._path) != self._files:
            raise StoreError(
                "the file was deleted, moved or replaced while it was open",
                where=str(self._path),
                hint="put it back and restart the process: what is written now would be lost",
            )


def _identity(path: Path) -> list[tuple[int, int] | None]:
    """Return device and inode of the database and its write-ahead log, None for one that is not there."""
    found: list[tuple[int, int] | None] = []
    for file in (path, f"{path}-wal"):
        try:
            status = os.stat(file)
        except OSError:
            found.append(None)
        else:
            found.append((status.st_dev, status.st_ino))
    return found
