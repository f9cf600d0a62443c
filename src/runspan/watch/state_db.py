"""``Ledger``: what a watch of a folder remembers, in a small file that survives a kill at any moment.

It knows each run that was sent, so that a restart or a file that grew sends only what is new, and what changes later is
sent as a change; of runs that go on the spans that the receiver has; and each file that is done with, so that it is not
even opened. Whatever it forgets is sent again, which changes nothing at the receiver.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from enum import IntEnum
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

from runspan.errors import SettingError, StoreError
from runspan.model.document import sort_time
from runspan.model.ids import run_ids
from runspan.model.run import Run
from runspan.storage.span_acks import TABLES as SPAN_TABLES
from runspan.storage.span_acks import SpanAcks
from runspan.storage.sqlite_file import Schema, open_database, translate_errors

REMEMBER: Final = 90 * 86_400 * 1_000_000_000
"""How long a run is remembered after it was sent, in nanoseconds: longer than the longest plan keeps it."""

_PRUNED: Final = 1000
_NEVER: Final = -(2**63)
"""A time at which no file was changed."""

_TABLES: Final = (
    "CREATE TABLE target (name TEXT NOT NULL) STRICT",
    """
    CREATE TABLE files (
        name BLOB PRIMARY KEY,
        size INTEGER NOT NULL,
        changed INTEGER NOT NULL,
        inode INTEGER NOT NULL,
        outcome INTEGER NOT NULL,
        head BLOB
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX files_at_fault ON files (outcome) WHERE outcome <> 0",
    """
    CREATE TABLE runs (
        trace_id BLOB PRIMARY KEY,
        digest BLOB NOT NULL,
        observed_at INTEGER NOT NULL,
        rooted INTEGER NOT NULL,
        open_since INTEGER
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE versions (
        trace_id BLOB NOT NULL,
        digest BLOB NOT NULL,
        observed_at INTEGER NOT NULL,
        after_root INTEGER NOT NULL,
        taken INTEGER NOT NULL,
        PRIMARY KEY (trace_id, digest)
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX runs_open ON runs (open_since) WHERE open_since IS NOT NULL",
    *SPAN_TABLES,
)
_HINT: Final = "name another file with --state-file: every file is sent again, and no run is doubled"
_SCHEMA: Final = Schema(
    name="the state file of a watch", application_id=0x72737764, version=1, tables=_TABLES, hint=_HINT
)
_SAVE_RUN: Final = "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?)"
_SAVE_VERSION: Final = "INSERT OR REPLACE INTO versions VALUES (?, ?, ?, ?, 0)"


class FileStat(NamedTuple):
    """What tells a changed file from the same: bytes, time of change in nanoseconds, and which file it is."""

    size: int
    changed: int
    inode: int


class FileStatus(IntEnum):
    """What came of a file. SENT: the receiver has all of its runs. REJECTED: not all, which the next start tries again.
    BROKEN: something in it cannot be read, until it changes. EMPTY: there is no document in it, until it changes."""

    SENT = 0
    REJECTED = 1
    BROKEN = 2
    EMPTY = 3


class SendPlan(NamedTuple):
    """How a document is to be sent: see ``encode``. key: names it to ``taken``."""

    key: tuple[bytes, bytes]
    observed_at: int
    after_root: bool


class WatchState:
    """The file. Used by one thread; what was done since the last ``commit`` is forgotten in a crash.

    spans: of runs that go on, by trace id.
    target: where the runs go to and whose they are; what was sent elsewhere says nothing. SettingError when the file is
    another target's or somebody is using it; StoreError when it cannot be opened, or is damaged.
    """

    def __init__(self, path: Path, target: str, tenant: str) -> None:
        self.path = path
        self.target = target
        self.spans = SpanAcks(self._do)
        self._tenant = tenant
        self._narrowed = False
        # Without an fsync for each commit a power cut may undo the last ones: those runs are sent again.
        pragmas = ("synchronous = NORMAL",)
        self._connection = open_database(path, _SCHEMA, exclusive=True, busy_timeout=1.0, pragmas=pragmas)
        try:
            self._begin()
            self._prepare()
            self.commit()
        except BaseException:
            self._connection.close()
            raise

    def outcome(self, name: bytes, signature: FileStat) -> FileStatus | None:
        """What came of a file as it is now, None when it was not read."""
        row = self._do("SELECT outcome, size, changed, inode FROM files WHERE name = ?", (name,)).fetchone()
        return FileStatus(row[0]) if row is not None and FileStat(*row[1:]) == signature else None

    def start_file(self, name: bytes, signature: FileStat, head_of: Callable[[int], bytes | None]) -> int:
        """A file is to be read: how many bytes of it were read before, when it goes on with more.

        head_of: the SHA-256 of so many of its first bytes. Once it was another, what was known of it says nothing.
        """
        self._forget_order()
        row = self._do(
            "SELECT size, head FROM files WHERE name = ? AND inode = ? AND size <= ? AND head IS NOT NULL",
            (name, signature.inode, signature.size),
        ).fetchone()
        if row is not None and head_of(row[0]) == row[1]:
            return int(row[0])
        self._do("UPDATE files SET head = NULL WHERE name = ?", (name,))
        return 0

    def done(self, name: bytes, signature: FileStat, outcome: FileStatus, head: bytes | None = None) -> None:
        """A file needs no look until it changes. head: the SHA-256 of its bytes, by which one that grows is known."""
        self._do("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", (name, *signature, outcome, head))

    def failed_files(self) -> int:
        """How many files are done with and were not sent as a whole."""
        count: int = self._do(
            "SELECT count(*) FROM files WHERE outcome <> 0 AND outcome <> ?", (FileStatus.EMPTY,)
        ).fetchone()[0]
        return count

    def plan_send(self, run: Run, now: int, *, news: bool = True) -> SendPlan | None:
        """How a run is to be sent, None when the receiver has it.

        A version that may have been sent before its answer was known is intended again in the same way: a kill in
        between leads to the same spans. A log may hold several versions of a run, and is read from its beginning
        whenever it grew: an older version that was sent is passed over, unless the file ends with it; see ``returned``.
        now: nanoseconds since 1970. news: whether it stands where the file was not read before.
        """
        trace_id, digest = run_ids(run.id, self._tenant).trace_id, sha256(run.text).digest()[:16]
        version = self._do(
            "SELECT observed_at, after_root, taken FROM versions WHERE trace_id = ? AND digest = ?", (trace_id, digest)
        ).fetchone()
        if version is None:
            return self._new(run, trace_id, digest, now)
        observed_at, after_root, taken = version
        newest = self._do("SELECT digest FROM runs WHERE trace_id = ?", (trace_id,)).fetchone()
        if newest is None or newest[0] == digest:
            self._is_newest(trace_id)
        elif news:
            self._do("INSERT OR IGNORE INTO older VALUES (?)", (trace_id,))
        return None if taken else SendPlan((trace_id, digest), observed_at, bool(after_root))

    def reverted_runs(self, since: int) -> set[bytes]:
        """The trace ids of runs whose last version in the file that was just read is an older one.

        since: when the file was changed. Those whose newest version was sent after that are left out, unless it stands
        in this file too: the file is an old one that is read again. Begins anew for the next file.
        """
        found = self._do(
            "SELECT trace_id FROM older JOIN runs USING (trace_id)"
            " WHERE observed_at < ? OR trace_id IN (SELECT trace_id FROM newest)",
            (since,),
        ).fetchall()
        self._forget_order()
        return {trace_id for (trace_id,) in found}

    def plan_resend(self, run: Run, now: int) -> SendPlan:
        """The same for an older version that became the newest once more."""
        return self._new(run, run_ids(run.id, self._tenant).trace_id, sha256(run.text).digest()[:16], now)

    def trace_id(self, run: Run) -> bytes:
        """How ``returned`` calls a run."""
        return run_ids(run.id, self._tenant).trace_id

    def mark_acked(self, intents: Iterable[SendPlan]) -> None:
        """The receiver has these documents, as they were to be sent: one that was intended again since then is not."""
        self._do_many(
            "UPDATE versions SET taken = 1 WHERE trace_id = ? AND digest = ? AND observed_at = ?",
            [(*intent.key, intent.observed_at) for intent in intents],
        )

    def acked_spans(self, intent: SendPlan, now: int) -> frozenset[bytes]:
        """The digests of the spans of this run that the receiver has."""
        return self.spans.get(intent.key[0], now)

    def retain_only(self, intent: SendPlan, names: Collection[bytes]) -> None:
        """What is about to be sent names these spans, and the receiver may keep no others."""
        self._narrowed = self.spans.retain_only(intent.key[0], names) or self._narrowed

    def acknowledged(self, intent: SendPlan, names: Collection[bytes], now: int) -> None:
        """The receiver has these spans too. Only what was intended last tells which spans it keeps, and once the run
        has ended there is no more to be sent."""
        trace_id, digest = intent.key
        newest = self._do(
            "SELECT open_since FROM runs WHERE trace_id = ? AND digest = ? AND observed_at = ?",
            (trace_id, digest, intent.observed_at),
        ).fetchone()
        if newest is not None and newest[0] is not None:
            self.spans.add(trace_id, names, now)
        elif newest is not None:
            self.spans.forget(trace_id)

    def _new(self, run: Run, trace_id: bytes, digest: bytes, now: int) -> SendPlan:
        before = self._do("SELECT observed_at, rooted FROM runs WHERE trace_id = ?", (trace_id,)).fetchone()
        observed_at, after_root = (now, False) if before is None else (max(now, before[0] + 1), bool(before[1]))
        open_since = None if run.finished else sort_time(run.envelope)
        rooted = after_root or run.finished
        self._do(_SAVE_RUN, (trace_id, digest, observed_at, rooted, open_since))
        self._do(_SAVE_VERSION, (trace_id, digest, observed_at, after_root))
        self._is_newest(trace_id)
        return SendPlan((trace_id, digest), observed_at, after_root)

    def _forget_order(self) -> None:
        self._do("DELETE FROM older")
        self._do("DELETE FROM newest")

    def _is_newest(self, trace_id: bytes) -> None:
        """The version that was just read, whatever came before it in the file."""
        self._do("INSERT OR IGNORE INTO newest VALUES (?)", (trace_id,))
        self._do("DELETE FROM older WHERE trace_id = ?", (trace_id,))

    def unfinished(self) -> tuple[int, int | None]:
        """How many runs had not ended when they were last read, and the earliest start among them."""
        count, oldest = self._do(
            "SELECT count(*), min(nullif(open_since, 0)) FROM runs WHERE open_since IS NOT NULL"
        ).fetchone()
        return count, oldest

    def forget(self, folder: str, now: int) -> None:
        """Forgets files that are gone, runs that were sent long ago, and spans that count as there no more."""
        self.spans.expire(now)
        self._do("DELETE FROM runs WHERE observed_at < ?", (now - REMEMBER,))
        # A log may still hold an old version of a run: that it is older is known as long as the newest one is.
        self._do(
            "DELETE FROM versions WHERE observed_at < ? AND trace_id NOT IN (SELECT trace_id FROM runs)",
            (now - REMEMBER,),
        )
        after = b""
        while rows := self._do(
            "SELECT name FROM files WHERE name > ? ORDER BY name LIMIT ?", (after, _PRUNED)
        ).fetchall():
            gone = [row for row in rows if not os.path.lexists(os.path.join(os.fsencode(folder), row[0]))]
            self._do_many("DELETE FROM files WHERE name = ?", gone)
            after = rows[-1][0]

    def commit(self) -> None:
        """What was done until now survives a kill of the process."""
        if self._connection.in_transaction:  # a signal may have come between the two
            self._do("COMMIT")
        if self._narrowed:
            # What was taken out must not come back after a power cut: this waits until it is on the disk.
            self._do("PRAGMA wal_checkpoint").fetchall()
            self._narrowed = False
        self._begin()

    def close(self) -> None:
        """Commits and closes the file. Calling it twice is allowed."""
        with suppress(sqlite3.Error):
            self._connection.execute("COMMIT")
        self._connection.close()

    def _begin(self) -> None:
        self._do("BEGIN IMMEDIATE")

    def _do(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        try:
            with translate_errors(self.path):
                return self._connection.execute(statement, values)
        except OverflowError:
            raise self._damaged("a number that no clock shows") from None

    def _do_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        with translate_errors(self.path):
            self._connection.executemany(statement, rows)

    def _prepare(self) -> None:
        """Bind a new file to its target, or check that it is this target's and not damaged."""
        row = self._do("SELECT name FROM target").fetchone()
        if row is None:
            self._do("INSERT INTO target VALUES (?)", (self.target,))
        elif row[0] != self.target:
            raise SettingError(
                where=str(self.path),
                expected=f"the state of what was sent to {self.target}",
                got=f"that of {row[0]}",
                hint="name another file with --state-file; to another endpoint everything has to be sent again",
            )
        unknown = "SELECT outcome FROM files WHERE outcome <> 0 AND outcome NOT BETWEEN 0 AND ?"
        if (row := self._do(unknown, (max(FileStatus),)).fetchone()) is not None:
            raise self._damaged(f"an outcome {row[0]}")
        # A file of which the receiver refused something gets another chance.
        self._do("UPDATE files SET changed = ? WHERE outcome = ?", (_NEVER, FileStatus.REJECTED))
        for name in ("older", "newest"):
            self._do(f"CREATE TEMP TABLE {name} (trace_id BLOB PRIMARY KEY) WITHOUT ROWID")

    def _damaged(self, got: str) -> StoreError:
        return StoreError("the file is damaged", where=str(self.path), expected=_SCHEMA.name, got=got, hint=_HINT)
