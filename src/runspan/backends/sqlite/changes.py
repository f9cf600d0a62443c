"""Changes of traces: each is prepared from the state of its trace, and made if that is still its state.

The transaction compares the state of the trace with the one that the changes were prepared from; if another write came
first, they are prepared again. So no two writers decide on the same state, and what takes long delays no other writer.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Final, TypeVar

from runspan.backends.sqlite import queries
from runspan.backends.sqlite.queries import FragmentRow, RunRow, StoredHead, StoredRow, Waiting
from runspan.backends.sqlite.waiting import Limits, Size
from runspan.backends.sqlite.writer import GroupWriter

T = TypeVar("T")

_ATTEMPTS: Final = 3
"""How often changes are prepared outside of the transaction."""
_PART_ROWS: Final = 500
"""Rows of spans that one transaction writes for one caller."""

State = tuple[StoredHead | None, Waiting | None]
"""What differs after each change of a trace: of its stored run and of the tenant's fragments."""


@dataclass(slots=True)
class Changes:
    """What a write changes in a trace, prepared from one state of it."""

    trace_id: bytes
    tenant: str
    state: State
    reason: str | None = None
    """Why the spans or the document are rejected."""
    row: RunRow | None = None
    resource: bytes | None = None
    is_new: bool = False
    """Whether the row has the document that was written."""
    is_listed: bool = False
    """Whether the stored row is listed where this one is."""
    observation: tuple[int, int, int] | None = None
    """Revision, time of observation and of writing of an unfinished run that was observed again."""
    incomplete: tuple[tuple[str, ...], int, int] | None = None
    """What is missing of newer revisions than the stored one, the start of its retention, the time of writing."""
    inserted: list[FragmentRow] = field(default_factory=list)
    deleted: list[int] = field(default_factory=list)
    freed: Size = field(default_factory=Size)
    """The size of what is deleted."""
    hints: list[tuple[bytes | None, int | None, int]] = field(default_factory=list)


Plan = Callable[[sqlite3.Connection], Changes]
"""Prepares the changes of one trace from what is stored."""


class TraceLocks:
    """A lock for each trace that is being changed."""

    def __init__(self) -> None:
        self._guard = Lock()
        self._locks: dict[bytes, tuple[Lock, int]] = {}
        """The lock of a trace, and how many threads hold it or wait for it."""

    @contextmanager
    def hold(self, trace_ids: Iterable[bytes]) -> Iterator[None]:
        """Hold the locks of traces while the block runs; all callers take them in the same order."""
        with ExitStack() as stack:
            for trace_id in sorted(trace_ids):
                stack.callback(self._leave, trace_id)
                stack.enter_context(self._enter(trace_id))
            yield

    def _enter(self, trace_id: bytes) -> Lock:
        with self._guard:
            lock, users = self._locks.get(trace_id, (Lock(), 0))
            self._locks[trace_id] = lock, users + 1
        return lock

    def _leave(self, trace_id: bytes) -> None:
        with self._guard:
            lock, users = self._locks.pop(trace_id)
            if users > 1:
                self._locks[trace_id] = lock, users - 1


@dataclass(frozen=True, slots=True)
class Changer:
    """Makes changes of traces."""

    writer: GroupWriter
    readers: Callable[[], AbstractContextManager[sqlite3.Connection]]
    """Returns a connection that only reads."""
    limits: Limits
    locks: TraceLocks = field(default_factory=TraceLocks)

    def change(
        self, tenant: str, plans: Mapping[bytes, Plan], plan_recent: Callable[[], Iterable[Changes]] = list
    ) -> list[Changes]:
        """Prepare the changes of traces in this thread and make them; prepare those again that came too late.

        plan_recent: prepares the changes of some of the traces from what was stored of them last.
        The locks of the traces keep the writers of this process from changing them. Those of others may, and then the
        changes are at last prepared in the transaction.
        """
        with self.locks.hold(plans):
            made = {changes.trace_id: changes for changes in self._make(list(plan_recent()), tenant)}
            for _ in range(_ATTEMPTS):
                if len(made) == len(plans):
                    break
                with self.readers() as connection:
                    planned = [plan(connection) for trace_id, plan in plans.items() if trace_id not in made]
                made |= {changes.trace_id: changes for changes in self._make(planned, tenant)}
            for trace_id in plans.keys() - made:
                made[trace_id] = self.writer.submit(partial(self._plan_and_make, plan=plans[trace_id]), tenant)
        return [made[trace_id] for trace_id in plans]

    def _plan_and_make(self, connection: sqlite3.Connection, plan: Plan) -> Changes:
        changes = plan(connection)
        for start in range(0, max(len(changes.inserted), 1), _PART_ROWS):
            changes.state = read_state(connection, changes.trace_id, changes.tenant)
            _, refusal = self._apply(connection, changes, start)
            if refusal is not None:
                changes.reason, changes.deleted = refusal, []
        queries.delete_fragments(connection, changes.deleted)
        return changes

    def _make(self, planned: Sequence[Changes], tenant: str) -> list[Changes]:
        """Make changes in transactions of bounded size. Return those that were made, or refused for good."""
        made: list[Changes] = []
        waiting, start = list(planned), 0
        while waiting:
            works = [partial(self._apply, changes=changes, start=start) for changes in waiting]
            start += _PART_ROWS
            unfinished = []
            for changes, (state, refusal) in zip(waiting, self.writer.submit_all(works, tenant), strict=True):
                if refusal is not None:
                    changes.reason, changes.deleted = refusal, []
                    made.append(changes)
                elif state is not None and changes.reason is None and start < len(changes.inserted):
                    changes.state = state
                    unfinished.append(changes)
                elif state is not None:
                    made.append(changes)
            waiting = unfinished
        # What waits no longer has no effect while it is there.
        rest = [row_id for changes in made for row_id in changes.deleted[_PART_ROWS:]]
        self.writer.submit_all([partial(queries.delete_fragments, ids=part) for part in in_parts(rest)], tenant)
        return made

    def _apply(self, connection: sqlite3.Connection, changes: Changes, start: int) -> tuple[State | None, str | None]:
        """Insert a part of the spans that wait; with the last of them, make the other changes.

        Return the state of the trace then, None if it was not the expected one, and why the changes are refused.
        """
        trace_id, tenant, inserted = changes.trace_id, changes.tenant, changes.inserted
        state = read_state(connection, trace_id, tenant)
        if state != changes.state:
            return None, None
        if changes.reason is None:
            if inserted and not start:
                of_tenant = queries.waiting_of_tenant(connection, tenant)
                refusal = self.limits.waiting_refusal(inserted, changes.freed, state[1], of_tenant)
                if refusal is not None:
                    return None, refusal
            if inserted:
                queries.insert_fragments(connection, inserted[start : start + _PART_ROWS])
            if start + _PART_ROWS < len(inserted):
                return read_state(connection, trace_id, tenant), None
            if changes.hints:
                queries.update_hints(connection, changes.hints)
            if changes.observation is not None:
                queries.update_observation(connection, trace_id, *changes.observation)
            if changes.row is not None:
                resource = changes.resource
                resource_id = None if resource is None else queries.insert_resource(connection, resource)
                row = changes.row._replace(resource_id=resource_id)
                if not (changes.is_listed and queries.update_run(connection, row)):
                    queries.upsert_runs(connection, [row])
            if changes.incomplete is not None:
                queries.update_incomplete(connection, trace_id, *changes.incomplete)
        if changes.deleted:
            queries.delete_fragments(connection, changes.deleted[:_PART_ROWS])
        return state, None


def state_of(stored: StoredRow | None, waiting: Waiting | None) -> State:
    """Return the state of a trace from what was read of it."""
    return None if stored is None else stored.head, waiting


def read_state(connection: sqlite3.Connection, trace_id: bytes, tenant: str) -> State:
    """Return the state of a trace."""
    return queries.stored_head(connection, trace_id), queries.waiting(connection, trace_id, tenant)


def in_parts(rows: Sequence[T]) -> list[Sequence[T]]:
    """Return rows in parts that one transaction writes for one caller."""
    return [rows[start : start + _PART_ROWS] for start in range(0, len(rows), _PART_ROWS)]
