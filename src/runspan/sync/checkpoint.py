"""The state of a sync: what is known of each run between the platform and the receiver.

It survives a kill at any moment: a commit returns once it is on disk. Several processes, the workers, may share it. A
worker leases a workflow while it fetches or sends runs of it, and one of them leases the lists. So at most one worker
changes what is stored of a run, except for what the list shows. See ``WorkerLock`` for how a lease ends.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from enum import IntEnum
from heapq import heappop, heappush
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from runspan.errors import StoreError
from runspan.storage.database import PostgresSchema, Session, postgres_tables
from runspan.storage.span_acks import TABLES, SenderState, state_hints
from runspan.storage.sqlite_file import Schema, SqliteSession, read_statements, translate_errors
from runspan.sync.worker_lock import FileLock, SessionLock, WorkerLock

if TYPE_CHECKING:
    from runspan.storage.postgres import PostgresDatabase


class TrackState(IntEnum):
    """The state of a tracked run. The numbers are stored in the file."""

    NEW = 0
    """Listed by the platform, and not acknowledged by the receiver yet: the backlog."""

    ENDED = 1
    """Acknowledged after its end."""

    OPEN = 2
    """Acknowledged as a snapshot. It is fetched again until it ends."""

    REFUSED = 3
    """Its document cannot be carried, or was rejected by the receiver. It is fetched again only if it changes."""

    GONE = 4
    """Listed by the platform, which then did not have it."""


AT_ONCE = 0
"""The value of ``TrackedRun.due`` for a run to fetch as soon as possible."""


@dataclass(slots=True)
class TrackedRun:
    """What a sync knows of one run. Times are nanoseconds since 1970; fingerprints and digests are b"" if unknown."""

    run_id: str
    time: int
    """The platform's sort key."""
    state: TrackState = TrackState.NEW
    due: int | None = AT_ONCE
    """When to fetch it; None: not before the list shows a change."""
    failures: int = 0
    """Failed fetches in a row."""
    list_fingerprint: bytes = b""
    """Of its last list item when it was read from the file. The list may show another one meanwhile."""
    document_fingerprint: bytes = b""
    """Of the list item that its last document would have."""
    sent_digest: bytes = b""
    """Of the document that was sent last. It is stored before it is sent, because it may arrive before a kill."""
    sent_revision: int = 0
    acked_digest: bytes = b""
    """Of the document that the receiver acknowledged last."""
    run_span_sent: bool = False
    """Whether a run span was sent, which happens only once."""
    changed_at: int = 0
    """When a fetch last found another document, or none."""
    acked_at: int = 0
    reason: str = ""
    """Why it was refused, or why its last fetch failed."""
    workflow: str = ""
    """The id of its workflow, or the beginning of a long one; "" if the list does not name it."""
    stored_state: TrackState | None = None
    """Its state in the file; None if it is not there."""

    @property
    def key(self) -> bytes:
        """Its key in ``SpanAcks``."""
        return self.run_id.encode()


_WITHOUT: Final = "name another file with --state-file: every run is fetched again, and none is doubled"
SCHEMA: Final = Schema(
    name="the state file of a sync",
    application_id=0x72737963,
    version=1,
    tables=(*read_statements(__package__, "checkpoint.sql"), *TABLES),
    hint=_WITHOUT,
    hints=state_hints(_WITHOUT),
)
POSTGRES_SCHEMA: Final = PostgresSchema(
    name="runspan_sync",
    version=SCHEMA.version,
    tables=postgres_tables(SCHEMA.tables),
    title="the database with the state of syncs",
    away="see whether PostgreSQL works there, and can be reached from here",
    hint="name another database with --state: every run is fetched again, and none is doubled",
)
_COLUMNS: Final = tuple(field.name for field in fields(TrackedRun)[:15])
"""The columns of ``runs``; the remaining fields are not stored."""

_SELECT: Final = f"SELECT {', '.join(_COLUMNS)} FROM runs WHERE "  # noqa: S608  # only constants
_INSERT: Final = f"INSERT INTO runs VALUES ({', '.join('?' * len(_COLUMNS))}) ON CONFLICT DO NOTHING"  # noqa: S608
_SAVED: Final = tuple(column for column in _COLUMNS if column not in ("run_id", "workflow", "due", "list_fingerprint"))
_UPDATE: Final = (
    f"UPDATE runs SET {', '.join(f'{column} = ?' for column in _SAVED)}, "  # noqa: S608  # only constants
    "due = CASE WHEN list_fingerprint IN (?, ?) THEN ? ELSE 0 END WHERE run_id = ?"
)
"""It leaves what the list has shown meanwhile, and fetches the run again if its document may be outdated."""

_FROM_EACH: Final = 50
"""Runs of a workflow that are read at once, at least."""

_FREE: Final = "(worker IS NULL OR worker = ?)"


def sync_binding(
    source: str, target: str, tenant: str = "", workflows: Iterable[str] = (), statuses: Iterable[str] = ()
) -> dict[str, str]:
    """Return what a state file belongs to. It is meaningless for another source, target, tenant or filter."""
    return {
        "source": source,
        "target": target,
        "tenant": tenant,
        "workflow": json.dumps(sorted(workflows)),
        "status": json.dumps(sorted(statuses)),
    }


@dataclass(slots=True)
class ListPosition:
    """How far the list of one filter was read. Times are nanoseconds since 1970, 0 for never."""

    newest: int = 0
    """Every run that started until then was listed."""
    full_started: int = 0
    """When the last full scan started. While it is in progress, ``edge``, ``full_newest`` and ``cursor`` are its
    ``ListScan.edge``, ``newest`` and ``cursor``."""
    full_ended: int = 0
    edge: int = 0
    full_newest: int = 0
    cursor: str | None = None
    after_page: int = 0
    """How many pages of lists had ever been read when the last scan started that was read to its end."""


@dataclass(frozen=True, slots=True)
class Due:
    """Which runs are due: of the backlog the oldest first, otherwise those first that have been due the longest."""

    backlog: bool
    until: int
    """The latest ``due``."""
    retry_until: int
    """The latest ``due`` of runs that failed, but fewer than ``max_failures`` times in a row."""
    max_failures: int

    @property
    def where(self) -> str:
        """The condition."""
        lane = "state = 0" if self.backlog else "state <> 0"
        return f"{lane} AND due IS NOT NULL AND (due <= ? OR (failures > 0 AND failures < ? AND due <= ?))"

    @property
    def values(self) -> tuple[int, int, int]:
        """The values of the condition."""
        return self.until, self.max_failures, self.retry_until

    @property
    def index(self) -> str:
        """The index by workflow."""
        return f"runs_{'new' if self.backlog else 'known'}_by_workflow"

    @property
    def order(self) -> str:
        """The column by which the runs are ordered."""
        return "time" if self.backlog else "due"


class Checkpoint(SenderState):
    """The state. ``spans`` has the acknowledged step spans of OPEN runs, by ``TrackedRun.key``."""

    def __init__(self, place: Path | PostgresDatabase, binding: Mapping[str, str]) -> None:
        """``place``: a file for the workers of this machine, or a database of ``POSTGRES_SCHEMA`` for those of many."""
        session, self._worker = _open(place)
        self._leased: set[str] = set()
        self._known_workflows: set[str] = set()
        self._counted_at = 0.0
        self.counts: Counter[TrackState] = Counter()
        """How many runs have each state."""
        super().__init__(session, binding)
        try:
            self.recount()
        except BaseException:
            self.close()
            raise

    def recount(self, *, max_age: float = 0.0) -> None:
        """Update ``counts`` by what other workers have changed, if that was done more than ``max_age`` seconds ago."""
        if max_age and time.monotonic() < self._counted_at + max_age:
            return
        rows = self._all("SELECT state, count(*) FROM runs GROUP BY state")
        self.counts.clear()
        self.counts.update({TrackState(state): count for state, count in rows})
        self._counted_at = time.monotonic()

    @property
    def has_other_workers(self) -> bool:
        """Whether other processes share the file now."""
        return any(not self._worker.has_ended(number) for number in self._other_workers())

    def free_leases(self) -> None:
        """Free what workers leased that were killed."""
        for number in self._other_workers():
            if self._worker.has_ended(number):
                self._begin()  # from now on no worker can lease anything under this number
                if self._worker.has_ended(number):
                    self._remove_worker(number)

    def release(self, kept: Collection[str]) -> None:
        """Free the workflows that this worker has leased, except for these."""
        for workflow in self._leased.difference(kept):
            self._run("UPDATE workflows SET worker = NULL WHERE workflow = ?", (workflow,))
            self._leased.remove(workflow)

    def lease_lists(self) -> bool:
        """Lease the lists until the file is closed. Return False if another worker has them."""
        return self._run("UPDATE lists SET worker = ? WHERE worker IS NULL", (self._worker.number,)).rowcount > 0

    @property
    def pages(self) -> tuple[int, int]:
        """How many pages of lists were ever read, and how many are wanted at least."""
        pages, wanted = self._all("SELECT pages, wanted FROM lists")[0]
        return pages, wanted

    def add_page(self) -> None:
        """Count a page of a list."""
        self._run("UPDATE lists SET pages = pages + 1")

    def want_page(self) -> None:
        """Let the worker that has leased the lists read a page."""
        self._run("UPDATE lists SET wanted = pages + 1")

    def close(self) -> None:
        """See ``SenderState``. Everything that this worker has leased is free then."""
        with suppress(StoreError):  # another worker frees it
            if self._worker.is_held:
                self.roll_back()
                self._remove_worker(self._worker.number)
                self.commit()
        self._worker.close()
        super().close()

    def get(self, run_ids: Sequence[str]) -> dict[str, TrackedRun]:
        """Return those of the runs that are tracked, by id; for at most some hundreds of ids."""
        if not run_ids:  # PostgreSQL has no empty list
            return {}
        holders = ", ".join("?" * len(run_ids))
        return {run.run_id: run for run in self._runs(f"run_id IN ({holders})", run_ids)}

    def save(self, run: TrackedRun) -> None:
        """Store a run that is new, or that this worker has in progress."""
        if run.stored_state is None:
            self._add(run)
            return
        if run.stored_state is not run.state:
            self.counts[run.stored_state] -= 1
            if run.stored_state is TrackState.OPEN:
                self.spans.forget(run.key)
            self.counts[run.state] += 1
            run.stored_state = run.state
        saved = [getattr(run, column) for column in _SAVED]
        self._run(_UPDATE, (*saved, run.list_fingerprint, run.document_fingerprint, run.due, run.run_id))

    def list_changed(self, run: TrackedRun, *, at_once: bool) -> None:
        """Store what the list shows of a tracked run, whichever worker has leased it.

        ``at_once``: whether to fetch it at once.
        """
        again = ", due = 0, failures = 0" if at_once else ""
        changed = f"UPDATE runs SET list_fingerprint = ?, time = ?{again} WHERE run_id = ?"  # noqa: S608
        self._run(changed, (run.list_fingerprint, run.time, run.run_id))

    def due_runs(
        self, due: Due, limit: int, in_progress: Collection[TrackedRun] = (), *, latest: int | None = None
    ) -> list[TrackedRun]:
        """Lease workflows, and return due runs of them in their order, except for those that are in progress.

        It leases at most this worker's share of the workflows that have due runs and are not leased by others, those
        with the first runs.

        ``latest``: the latest value of ``Due.order``; None: any.
        """
        table = f"runs{self._session.indexed_by(due.index)}"
        share = self._due_workflows(due)
        busy = Counter(run.workflow for run in in_progress)
        skipped = {run.run_id for run in in_progress}
        from_each = max(_FROM_EACH, limit // max(1, len(share)))
        found: list[str] = []
        unread: set[str] = set()
        # A merge of the workflows. One is leased and read once its first run is the next one.
        heap: list[tuple[int, str, list[tuple[int, str]]]] = [(first, workflow, []) for first, workflow in share]
        while heap and len(found) < limit:
            first, workflow, rows = heappop(heap)
            if latest is not None and first > latest:
                break
            if rows:
                found.append(rows.pop()[1])
                if not rows and workflow in unread:
                    break  # the next one of this workflow may come before those of the others
            elif self._lease(workflow):
                limit_here = from_each + busy[workflow]
                select = f"SELECT {due.order}, run_id FROM {table} WHERE workflow = ? AND {due.where} "  # noqa: S608
                read = self._all(f"{select} ORDER BY {due.order} LIMIT ?", (workflow, *due.values, limit_here))
                if len(read) == limit_here:
                    unread.add(workflow)
                rows = [row for row in reversed(read) if row[1] not in skipped]
            if rows:
                heappush(heap, (rows[-1][0], workflow, rows))
        runs = self.get(found)
        return [runs[run_id] for run_id in found]

    def has_due(self, due: Due) -> bool:
        """Whether any run is due, also one that another worker fetches or sends at the moment."""
        return bool(self._all(f"SELECT 1 FROM runs WHERE {due.where} LIMIT 1", due.values))  # noqa: S608

    def oldest_due(self, due: Due) -> int | None:
        """Return the earliest start of the runs that are due, also of those that another worker has leased."""
        return self._number(f"SELECT min(time) FROM runs WHERE {due.where}", due.values)  # noqa: S608

    def next_retry(self, max_failures: int) -> int | None:
        """Return the first ``due`` of the runs that failed, but fewer than ``max_failures`` times in a row."""
        where = "failures > 0 AND failures < ? AND due > 0"
        return self._number(f"SELECT min(due) FROM runs WHERE {where}", (max_failures,))  # noqa: S608  # only constants

    def oldest(self, state: TrackState) -> int | None:
        """Return the earliest time of the runs in a state."""
        return self._number("SELECT min(time) FROM runs WHERE state = ? AND time > 0", (state,))

    def backlog_by_time(self, length: int) -> list[tuple[int, int]]:
        """Return the backlog by intervals of this length, as (start of the interval, number of runs)."""
        return self._all(
            "SELECT time / ? * ?, count(*) FROM runs WHERE state = 0 AND time > 0 GROUP BY 1 ORDER BY 1",
            (length, length),
        )

    def refused(self, limit: int) -> list[tuple[str, str]]:
        """Return (run id, reason) of the oldest refused runs."""
        statement = "SELECT run_id, reason FROM runs WHERE state = ? ORDER BY time LIMIT ?"
        return self._all(statement, (TrackState.REFUSED, limit))

    def failing_count(self) -> int:
        """Return the number of runs whose last fetch failed."""
        return self._number("SELECT count(*) FROM runs WHERE failures > 0") or 0

    def failing(self, limit: int) -> list[tuple[str, str]]:
        """Return (run id, reason) of the oldest runs whose last fetch failed."""
        return self._all("SELECT run_id, reason FROM runs WHERE failures > 0 ORDER BY time LIMIT ?", (limit,))

    def reschedule(self, state: TrackState, *, since: int = 0) -> None:
        """Fetch all runs in this state that started since then at once."""
        self._run("UPDATE runs SET due = 0, failures = 0 WHERE state = ? AND time >= ?", (state, since))

    def resend(self, since: int) -> None:
        """Send all acknowledged runs that started since then, or at an unknown time, once more, as the same spans."""
        chosen = "state = ? AND (time >= ? OR time = 0)"
        for (run_id,) in self._all(f"SELECT run_id FROM runs WHERE {chosen}", (TrackState.OPEN, since)):  # noqa: S608
            self.spans.forget(run_id.encode())
        for state in (TrackState.ENDED, TrackState.OPEN):
            again = "UPDATE runs SET acked_digest = ?, due = 0, failures = 0 WHERE "
            self._run(again + chosen, (b"", state, since))

    def clamp_due(self, latest: int) -> None:
        """Fetch all runs that are due later than that at once."""
        for chosen in ("failures > 0", "state <> 0 AND due IS NOT NULL"):  # the conditions of the indexes
            self._run(f"UPDATE runs SET due = 0 WHERE {chosen} AND due > ?", (latest,))  # noqa: S608  # only constants

    def forget_failures(self) -> None:
        """Fetch all runs whose last fetch failed at once, and count their failures from 0."""
        self._run("UPDATE runs SET due = 0, failures = 0 WHERE failures > 0")

    def list_position(self, filter_name: str) -> ListPosition:
        """Return how far the list of a filter was read."""
        rows = self._all("SELECT * FROM list_positions WHERE filter = ?", (filter_name,))
        return ListPosition(*rows[0][1:]) if rows else ListPosition()

    def save_list_position(self, filter_name: str, position: ListPosition) -> None:
        """Store how far the list of a filter was read."""
        values = (filter_name, *astuple(position))
        self._run("DELETE FROM list_positions WHERE filter = ?", (filter_name,))
        self._run("INSERT INTO list_positions VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

    def _due_workflows(self, due: Due) -> list[tuple[int, str]]:
        """Return this worker's share of the workflows with due runs, as (``Due.order`` of the first run, workflow)."""
        table = f"runs{self._session.indexed_by(due.index)}"
        first = f"SELECT {due.order} FROM {table} WHERE runs.workflow = workflows.workflow AND {due.where}"  # noqa: S608
        firsts = f"SELECT ({first} ORDER BY {due.order} LIMIT 1), workflow FROM workflows WHERE {_FREE}"  # noqa: S608
        found = sorted(row for row in self._all(firsts, (*due.values, self._worker.number)) if row[0] is not None)
        workers = len(self._other_workers()) + 1
        return found[: -(-len(found) // workers)]

    def _lease(self, workflow: str) -> bool:
        """Lease a workflow until ``release``. Return False if another worker has it."""
        if workflow not in self._leased:
            statement = f"UPDATE workflows SET worker = ? WHERE workflow = ? AND {_FREE}"  # noqa: S608
            number = self._worker.number
            if not self._run(statement, (number, workflow, number)).rowcount:
                return False
            self._leased.add(workflow)
        return True

    def _add(self, run: TrackedRun) -> None:
        if run.workflow not in self._known_workflows:
            self._known_workflows.add(run.workflow)
            self._run("INSERT INTO workflows VALUES (?, NULL) ON CONFLICT DO NOTHING", (run.workflow,))
        run.stored_state = run.state
        self.counts[run.state] += self._run(_INSERT, [getattr(run, column) for column in _COLUMNS]).rowcount

    def _other_workers(self) -> list[int]:
        return [
            number for (number,) in self._all("SELECT number FROM workers WHERE number <> ?", (self._worker.number,))
        ]

    def _remove_worker(self, number: int) -> None:
        for table in ("workflows", "lists"):
            self._run(f"UPDATE {table} SET worker = NULL WHERE worker = ?", (number,))  # noqa: S608  # only constants
        self._run("DELETE FROM workers WHERE number = ?", (number,))

    def _prepare(self) -> None:
        """See ``SenderState``."""
        self._remove_worker(self._worker.number)  # one before, which was killed
        self._run("INSERT INTO workers VALUES (?)", (self._worker.number,))

    def _runs(self, where: str, values: Iterable[Any]) -> list[TrackedRun]:
        runs = [TrackedRun(*row) for row in self._all(_SELECT + where, values)]
        for run in runs:
            run.state = run.stored_state = TrackState(run.state)
            run.run_span_sent = bool(run.run_span_sent)
        return runs

    def _number(self, statement: str, values: Iterable[Any] = ()) -> int | None:
        value: int | None = self._all(statement, values)[0][0]
        return value


def _open(place: Path | PostgresDatabase) -> tuple[Session, WorkerLock]:
    if not isinstance(place, Path):
        session = place.session()
        return session, SessionLock(session)
    with translate_errors(place, SCHEMA.hints):
        lock = FileLock(place)
    try:
        # A worker waits for the longest transaction of another one, such as that of ``resend`` for a million runs.
        return SqliteSession(place, SCHEMA, pragmas=("busy_timeout = 60000",)), lock
    except BaseException:
        lock.close()
        raise
