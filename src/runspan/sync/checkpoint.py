"""The state file of a sync: what is known of each run between the platform and the receiver.

It survives a kill at any moment: a commit returns once it is on disk. One process at a time can open it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from runspan.storage.span_acks import TABLES, StateFile, state_hints
from runspan.storage.sqlite_file import Schema, read_statements


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
    """Of its last list item."""
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
    stored_state: TrackState | None = None
    """Its state in the file; None if it is not there."""
    changed_meanwhile: bool = False
    """Whether the list showed a change while it was fetched or sent, so that the fetched document may be outdated."""

    @property
    def key(self) -> bytes:
        """Its key in ``SpanAcks``."""
        return self.run_id.encode()


_WITHOUT: Final = "name another file with --state-file: every run is fetched again, and none is doubled"
_SCHEMA: Final = Schema(
    name="the state file of a sync",
    application_id=0x72737963,
    version=1,
    tables=(*read_statements(__package__, "checkpoint.sql"), *TABLES),
    hint=_WITHOUT,
    hints=state_hints(_WITHOUT),
)
_COLUMNS: Final = tuple(field.name for field in fields(TrackedRun)[:14])
"""The columns of ``runs``; the remaining fields are not stored."""

_SELECT: Final = f"SELECT {', '.join(_COLUMNS)} FROM runs WHERE "  # noqa: S608  # only constants
_SAVE: Final = f"INSERT OR REPLACE INTO runs VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608  # only constants


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


class Checkpoint(StateFile):
    """The state file. ``spans`` has the acknowledged step spans of OPEN runs, by ``TrackedRun.key``."""

    def __init__(self, path: Path, binding: Mapping[str, str]) -> None:
        super().__init__(path, _SCHEMA, binding)
        rows = self._all("SELECT state, count(*) FROM runs GROUP BY state")
        self.counts: Counter[TrackState] = Counter({TrackState(state): count for state, count in rows})
        """How many runs have each state."""

    def get(self, run_ids: Sequence[str]) -> dict[str, TrackedRun]:
        """Return those of the runs that are tracked, by id; for at most some hundreds of ids."""
        holders = ", ".join("?" * len(run_ids))
        return {run.run_id: run for run in self._runs(f"run_id IN ({holders})", run_ids)}

    def save(self, run: TrackedRun) -> None:
        """Store a run."""
        if run.stored_state is not run.state:
            if run.stored_state is not None:
                self.counts[run.stored_state] -= 1
            if run.stored_state is TrackState.OPEN:
                self.spans.forget(run.key)
            self.counts[run.state] += 1
            run.stored_state = run.state
        self._run(_SAVE, [getattr(run, column) for column in _COLUMNS])

    def due_runs(
        self, limit: int, *, backlog: bool, until: int, retry_until: int, max_failures: int
    ) -> list[TrackedRun]:
        """Return due runs: of the backlog the oldest first, otherwise those first that have been due the longest.

        - ``until``: the latest ``due``.
        - ``retry_until``: the latest ``due`` of runs that failed, but fewer than ``max_failures`` times in a row.
        """
        where = "state = 0" if backlog else "state <> 0"
        where += " AND due IS NOT NULL AND (due <= ? OR (failures > 0 AND failures < ? AND due <= ?))"
        order = "time" if backlog else "due"
        return self._runs(f"{where} ORDER BY {order} LIMIT ?", (until, max_failures, retry_until, limit))

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
        chosen = f"FROM runs WHERE state IN ({TrackState.ENDED:d}, {TrackState.OPEN:d}) AND (time >= ? OR time = 0)"
        self._run(f"DELETE FROM spans WHERE run IN (SELECT CAST(run_id AS BLOB) {chosen})", (since,))  # noqa: S608
        again = "UPDATE runs SET acked_digest = x'', due = 0, failures = 0 WHERE run_id IN (SELECT run_id "
        self._run(f"{again}{chosen})", (since,))

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
        self._run("INSERT OR REPLACE INTO list_positions VALUES (?, ?, ?, ?, ?, ?, ?)", values)

    def _runs(self, where: str, values: Iterable[Any]) -> list[TrackedRun]:
        runs = [TrackedRun(*row) for row in self._all(_SELECT + where, values)]
        for run in runs:
            run.state = run.stored_state = TrackState(run.state)
            run.run_span_sent = bool(run.run_span_sent)
        return runs

    def _number(self, statement: str, values: Iterable[Any] = ()) -> int | None:
        value: int | None = self._all(statement, values)[0][0]
        return value
