"""``Index``: a file beside the store that is made from it, and made again when it is lost or damaged.

It follows the store's feed of changed runs (``feed``). What it has read, and how far that is, are written in one
transaction. It never decides what a run is: each run that it finds is compared with the store.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Final, TypeVar

from runspan.backends.sqlite.compression import Compression, CorruptFrame
from runspan.backends.sqlite.index import feed, text
from runspan.backends.sqlite.index.check import find_faults
from runspan.backends.sqlite.index.facts_index import STORED_RUN, FactsWriter, StoredRun
from runspan.backends.sqlite.index.feed import Position
from runspan.backends.sqlite.writer import GroupWriter
from runspan.errors import DocumentError, QueryUnsupported, StoreError, StoreFull
from runspan.model.document import Run
from runspan.storage.data_directory import INDEX_FILE
from runspan.storage.sqlite_file import (
    Schema,
    file_bytes,
    open_database,
    open_read_only,
    primary_code,
    read_statements,
    store_error,
    transaction,
)

SCHEMA: Final = Schema(
    name="the index of the embedded store",
    application_id=0x72737069,
    version=1,
    tables=tuple(
        statement
        for file in ("schema.sql", "stats.sql", "text.sql")
        for statement in read_statements(__package__, file)
    ),
    hint="delete the file: it is made again",
    page_pragmas=("page_size = 8192", "auto_vacuum = INCREMENTAL"),
)
_PRAGMAS: Final = (
    "cache_size = -32768",
    "wal_autocheckpoint = 4000",
    "journal_size_limit = 33554432",
    "busy_timeout = 2000",
    "temp_store = MEMORY",
    "secure_delete = FAST",
)
MAX_WAIT: Final = 2.0
"""Seconds that a query waits until the index has what the store had when it began."""
_BATCH: Final = 100
"""Changes that are read from the feed at once; the documents are read one by one."""
_MAX_SECONDS: Final = 0.1
_MAX_SECONDS_ALONE: Final = 0.5
"""Seconds after which a transaction begins no further run: if a query waits for it, and in the thread. Longer ones cost
less a run."""
_LATENCY: Final = 0.2
"""Seconds after a change in which further ones are awaited, to read them together."""
_GIVE_WAY: Final = 0.001
"""Seconds between two transactions of the thread, so that a query that waits for it is next."""
_IDLE: Final = 5.0
"""Seconds after which the feed is looked at, in case another process has written to the store."""
_RETRY_AFTER: Final = 10.0
"""Seconds until the next attempt when the index cannot be written."""
_CLOSE_SECONDS: Final = 3.0
"""Seconds that closing waits for the transaction that has begun."""
_FREED_PAGES: Final = 200
_MOVED_TEXTS: Final = 50
"""Rows of the text index that are looked up at once when they are moved."""
_PAUSES: Final = 100
"""For how many times as long as texts were moved they are not moved again: each time they are those of whole weeks."""

T = TypeVar("T")

_log = logging.getLogger("runspan.index")


@dataclass(frozen=True, slots=True)
class IndexStats:
    """What an index takes, and what it does not have yet."""

    bytes: int
    """The size of the file and its write-ahead log."""
    lag: int
    """Runs that have changed or are new, about."""
    oldest: int | None
    """When the first of them that is still there was stored, in nanoseconds since 1970."""


class DamagedIndex(StoreError):
    """The index was damaged. It is made anew, so that a second attempt succeeds."""


class _Unusable(Exception):
    """The file is damaged, or is the index of another state of a store. The message says why."""


class Index:
    """The index of a store. Thread-safe; several processes may have it open.

    keep: True keeps an index: the store gets a feed, and a thread follows it. False keeps none: the feed and the file
    are deleted. None leaves both as they are: if the store has a feed, the index is brought up to date by its queries.
    read: opens a connection to the store that reads.
    """

    def __init__(
        self,
        directory: Path,
        writer: GroupWriter,
        read: Callable[[], AbstractContextManager[sqlite3.Connection]],
        compression: Compression,
        *,
        keep: bool | None,
    ) -> None:
        self.path = directory / INDEX_FILE
        self._writer = writer
        self._read = read
        self._compression = compression
        self._lock = threading.Lock()
        """Held by who uses the connection that writes."""
        self._connection: sqlite3.Connection | None = None
        self._inode = (0, 0)
        self._facts: FactsWriter | None = None
        self._last = Position(0, b"", 0)
        """How far the index had come when this process last had the lock."""
        self._has_remains = True
        """Whether the file may have free pages with what was deleted, and its log too."""
        self._moving_seconds = 0.0
        self._next_moving = 0.0
        """When texts are moved again at the earliest, by the monotonic clock."""
        self._closing = False
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None
        self.rebuilt = 0
        """How often the file was made anew since the start because it could not be used."""
        if keep is False:
            with suppress(StoreFull):  # it costs little, and the next start tries again
                self._require_feed(False)
            self._delete_file()
        elif keep:
            with suppress(StoreFull):  # the thread tries again
                self._require_feed(True)
            # A daemon: what it does can be interrupted at any time.
            self._thread = threading.Thread(target=self._follow, name="runspan-index", daemon=True)
            self._thread.start()

    def _require_feed(self, is_on: bool) -> None:
        """Create the feed, or delete it, unless that is as it should be: a store on a full disk can be opened."""
        with self._read() as connection:
            is_right = feed.is_on(connection) if is_on else feed.is_off(connection)
        if not is_right:
            self._writer.submit(feed.turn_on if is_on else feed.turn_off)

    def store_changed(self) -> None:
        """Let the thread read the feed soon. Called after each commit of the store."""
        self._changed.set()

    def catch_up(self, max_wait: float = MAX_WAIT) -> int:
        """Read what the store has now, at most for ``max_wait`` seconds; return how many runs are left, about.

        Raise QueryUnsupported if the store has no feed, StoreError if the index cannot be written.
        """
        deadline = monotonic() + max_wait
        with self._read() as connection:
            if not feed.is_on(connection):
                raise QueryUnsupported(
                    "this store keeps no index, which this filter or order needs",
                    where=str(self.path),
                    hint="start `runspan serve` on it without --no-search: it makes one",
                )
            target = feed.end(connection)
        while not self._closing:
            remaining = deadline - monotonic()
            if not self._lock.acquire(timeout=max(0.0, remaining)):
                break
            try:
                position = self._step(min(_MAX_SECONDS, max(0.01, remaining)))
            except StoreFull:
                if not self.path.exists():
                    raise
                break  # lists have what the index has
            finally:
                self._lock.release()
            if position.change_id >= target[0] and position.run >= target[1]:
                return 0
            if remaining <= 0:
                break
        with self._read() as connection:  # without the lock: a large document may hold it for long
            return max(1, feed.lag(connection, self._last)[0])

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection that reads the index. Its errors let it be made anew, and are raised as StoreError."""
        try:
            with closing(open_read_only(self.path)) as connection:
                yield connection
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if isinstance(error, UnicodeDecodeError):  # the text of an error that quotes a damaged page
                error = sqlite3.DatabaseError(ascii(error.object))
            if not _is_damage(error):
                raise store_error(error, self.path) from error
            with self._lock:
                self._make_anew(str(error))
            raise DamagedIndex(
                "the index of the store was damaged, and is being made anew",
                where=str(self.path),
                got=str(error),
                hint="try again in a moment",
            ) from error

    def stats(self) -> IndexStats | None:
        """Return what the index lacks and takes, None unless this process keeps it up to date."""
        if self._thread is None or not self._last.change_id:
            return None
        with self._read() as connection:
            return IndexStats(file_bytes(self.path), *feed.lag(connection, self._last))

    def faults(self) -> list[str]:
        """Return some of what is damaged in the file; nothing if it is sound, or not there. See ``check``."""
        if not self.path.exists():
            return []
        try:
            with closing(open_read_only(self.path)) as index, self._read() as store:
                return find_faults(self.path, index, store)
        except sqlite3.Error as error:
            return [str(error)]

    def correct(self, trace_ids: Sequence[bytes]) -> None:
        """Let runs be read again that are in the index otherwise than in the store."""

        def work(connection: sqlite3.Connection) -> None:
            for trace_id in trace_ids:
                feed.add(connection, trace_id)

        self._writer.submit(work)

    def close(self) -> None:
        """End the thread and close the file. Idempotent.

        A large document may hold the lock for long: its transaction is left alone then, and lost if the process ends.
        """
        self._closing = True
        self._changed.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)
        if self._lock.acquire(timeout=_CLOSE_SECONDS if self._thread is None else 0):
            self._close_file()
            self._lock.release()

    def _follow(self) -> None:
        failure = ""
        while not self._closing:
            self._changed.clear()
            pause = _IDLE
            try:
                self._require_feed(True)
                position: Position | None = None
                while not self._closing:
                    with self._lock:
                        before, position = position, self._step(_MAX_SECONDS_ALONE)
                        if position == before and not self._mend(self._remove_remains):
                            break
                    sleep(_GIVE_WAY)
                failure = ""
            except Exception as error:
                if self._closing:  # so may be the store
                    break
                if str(error) != failure:
                    failure = str(error)
                    _log.warning("the index cannot be brought up to date: %s", failure)
                pause = _RETRY_AFTER
            if self._changed.wait(pause) and not self._closing:
                self._pause(_LATENCY if pause == _IDLE else pause)
        with self._lock:
            self._close_file()

    def _pause(self, seconds: float) -> None:
        end = monotonic() + seconds
        while not self._closing and (left := end - monotonic()) > 0:
            self._changed.clear()
            self._changed.wait(left)

    # With the lock.

    def _step(self, seconds: float) -> Position:
        """Read some of what has changed, in one transaction; return where the index is then."""
        return self._mend(partial(self._read_changes, monotonic() + seconds))

    def _mend(self, work: Callable[[], T]) -> T:
        """Return the result of some work on the file, which is made anew if that shows it to be damaged."""
        for _ in range(2):
            try:
                return work()
            except _Unusable as error:
                self._make_anew(str(error))
            except UnicodeDecodeError as error:  # the text of an error that quotes a damaged page
                self._make_anew(ascii(error.object))
            except sqlite3.Error as error:
                if not _is_damage(error):
                    raise store_error(error, self.path) from error
                self._make_anew(str(error))
        raise StoreError("the index of the store cannot be made", where=str(self.path), hint="look at the disk")

    def _read_changes(self, deadline: float) -> Position:
        connection, facts = self._open()
        position = self._position(connection)
        if self._is_current(position, facts):
            return position
        with _transaction(connection, facts):
            before = position = self._position(connection)  # another process may have gone on
            for trace_id, following in self._changes(position):
                stored, run = self._read_run(trace_id)
                if stored is None:
                    facts.remove(trace_id)
                else:
                    facts.put(stored, run)
                position = following
                if self._closing or monotonic() >= deadline:
                    break
            facts.count()
            update = "UPDATE progress SET change_id = ?, change_trace_id = ?, run = ?"
            connection.execute(update, position)
        self._last = position
        self._has_remains |= facts.has_removed_text
        self._delete_changes(connection, before)
        return position

    def _remove_remains(self) -> bool:
        """Do some of what removes what runs that are gone or have changed have left in the file.

        Return whether there is more to do now. Other weeks than theirs are left alone.
        """
        connection, facts = self._open()
        begun = monotonic()
        if text.is_any_left(connection):
            self._move_texts(connection, facts, begun + _MAX_SECONDS_ALONE)
            self._moving_seconds += monotonic() - begun
            self._has_remains = True
            return True
        if self._moving_seconds:
            self._next_moving = begun + self._moving_seconds * _PAUSES
            self._moving_seconds = 0.0
        if begun >= self._next_moving and text.leave_tables(connection):
            return True
        if not self._has_remains:
            return False
        if connection.execute("PRAGMA freelist_count").fetchone()[0]:
            connection.execute(f"PRAGMA incremental_vacuum({_FREED_PAGES})").fetchall()
            return True
        is_busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._has_remains = facts.has_removed_text = bool(is_busy)
        return False

    def _move_texts(self, connection: sqlite3.Connection, facts: FactsWriter, deadline: float) -> None:
        """Move some texts out of the tables of the text index that are left."""
        with _transaction(connection, facts):
            for row, run_row in text.rows_to_move(connection, _MOVED_TEXTS):
                found = connection.execute("SELECT trace_id FROM indexed_runs WHERE id = ?", (run_row,)).fetchone()
                stored, run = (None, None) if found is None else self._read_run(found[0])
                facts.move_text(row, run_row, stored, run)
                if self._closing or monotonic() >= deadline:
                    break

    def _changes(self, position: Position) -> Iterator[tuple[bytes, Position]]:
        """Yield the trace ids of runs to be read, and the position behind each."""
        while True:
            with self._read() as store:
                found = feed.after(store, position, _BATCH)
            if not found:
                return
            yield from found.items()
            *_, position = found.values()

    def _read_run(self, trace_id: bytes) -> tuple[StoredRun | None, Run | None]:
        """Return the row of a run if the store has it, and its document if that can be read."""
        with self._read() as store:
            row = store.execute(STORED_RUN, (trace_id,)).fetchone()
            stored = None if row is None else StoredRun(*row)
            return stored, None if stored is None else self._document(store, stored)

    def _document(self, store: sqlite3.Connection, stored: StoredRun) -> Run | None:
        """Return the document of a run, None if it cannot be read."""
        try:
            run = Run.from_json(self._compression.decompress(stored.document, store))
            run.envelope  # noqa: B018 parsed now, since a damaged one cannot be
        except (CorruptFrame, DocumentError, ValueError, TypeError):
            return None
        return run

    def _is_current(self, position: Position, facts: FactsWriter) -> bool:
        """Return whether the index has everything that the store has. Raise _Unusable if it is not of the store."""
        with self._read() as store:
            if not feed.is_of_store(store, position, facts.has):
                raise _Unusable("it is of another store, or of another state of it")
            return feed.end(store) == (position.change_id, position.run)

    def _position(self, connection: sqlite3.Connection) -> Position:
        row = connection.execute("SELECT change_id, change_trace_id, run FROM progress").fetchone()
        if row is None:
            with self._read() as store:
                row = feed.start(store)
            connection.execute("INSERT OR IGNORE INTO progress VALUES (1, ?, ?, ?, 0)", row)
        self._last = Position(*row)
        return self._last

    def _delete_changes(self, connection: sqlite3.Connection, before: Position) -> None:
        """Delete changes that the index has on disk from the feed, once they are many."""
        with self._read() as store:
            are_many = feed.has_many_before(store, before)
        if are_many:
            while not self._closing and self._writer.submit(partial(feed.delete_before, change_id=before.change_id)):
                pass
            connection.execute(f"PRAGMA incremental_vacuum({_FREED_PAGES})").fetchall()

    def _open(self) -> tuple[sqlite3.Connection, FactsWriter]:
        """Return the connection that writes to the file, which is created if it is not there. Raise _Unusable."""
        if self._connection is not None and self._facts is not None and _inode(self.path) == self._inode:
            return self._connection, self._facts
        self._close_file()
        try:
            connection = open_database(self.path, SCHEMA, pragmas=_PRAGMAS)
        except StoreError as error:
            if isinstance(error.__cause__, OSError) or not _is_damage(error.__cause__):
                raise
            raise _Unusable(error.got or str(error)) from error
        self._connection, self._facts = connection, FactsWriter(connection)
        self._inode = _inode(self.path)
        return self._connection, self._facts

    def _make_anew(self, why: str) -> None:
        _log.warning("%s is made anew: %s", self.path, why)
        self.rebuilt += 1
        self._close_file()
        self._delete_file()
        self._changed.set()

    def _close_file(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
        self._connection = self._facts = None

    def _delete_file(self) -> None:
        for suffix in ("-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                os.unlink(f"{self.path}{suffix}")


@contextmanager
def _transaction(connection: sqlite3.Connection, facts: FactsWriter) -> Iterator[None]:
    try:
        with transaction(connection):
            yield
    except BaseException:
        facts.forget()
        raise


def _inode(path: Path) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0)
    return status.st_dev, status.st_ino


def _is_damage(error: BaseException | None) -> bool:
    """Return whether an error is of the file's content, which a new file does not have. None: of another version."""
    if error is None or (type(error) is sqlite3.DatabaseError and not hasattr(error, "sqlite_errorname")):
        return True
    return primary_code(error) in (
        "SQLITE_CORRUPT",
        "SQLITE_NOTADB",
        "SQLITE_CONSTRAINT",
        "SQLITE_MISMATCH",
        "SQLITE_ERROR",
    )
