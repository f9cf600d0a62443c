"""Lists of runs that the index finds. Each run is compared in the store before it is listed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from heapq import nlargest
from itertools import islice
from time import monotonic
from typing import Final, NamedTuple

from runspan.backends.sqlite import queries
from runspan.backends.sqlite.index.facts_index import NO_RUN, NONE, Candidate, candidates
from runspan.codec.decode import RunSummary
from runspan.codec.facts import RunFacts, duration, run_facts, summary_members
from runspan.codec.full_text import Match, find_text
from runspan.contracts import Cursor, RunQuery, damaged_note, stopped_note
from runspan.errors import DocumentError, StoreError
from runspan.model.document import TERMINAL_RUN_STATUSES, Run
from runspan.model.timestamps import MAX_NS, MILLISECOND, rfc3339

_CHUNK: Final = 64
"""Runs that are read from the index, then from the store."""
_MAX_SECONDS: Final = 2.0
"""Seconds after which no further runs are searched for a text. At least one chunk of them is read for each page."""


class ListedRun(NamedTuple):
    """A run of the list, as a row of the store."""

    run_id: bytes
    value: int
    """What the list is sorted by."""
    summary: bytes
    checksum: bytes
    incomplete: bytes | None
    superseded: bytes | None
    digest: bytes

    @property
    def position(self) -> tuple[int, bytes]:
        """Where it is in the list."""
        return self.value, self.run_id


class _Row(NamedTuple):
    run_id: bytes
    time: int
    summary: bytes
    checksum: bytes
    incomplete: bytes | None
    superseded: bytes | None
    digest: bytes
    tenant: bytes
    workflow_id: bytes | None
    status: bytes | None
    ended: int
    revision: int
    observed_at: int | None
    document: bytes


_SELECT: Final = f"SELECT {', '.join(_Row._fields)} FROM runs WHERE trace_id = ?"  # noqa: S608 a constant


class IndexedSearch:
    """One list.

    read: opens a connection to the store. content: returns a document of the store, see ``SqliteStore``.
    on_damage: called for each damaged list item.
    """

    def __init__(
        self,
        query: RunQuery,
        read: Callable[[], AbstractContextManager[sqlite3.Connection]],
        content: Callable[[sqlite3.Connection, bytes, str, str], bytes],
        on_damage: Callable[[], None],
    ) -> None:
        self._query = query
        self._tenant = query.tenant.encode("utf-8", "surrogatepass")
        self._read = read
        self._content = content
        self._on_damage = on_damage
        self.notes: list[str] = []
        """Lines for ``Page.partial``."""
        self.changed: list[bytes] = []
        """Trace ids of runs that are in the index otherwise than in the store."""
        self.matches: dict[str, Match] = {}
        """Where runs contain the text of the query, by their id; of more runs than are in the list."""
        self.next_page: Cursor | None = None
        """Behind the runs that were searched before the time was up."""
        self._deadline = 0.0

    def runs(self, connection: sqlite3.Connection) -> Iterator[ListedRun]:
        """Yield the runs of the list in its order. connection: to the index."""
        self._deadline = monotonic() + _MAX_SECONDS
        listed = self._listed(candidates(connection, self._query, self._is_late))
        if self._query.order == "start":
            return self._unless_stopped(_by_start(listed, self._query.limit + 1))
        return (run for _, run in listed if run is not None)

    def _listed(self, candidates: Iterator[Candidate]) -> Iterator[tuple[int, ListedRun | None]]:
        """Yield the id of each candidate, with the run if it is in the list."""
        # Apart from each other, since the errors of the one file are not those of the other.
        while chunk := list(islice(candidates, min(_CHUNK, self._query.limit + 1))):
            with self._read() as connection:
                found = [(candidate.id, self._confirmed(connection, candidate)) for candidate in chunk]
            yield from found
            if self._query.text is not None and self._is_late() and self._may_stop_at(chunk[-1]):
                return

    def _is_late(self) -> bool:
        return monotonic() > self._deadline

    def _may_stop_at(self, candidate: Candidate) -> bool:
        """Stop at a candidate, unless the next page would not begin at an earlier time than this one did."""
        if self._query.order != "start":
            run_id = candidate.run_id.decode()
            self.next_page = Cursor(candidate.value, run_id, self._query.order)
            self.notes.append(stopped_note(_MAX_SECONDS, f"run {run_id}"))
            return True
        at = candidate.id * MILLISECOND  # later candidates have a lower id, which is at least their time
        before = self._query.before
        if at >= (MAX_NS if before is None else before[0]):
            return False
        self.next_page = Cursor.behind(at)
        self.notes.append(stopped_note(_MAX_SECONDS, rfc3339(at)))
        return True

    def _unless_stopped(self, runs: Iterator[ListedRun]) -> Iterator[ListedRun]:
        """Yield the runs up to where the search was stopped: others may be between those behind."""
        return (run for run in runs if self.next_page is None or run.value >= self.next_page.time)

    def _confirmed(self, connection: sqlite3.Connection, candidate: Candidate) -> ListedRun | None:
        if candidate.trace_id == NO_RUN:
            return None
        found = connection.execute(_SELECT, (candidate.trace_id,)).fetchone()
        row = None if found is None else _Row(*found)
        if row is None or row.tenant != self._tenant:
            self.changed.append(candidate.trace_id)
            return None
        if queries.summary_checksum(row.tenant, row.run_id, row.time, row.summary) != row.checksum:
            self._on_damage()
            self.notes.append(damaged_note(row.run_id.decode(errors="replace")))
            return None
        run_id, query = row.run_id.decode(), self._query
        if not query.matches(_summary(row)) or row.time < (query.since or 0):
            return None
        if query.text is not None and not self._contains(connection, row, run_id, query.text):
            return None
        facts = None
        if query.model is not None or query.step_type is not None or query.order == "cost":
            facts = self._facts(connection, row, run_id)
            if facts is None or not query.matches_labels(facts.model_names, facts.step_types):
                return None
        value = _value(query, row, facts)
        if row.time != candidate.time or (query.order != "start" and value != candidate.value):
            self.changed.append(candidate.trace_id)
            self.notes.append(f"run {run_id} is left out: it changed while the list was made")
            return None
        before = query.before
        if before is not None and (row.time, row.run_id) >= (before[0], before[1].encode("utf-8", "surrogatepass")):
            return None
        return ListedRun(row.run_id, value, *row[2:7])

    def _contains(self, connection: sqlite3.Connection, row: _Row, run_id: str, text: str) -> bool:
        run = self._run(connection, row, run_id)
        match = None if run is None else find_text(run, text)
        if match is not None:
            self.matches[run_id] = match
        return match is not None

    def _facts(self, connection: sqlite3.Connection, row: _Row, run_id: str) -> RunFacts | None:
        run = self._run(connection, row, run_id)
        return None if run is None else run_facts(run, row.time)

    def _run(self, connection: sqlite3.Connection, row: _Row, run_id: str) -> Run | None:
        try:
            return Run.from_json(self._content(connection, row.document, "run", f"run {run_id}"))
        except (StoreError, DocumentError):
            self.notes.append(damaged_document_note(run_id))
            return None


def damaged_document_note(run_id: str) -> str:
    """Return the line about a run of which it is not known whether it is in the list."""
    return f"run {run_id} is left out: its document is damaged"


def _summary(row: _Row) -> RunSummary:
    """Return what ``RunQuery.matches`` compares."""
    status = None if row.status is None else row.status.decode()
    return RunSummary(
        run_id=row.run_id.decode(),
        tenant=row.tenant.decode(),
        revision=row.revision if row.observed_at is None else row.observed_at,
        digest=row.digest.hex(),
        workflow_id=None if row.workflow_id is None else row.workflow_id.decode(),
        status=status,
        time=row.time,
        summary=row.summary,
        ended=row.ended if status in TERMINAL_RUN_STATUSES else None,
    )


def _value(query: RunQuery, row: _Row, facts: RunFacts | None) -> int:
    """Return what the list is sorted by."""
    if query.order == "start":
        return row.time
    if query.order == "duration":
        taken = duration(summary_members(row.summary))
        return NONE if taken is None else taken
    return NONE if facts is None or not facts.models else facts.cost


def _by_start(listed: Iterator[tuple[int, ListedRun | None]], limit: int) -> Iterator[ListedRun]:
    """Yield the first runs by descending time and run id. They come by descending id, which is at least their time."""
    waiting: list[ListedRun] = []
    newest = 0
    for row_id, run in listed:
        if waiting and newest > row_id:  # the others are older than the newest that waits
            ready = [found for found in waiting if found.value // MILLISECOND > row_id]
            yield from _last(ready, limit)
            waiting = [found for found in waiting if found.value // MILLISECOND <= row_id]
            newest = max((found.value // MILLISECOND for found in waiting), default=0)
        if run is not None:
            waiting.append(run)
            newest = max(newest, run.value // MILLISECOND)
            if len(waiting) > 2 * limit:
                waiting = _last(waiting, limit)
    yield from _last(waiting, limit)


def _last(runs: list[ListedRun], limit: int) -> list[ListedRun]:
    return nlargest(limit, runs, key=lambda run: run.position)
