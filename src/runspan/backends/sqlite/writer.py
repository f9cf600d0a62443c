"""The connection that writes, one caller at a time: it commits the work of all callers that wait for it together.

Tenants take turns, and a transaction ends after a bounded time, so a tenant whose writes are many or large delays those
of others by one transaction.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from time import monotonic, sleep
from typing import Any, NamedTuple, TypeVar

from runspan.backends.sqlite.schema import SCHEMA
from runspan.errors import StoreError
from runspan.storage.sqlite_file import store_error, translate_errors

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

_MAX_GROUP = 64
"""Jobs of one transaction: enough to share the cost of the fsync, few enough that the first caller returns soon."""
_MAX_SECONDS = 0.05
_MAX_SHARED_SECONDS = 0.005
"""After this time a transaction begins no further job; after the shorter one if several tenants wait."""
_COMMIT_DELAY = 0.0005
"""Seconds in which callers whose jobs were just done may submit further ones, to share the cost of the next fsync."""
_MAX_WAIT = 1.0
"""Seconds after which a caller looks again whether its jobs are done, in case the one that commits was interrupted."""


class _Job(NamedTuple):
    work: Work[Any]
    tenant: str
    future: Future[Any]
    wake: SimpleQueue[None]
    """Has an item when the job is done, and when its caller should commit."""


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
        self._jobs: list[_Job] = []
        """In the order of submission; replaced, never changed. A job leaves it when its future is done, so that a
        caller that is interrupted leaves its group to others."""
        self._queue = Lock()
        """Held to replace the jobs."""
        self._turns: dict[str, int] = {}
        """When each tenant that has jobs was served last, as the number of the transaction."""
        self._transactions = 0
        self._in_use = Lock()
        """Held by the caller that commits."""
        self._closed = False

    def submit(self, work: Work[T], tenant: str = "", *, alone: bool = False) -> T:
        """Return the result of the work once it is on disk. Raise its exception when it failed; it is rolled back then.

        The work may run in the thread of another caller, and twice, when a transaction fails that it shares; so it must
        not keep state. It should take milliseconds: what takes longer is submitted in parts, see ``submit_all``.
        tenant: whose work it is. alone: run it outside of a transaction, and no other work at the same time.
        """
        if alone:
            with self._in_use, translate_errors(self._path):
                self._require_open()
                return work(self._connection)
        (result,) = self.submit_all([work], tenant)
        return result

    def submit_all(self, works: Sequence[Work[T]], tenant: str = "") -> list[T]:
        """Submit several parts, each of which is committed by itself, and return their results once all are on disk.

        Raise the exception of the first that failed; the others are on disk then.
        """
        wake: SimpleQueue[None] = SimpleQueue()
        jobs = [_Job(work, tenant, Future(), wake) for work in works]
        with self._queue:
            self._jobs = [*self._jobs, *jobs]
        if self._wait_or_lead(jobs):
            try:
                while not _are_done(jobs):
                    self._require_open()
                    self._commit_waiting()
            finally:
                self._in_use.release()
                for job in self._jobs[:1]:
                    job.wake.put(None)
        return [job.future.result() for job in jobs]

    def _wait_or_lead(self, jobs: Sequence[_Job]) -> bool:
        """Wait until the jobs are done, and return False; or until no other caller commits, and return True."""
        has_waited = False
        while not _are_done(jobs):
            if self._in_use.acquire(blocking=False):
                if has_waited:
                    sleep(_COMMIT_DELAY)
                return True
            has_waited = True
            with suppress(Empty):
                jobs[0].wake.get(timeout=_MAX_WAIT)
        return False

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
        """Commit jobs of all tenants that have waited longest, as many as one transaction takes."""
        self._commit(self._next_jobs())
        with self._queue:
            jobs, self._jobs = self._jobs, [job for job in self._jobs if not job.future.done()]
        for job in jobs:
            if job.future.done():
                job.wake.put(None)
        # It is retried after a later commit, so its failure must not fail this one, which is on disk.
        with suppress(Exception):
            self._after_commit(self._connection)
        self._roll_back()

    def _next_jobs(self) -> list[_Job]:
        """Return jobs, one of each tenant by turns, beginning with the tenants that were served least recently."""
        waiting: dict[str, list[_Job]] = {}
        for job in self._jobs:
            if not job.future.done():
                waiting.setdefault(job.tenant, []).append(job)
        self._turns = {tenant: self._turns.get(tenant, 0) for tenant in waiting}
        queues = [waiting[tenant] for tenant in sorted(waiting, key=self._turns.__getitem__)]
        by_turns = [job for jobs in zip_longest(*queues) for job in jobs if job is not None]
        return by_turns[:_MAX_GROUP]

    def _commit(self, group: list[_Job]) -> None:
        """Run jobs in one transaction until its time is over; if one of them fails, each in one of its own."""
        execute = self._connection.execute
        self._transactions += 1
        try:
            execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            for job in group:
                self._fail(job, error)
            return
        failure: Exception | None = None
        results = []
        end = monotonic() + (_MAX_SECONDS if len(self._turns) == 1 else _MAX_SHARED_SECONDS)
        try:
            for job in group:
                self._turns[job.tenant] = self._transactions
                results.append(job.work(self._connection))
                if monotonic() > end:
                    break
            execute("COMMIT")
            self.check_files()
        except Exception as error:
            failure = error
        finally:
            self._roll_back()
        if failure is None:
            self._failed = False
            for job, result in zip(group, results, strict=False):
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


def _are_done(jobs: Sequence[_Job]) -> bool:
    return all(job.future.done() for job in jobs)


def _identities(path: Path) -> list[tuple[int, int]]:
    """Return device and inode of the database and of its write-ahead log."""
    statuses = [os.stat(file) for file in (path, f"{path}-wal")]
    return [(status.st_dev, status.st_ino) for status in statuses]
