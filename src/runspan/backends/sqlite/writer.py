"""The connection that writes, one caller at a time: it commits the work of all callers that wait for it together.

Tenants take turns, and a transaction ends after a bounded time, so a tenant whose writes are many or large delays those
of others by one transaction.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from itertools import zip_longest
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from time import monotonic, sleep
from typing import Any, NamedTuple, TypeVar

from runspan.backends.sqlite.reserve import DELETION_BYTES, FRAME_HEADER, NEARLY_FULL, STEP, Reserve, free_bytes
from runspan.backends.sqlite.schema import SCHEMA
from runspan.backends.sqlite.wal import MARK_COMMIT
from runspan.errors import StoreError, StoreFull
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

_LONG_LOG = 1 << 20
"""Bytes of the log from which its truncation makes room worth a second attempt."""
_RESERVE_SLACK = 16 << 20
"""Bytes by which the reserve may be too large, so that it is not resized with each checkpoint."""
_VACUUM_PAGES = 160
"""Pages freed at once on a full disk, for each of which a few are written to the log."""


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
        self._reserve = Reserve(path)
        self._held = (0, 0)
        """How many pages the database had when the reserve was last given its size, and that size."""
        self._page_size: int = connection.execute("PRAGMA page_size").fetchone()[0]
        self._failed = False
        self.is_full = False
        """Whether the last write failed because no space was left."""
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
            with self._alone():
                return work(self._connection)
        (result,) = self.submit_all([work], tenant)
        return result

    def submit_all(self, works: Sequence[Work[T]], tenant: str = "") -> list[T]:
        """Submit several parts, each of which is committed by itself, and return their results once all are on disk.

        Raise the exception of the first that failed; the others are on disk then.
        """
        if not works:
            return []
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
                self._wake_next()
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

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep others from the connection while the block runs."""
        try:
            with self._in_use, translate_errors(self._path):
                self._require_open()
                yield
        finally:
            self._wake_next()

    def _wake_next(self) -> None:
        """Let a caller that waits commit, after another one has released the connection."""
        for job in self._jobs[:1]:
            job.wake.put(None)

    def submit_to_full_disk(self, work: Work[T]) -> T:
        """Return the result of work that deletes, and use the reserve for it. Free the disk space of what it deleted.

        It must be a small batch: what it adds to the log must fit into the reserve. Raise StoreFull if it does not.
        """
        with self._alone():
            self._reserve.release()
            self._truncate_log()
            try:
                result = self._transact(work)
                self.check_files()
                self._truncate_log()
                self._transact(partial(free_pages, count=_VACUUM_PAGES))
            finally:
                self._roll_back()
            self._truncate_log()
            with suppress(StoreFull):  # the next write tries again
                self._hold_reserve()
        return result

    def _transact(self, work: Work[T]) -> T:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute(MARK_COMMIT)
        result = work(self._connection)
        self._connection.execute("COMMIT")
        return result

    def truncate_log(self) -> None:
        """Move the log into the database, and return its disk space to the file system."""
        with self._alone():
            if self.is_full:
                self._reserve.release()
            self._truncate_log()
            with suppress(StoreFull):
                self._hold_reserve()

    def check(self) -> None:
        """Raise StoreError if work cannot be submitted, or cannot be written to the disk."""
        self._require_open()
        self.check_files()
        free = free_bytes(self._path.parent)
        if self.is_full and free < NEARLY_FULL:  # a tiny write may succeed where others fail
            needed = f"{NEARLY_FULL} bytes"
            raise StoreFull(
                "the disk is full", where=str(self._path), expected=needed, got=f"{free}", hint="free space"
            )
        if self._failed or free < NEARLY_FULL:
            # A server that is not ready gets no writes, so this one finds out whether they succeed.
            self.submit(lambda connection: connection.execute(f"PRAGMA user_version = {SCHEMA.version}"))
            self._failed = self.is_full = False

    def close(self) -> None:
        """Finish the submitted work, then close the connection. Calling it twice is allowed."""
        with self._in_use:
            while self._jobs and not self._closed:
                self._commit_waiting()
            self._closed = True
            self._connection.close()
            self._reserve.close()
            if not os.path.exists(f"{self._path}-wal"):
                self._reserve.delete()

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

    def _commit(self, group: list[_Job], *, retry: bool = True) -> None:
        """Run jobs in one transaction until its time is over; if one of them fails, each in one of its own.

        retry: on a full disk, run a job again once the log was made shorter.
        """
        execute = self._connection.execute
        self._transactions += 1
        try:
            execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            for job in group:
                self._fail(job, error)
            return
        failure: Exception | None = None
        changes = 0
        results = []
        end = monotonic() + (_MAX_SECONDS if len(self._turns) == 1 else _MAX_SHARED_SECONDS)
        try:
            execute(MARK_COMMIT)
            changes = self._connection.total_changes
            for job in group:
                self._turns[job.tenant] = self._transactions
                results.append(job.work(self._connection))
                if monotonic() > end:
                    break
            self._hold_reserve()
            execute("COMMIT")
            self.check_files()
        except Exception as error:
            failure = error
        finally:
            self._roll_back()
        if failure is None:
            if self._connection.total_changes > changes:
                self._failed = self.is_full = False
            for job, result in zip(group, results, strict=False):
                job.future.set_result(result)
        elif len(group) == 1:
            if retry and _is_full(failure, self._path) and self._shorten_log():
                self._commit(group, retry=False)
            else:
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
        if isinstance(error, sqlite3.Error | OSError):
            error = store_error(error, self._path)
        if isinstance(error, StoreError):
            self._failed = True
            self.is_full = isinstance(error, StoreFull)
        job.future.set_exception(error)

    # Disk space.

    def _hold_reserve(self) -> None:
        """Give the reserve the size that the database needs as it is now. Raise StoreFull when there is no room.

        That is what the log will append to the database, and what a deletion adds to the log: each page at most once.
        """
        pages = self._connection.execute("PRAGMA page_count").fetchone()[0]
        if (pages, self._reserve_bytes()) == self._held:
            return  # what the log will append since then is less, if anything
        self.check_files()
        growth = max(0, pages * self._page_size - os.stat(self._path).st_size)
        deletion = min(DELETION_BYTES, pages * (self._page_size + FRAME_HEADER))
        required = -(-(growth + deletion) // STEP) * STEP
        if not required <= self._reserve_bytes() <= required + _RESERVE_SLACK:
            self._reserve.resize(required)
        self._held = pages, self._reserve_bytes()

    def _reserve_bytes(self) -> int:
        try:
            return os.stat(self._reserve.path).st_size
        except OSError:
            return 0

    def _shorten_log(self) -> bool:
        """Move the log into the database, and free its disk space. Return whether it was long."""
        log = f"{self._path}-wal"
        with suppress(sqlite3.Error, StoreError, OSError):
            before = os.stat(log).st_size
            if before >= _LONG_LOG:
                self._reserve.release()
                self._truncate_log()
                return os.stat(log).st_size <= before - _LONG_LOG
        return False

    def _truncate_log(self) -> None:
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

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
            hint="move it back, or restart the process with a copy: what is written now would be lost",
        )


def free_pages(connection: sqlite3.Connection, count: int) -> None:
    """Free up to so many pages at the end of the database. In a transaction with a marker, as every other change."""
    connection.execute(f"PRAGMA incremental_vacuum({count})").fetchall()


def _are_done(jobs: Sequence[_Job]) -> bool:
    return all(job.future.done() for job in jobs)


def _is_full(error: Exception, path: Path) -> bool:
    if isinstance(error, sqlite3.Error):
        error = store_error(error, path)
    return isinstance(error, StoreFull)


def _identities(path: Path) -> list[tuple[int, int]]:
    """Return device and inode of the database and of its write-ahead log."""
    statuses = [os.stat(file) for file in (path, f"{path}-wal")]
    return [(status.st_dev, status.st_ino) for status in statuses]
