"""The state of a watch, in a small SQLite file that survives a kill at any moment.

It contains each run that was sent, so that after a restart, or when a file grows, only what is new is sent, and a later
change is sent as a change; of unfinished runs the spans that the receiver has; and each processed file, so that it is
not even opened. Whatever is forgotten is sent again, which changes nothing at the receiver.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

from runspan.model.document import Run, sort_time
from runspan.model.span import run_ids
from runspan.storage.span_acks import TABLES, SenderState, digest_of, state_hints
from runspan.storage.sqlite_file import Schema, SqliteSession, read_statements

REMEMBER: Final = 90 * 86_400 * 1_000_000_000
"""How long a run is remembered after it was sent, in nanoseconds: longer than the platform keeps it on any plan."""

_PRUNED: Final = 1000
_NEVER: Final = -(2**63)
"""A time of change that no file has."""

_WITHOUT: Final = "name another file with --state-file: every file is sent again, and no run is doubled"
_SCHEMA: Final = Schema(
    name="the state file of a watch",
    application_id=0x72737764,
    version=1,
    tables=(*read_statements(__package__, "state_db.sql"), *TABLES),
    hint=_WITHOUT,
    hints=state_hints(_WITHOUT),
)


class FileStat(NamedTuple):
    """What distinguishes a changed file from an unchanged one."""

    size: int
    modified: int
    """The time of the last change of its content, in nanoseconds since 1970. Programs may set it."""
    changed: int
    """The time of the last change of any kind, which nobody can set: another file with the same size and time of
    modification differs in it."""
    inode: int


class FileStatus(IntEnum):
    """What came of a file."""

    SENT = 0
    """The receiver has all of its runs."""
    REJECTED = 1
    """The receiver rejected some of them. The next start tries the file, and these, again."""
    BROKEN = 2
    """Some of it cannot be read. It is tried again when it changes."""
    EMPTY = 3
    """There is no document in it. It is tried again when it changes."""


class SendPlan(NamedTuple):
    """How a document is to be sent; for the fields see ``codec.encode``."""

    key: tuple[bytes, bytes]
    """Trace id and digest."""
    observed_at: int
    after_root: bool


class WatchState(SenderState):
    """The file. ``spans`` has the spans of unfinished runs, by trace id."""

    def __init__(self, path: Path, target: str, tenant: str) -> None:
        """``target``: the receiver and whose runs they are. What was sent elsewhere does not count."""
        self._tenant = tenant
        # Without an fsync for each commit a power cut may undo the last ones: those runs are sent again.
        session = SqliteSession(path, _SCHEMA, exclusive=True, pragmas=("synchronous = NORMAL",))
        super().__init__(session, {"target": target})

    def status(self, name: bytes, stat: FileStat) -> FileStatus | None:
        """Return what came of a file as it is now, or None when it was not processed."""
        row = self._run("SELECT status, size, modified, changed, inode FROM files WHERE name = ?", (name,)).fetchone()
        return FileStatus(row[0]) if row is not None and FileStat(*row[1:]) == stat else None

    def start_file(self, name: bytes, stat: FileStat, prefix_digest: Callable[[int], bytes | None]) -> int:
        """Begin to read a file. Return how many bytes of it were read before, if more was appended to them.

        ``prefix_digest`` returns the SHA-256 of so many of its first bytes. If they changed, nothing was read before.
        """
        self._run("DELETE FROM file_runs")
        row = self._run(
            "SELECT size, digest FROM files WHERE name = ? AND inode = ? AND size <= ? AND digest IS NOT NULL",
            (name, stat.inode, stat.size),
        ).fetchone()
        if row is not None and prefix_digest(row[0]) == row[1]:
            return int(row[0])
        self._run("UPDATE files SET digest = NULL WHERE name = ?", (name,))
        return 0

    def done(self, name: bytes, stat: FileStat, status: FileStatus, digest: bytes | None = None) -> None:
        """Record that a file was processed. ``digest``: the SHA-256 of its bytes, which shows later if it only grew."""
        self._run("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", (name, *stat, status, digest))

    def failed_files(self) -> int:
        """Return how many processed files contain something that was not sent."""
        count: int = self._run(
            "SELECT count(*) FROM files WHERE status <> 0 AND status <> ?", (FileStatus.EMPTY,)
        ).fetchone()[0]
        return count

    def plan_send(self, run: Run, now: int, *, new: bool = True) -> SendPlan | None:
        """Return how a run is to be sent, or None when the receiver has it.

        A version that may have been sent without a response gets the same plan again, so a kill in between leads to the
        same spans. A log may contain several versions of a run, and is read from its beginning whenever it grew: an
        older version that was sent is skipped, unless the file ends with it; see ``reverted_runs``.

        ``now``: nanoseconds since 1970. ``new``: whether it is in a part of the file that was not read before.
        """
        trace_id, digest = self.trace_id(run), digest_of(run.text)
        version = self._run(
            "SELECT observed_at, after_root, acked FROM versions WHERE trace_id = ? AND digest = ?", (trace_id, digest)
        ).fetchone()
        if version is None:
            return self._new(run, trace_id, digest, now)
        observed_at, after_root, acked = version
        newest = self._run("SELECT digest FROM runs WHERE trace_id = ?", (trace_id,)).fetchone()
        if newest is None or newest[0] == digest:
            self._is_newest(trace_id)
        elif new:
            self._run("INSERT INTO file_runs VALUES (?, 0, 1) ON CONFLICT DO UPDATE SET ends_older = 1", (trace_id,))
        return None if acked else SendPlan((trace_id, digest), observed_at, bool(after_root))

    def reverted_runs(self, since: int) -> set[bytes]:
        """Return the trace ids of runs of which the file that was just read ends with an older version.

        ``since``: when the file was modified. A run whose newest version was sent after that is left out, unless that
        version is in this file too: then this is an old file that is read again.
        """
        found = self._run(
            "SELECT trace_id FROM file_runs JOIN runs USING (trace_id)"
            " WHERE ends_older AND (observed_at < ? OR has_newest)",
            (since,),
        ).fetchall()
        self._run("DELETE FROM file_runs")
        return {trace_id for (trace_id,) in found}

    def plan_resend(self, run: Run, now: int) -> SendPlan:
        """Return how an older version is to be sent that is the newest one again."""
        return self._new(run, self.trace_id(run), digest_of(run.text), now)

    def trace_id(self, run: Run) -> bytes:
        """Return the id by which ``reverted_runs`` names a run."""
        return run_ids(run.id, self._tenant).trace_id

    def mark_acked(self, plans: Iterable[SendPlan]) -> None:
        """Record documents that the receiver has. A document that was planned again since then does not count."""
        acked = "UPDATE versions SET acked = 1 WHERE trace_id = ? AND digest = ? AND observed_at = ?"
        for plan in plans:
            self._run(acked, (*plan.key, plan.observed_at))

    def mark_rejected(self, plan: SendPlan, reason: str) -> None:
        """Record a document that the receiver does not take, until the next start."""
        self._run("INSERT OR REPLACE INTO rejected VALUES (?, ?, ?)", (*plan.key, reason))

    def rejection(self, run: Run) -> str | None:
        """Return why the receiver does not take a document, or None if it has not rejected it since the start."""
        row = self._run(
            "SELECT reason FROM rejected WHERE trace_id = ? AND digest = ?", (self.trace_id(run), digest_of(run.text))
        ).fetchone()
        return None if row is None else row[0]

    def add_acked_spans(self, plan: SendPlan, digests: Collection[bytes], now: int) -> None:
        """Record spans that the receiver has.

        They count only if this is the newest plan of the run, which decides what the receiver keeps. Once the run has
        ended nothing more is sent of it.
        """
        trace_id, digest = plan.key
        newest = self._run(
            "SELECT open_since FROM runs WHERE trace_id = ? AND digest = ? AND observed_at = ?",
            (trace_id, digest, plan.observed_at),
        ).fetchone()
        if newest is not None and newest[0] is not None:
            self.spans.add(trace_id, digests, now)
        elif newest is not None:
            self.spans.forget(trace_id)

    def _new(self, run: Run, trace_id: bytes, digest: bytes, now: int) -> SendPlan:
        before = self._run("SELECT observed_at, rooted FROM runs WHERE trace_id = ?", (trace_id,)).fetchone()
        observed_at, after_root = (now, False) if before is None else (max(now, before[0] + 1), bool(before[1]))
        open_since = None if run.finished else sort_time(run.envelope)
        rooted = after_root or run.finished
        values = (trace_id, digest, observed_at)
        self._run("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?)", (*values, rooted, open_since))
        self._run("INSERT OR REPLACE INTO versions VALUES (?, ?, ?, ?, 0)", (*values, after_root))
        self._is_newest(trace_id)
        return SendPlan((trace_id, digest), observed_at, after_root)

    def _is_newest(self, trace_id: bytes) -> None:
        """Record that the version that was just read is the newest, whatever came before it in the file."""
        self._run("INSERT OR REPLACE INTO file_runs VALUES (?, 1, 0)", (trace_id,))

    def unfinished(self) -> tuple[int, int | None]:
        """Return how many runs had not ended when they were last read, and the earliest start among them."""
        count, oldest = self._run(
            "SELECT count(*), min(nullif(open_since, 0)) FROM runs WHERE open_since IS NOT NULL"
        ).fetchone()
        return count, oldest

    def expire(self, folder: str, now: int) -> None:
        """Forget files that are gone, runs that were sent long ago, and spans that are too old to count."""
        self.spans.expire(now)
        self._run("DELETE FROM runs WHERE observed_at < ?", (now - REMEMBER,))
        # A log may still contain an old version of a run. It is known to be old as long as the newest one is known.
        self._run(
            "DELETE FROM versions WHERE observed_at < ? AND trace_id NOT IN (SELECT trace_id FROM runs)",
            (now - REMEMBER,),
        )
        self._run("DELETE FROM rejected WHERE (trace_id, digest) NOT IN (SELECT trace_id, digest FROM versions)")
        after = b""
        while rows := self._run(
            "SELECT name FROM files WHERE name > ? ORDER BY name LIMIT ?", (after, _PRUNED)
        ).fetchall():
            for row in rows:
                if not os.path.lexists(os.path.join(os.fsencode(folder), row[0])):
                    self._run("DELETE FROM files WHERE name = ?", row)
            after = rows[-1][0]

    def _prepare(self) -> None:
        """See ``SenderState``."""
        unknown = "SELECT status FROM files WHERE status <> 0 AND status NOT BETWEEN 0 AND ?"
        if (row := self._run(unknown, (max(FileStatus),)).fetchone()) is not None:
            raise self._damaged(f"a file of status {row[0]}")
        # What the receiver rejected gets another chance with each start, and so does its file.
        self._run(
            "CREATE TEMP TABLE rejected"
            " (trace_id BLOB, digest BLOB, reason, PRIMARY KEY (trace_id, digest)) WITHOUT ROWID"
        )
        self._run("UPDATE files SET changed = ? WHERE status = ?", (_NEVER, FileStatus.REJECTED))
        # The runs of the file that is being read: whether it has their newest version, and ends with an older one.
        self._run("CREATE TEMP TABLE file_runs (trace_id BLOB PRIMARY KEY, has_newest, ends_older) WITHOUT ROWID")
