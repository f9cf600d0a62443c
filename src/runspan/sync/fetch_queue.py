"""``Fetches``: which runs are fetched next, and what becomes of each answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from runspan.contracts import Document
from runspan.errors import DocumentError, NotFound, QueryError, RunspanError
from runspan.http.client import ResponseTooLarge
from runspan.model.document import sort_time
from runspan.model.run import Run
from runspan.platform_api import fingerprint_of_summary
from runspan.sync.checkpoint import AT_ONCE, TrackedRun, TrackState
from runspan.sync.context import SyncContext
from runspan.sync.policy import GIVE_UP_AFTER, PlannedSend, plan_send, refresh_at

REFILL: Final = 200
"""Runs that are taken into a lane at once."""

_LOOK_AGAIN: Final = 250_000_000
"""Nanoseconds after which an empty lane is looked at again, unless something is known to have come."""


class FetchQueue:
    """Two lanes: the backlog, the oldest run first, since the platform deletes it first; and runs that are known and
    to be looked at again, those first that wait the longest. While both have runs, each gets half of the requests.

    send: takes a document that the receiver is to have.
    """

    def __init__(self, desk: SyncContext, send: Callable[[TrackedRun, PlannedSend], None]) -> None:
        self._desk = desk
        self._send = send
        self._backlog: deque[TrackedRun] = deque()
        self._known: deque[TrackedRun] = deque()
        self._empty_until = [0, 0]
        self._turn = 0
        self.asked = 0
        """Requests under way."""

    def wake(self) -> None:
        """Something was put into the checkpoint that may be due."""
        self._empty_until = [0, 0]

    def next(self, now: int, *, backlog: bool) -> TrackedRun | None:
        """The run to fetch next, None when none is due. backlog: whether that lane is open."""
        lanes = [0, 1] if self._turn else [1, 0]
        for lane in lanes:
            if lane == 0 and not backlog:
                continue
            waiting = self._refilled(lane, now)
            if waiting:
                self._turn = 1 - lane
                self.asked += 1
                return waiting.popleft()
        return None

    def release(self) -> None:
        """Lets go of what waits in the lanes; the checkpoint has it."""
        for waiting in (self._backlog, self._known):
            for entry in waiting:
                del self._desk.busy[entry.run_id]
            waiting.clear()

    @property
    def waiting(self) -> int:
        return len(self._backlog) + len(self._known)

    def left(self, now: int) -> bool:
        """Whether a sync that does not follow has anything left to fetch, now or after a pause."""
        self.wake()
        if self.waiting or self._refilled(0, now) or self._refilled(1, now):
            return True
        return self._desk.checkpoint.next_retry(GIVE_UP_AFTER) is not None

    def take(self, entry: TrackedRun, run: Run | DocumentError, got: Document, seen: int) -> None:
        """A document came. seen: when, nanoseconds since 1970."""
        self.asked -= 1
        desk = self._desk
        desk.counts.fetched += 1
        if got.incomplete and entry.failures + 1 < GIVE_UP_AFTER:
            # A server over Tempo or Jaeger answers an older revision while the newest is on its way.
            desk.retry_later(entry, f"an older revision, because the newest is incomplete: {'; '.join(got.incomplete)}")
            return
        entry.failures = 0
        if isinstance(run, DocumentError):
            desk.counts.refused += 1
            desk.refuse(entry, str(run), got.text)
            return
        entry.own = fingerprint_of_summary(run.summary())
        entry.time = sort_time(run.envelope) or entry.time
        decision = plan_send(entry, run, seen, desk.settings.rhythm)
        if decision is None:
            desk.counts.unchanged += 1
            entry.state, entry.reason = TrackState.ENDED if run.finished else TrackState.OPEN, ""
            entry.due = refresh_at(entry, run, seen, desk.settings.rhythm)
            desk.save(entry)
            return
        if decision.digest != entry.sent:
            entry.changed_at = seen
        self._send(entry, decision)

    def fail(self, entry: TrackedRun, error: RunspanError, *, everything: bool) -> None:
        """No document came. everything: whether the platform answers nothing at all, which says nothing of this run.

        What a gateway says in its trouble is not the platform's word on a run, so it is asked for again, and told as
        failing until it comes.
        """
        self.asked -= 1
        desk = self._desk
        if isinstance(error, NotFound):
            desk.mark_missing(entry)
        elif isinstance(error, ResponseTooLarge) and entry.failures + 1 >= GIVE_UP_AFTER:
            desk.counts.refused += 1
            desk.refuse(entry, str(error), b"")
        elif everything and not isinstance(error, QueryError):
            desk.save(entry)
            self.wake()
        else:
            desk.retry_later(entry, str(error))

    def _refilled(self, lane: int, now: int) -> deque[TrackedRun]:
        waiting = self._known if lane else self._backlog
        desk = self._desk
        if waiting or desk.ticks() < self._empty_until[lane]:
            return waiting
        ask = desk.checkpoint.due_runs if lane else desk.checkpoint.new_runs
        until = now if desk.settings.follow else AT_ONCE
        patience = 1_000_000 if desk.settings.follow else GIVE_UP_AFTER
        for entry in ask(REFILL + len(desk.busy), until=until, again=now, patience=patience):
            if entry.run_id not in desk.busy:
                desk.busy[entry.run_id] = entry
                waiting.append(entry)
        if not waiting:
            self._empty_until[lane] = desk.ticks() + _LOOK_AGAIN
        return waiting
