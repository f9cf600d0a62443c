"""``Desk``: what the parts of a sync share: settings, the checkpoint, the runs in somebody's hands, and the counts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from runspan.delivery import DeadLetters
from runspan.model.timestamps import SECOND
from runspan.sync.checkpoint import AT_ONCE, Checkpoint, TrackedRun, TrackState
from runspan.sync.list_scan import ListFilter
from runspan.sync.policy import HOUR, MINUTE, RefreshPolicy, retry_at
from runspan.sync.report import MAX_NAMED, SyncCounts

GONE_AFTER: Final = 3
"""Answers in a row that a listed run is not there: the list and the documents may come from two copies. A page of the
list that was read since the first of them says that the platform still knows its runs."""


@dataclass(frozen=True, slots=True)
class SyncConfig:
    """What a sync does. Times are nanoseconds, unless said otherwise.

    filters: which lists are read, at least one. since: how far back the first walk goes, and later ones that look for
    changes; None: all the way. follow: go on until stopped; else once through.
    poll: from the end of a look at the top of the list to the next one. rescan: likewise for walks all the way down.
    overlap: how far below the newest run that is known a look at the top goes. recheck: runs that started in this last
    while are fetched again with each walk all the way, for changes that lists do not show; 0: none.
    resend: runs that started in this last while are sent once more, whole, though they were acknowledged; 0: none.
    retention: how long the platform keeps a run, None: not told. concurrency: requests to the platform in flight.
    give_up: seconds without an answer of the platform after which a sync that does not follow ends.
    grace: seconds that documents under way to the receiver get when the sync is stopped.
    """

    filters: tuple[ListFilter, ...] = (ListFilter(),)
    since: int | None = None
    follow: bool = False
    poll: int = 15 * SECOND
    rescan: int = HOUR
    overlap: int = 15 * MINUTE
    recheck: int = 0
    resend: int = 0
    rhythm: RefreshPolicy = field(default_factory=RefreshPolicy)
    retention: int | None = None
    concurrency: int = 8
    give_up: float = 300.0
    grace: float = 10.0


@dataclass(slots=True)
class SyncContext:
    """clock: nanoseconds since 1970. letters: keeps documents that are refused. note: a line for whoever looks on.

    busy: the entries of runs that are fetched, wait to be sent, or are sent; what is heard of such a run meanwhile is
    written on its entry. refused: the first (run id, reason) of documents that are not taken as they are; rejected:
    those of them that the receiver does not take. doubt: whether a page of the list is to be read, because listed runs
    are missing.
    ticks: nanoseconds that nobody sets: all pauses go by them, since a clock that is set back would make one of hours.
    """

    settings: SyncConfig
    checkpoint: Checkpoint
    clock: Callable[[], int]
    letters: DeadLetters
    note: Callable[[str], None]
    counts: SyncCounts = field(default_factory=SyncCounts)
    busy: dict[str, TrackedRun] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    doubt: bool = False
    ticks: Callable[[], int] = time.monotonic_ns
    _missing: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Answers in a row that a run is not there, and how many pages had been read at the first of them."""

    def save(self, entry: TrackedRun) -> None:
        """Writes down what became of a run, and lets go of it."""
        self._missing.pop(entry.run_id, None)
        if entry.again and entry.own != entry.listed:
            entry.due = AT_ONCE
        entry.again = False
        self.checkpoint.save(entry)
        del self.busy[entry.run_id]

    def refuse(self, entry: TrackedRun, reason: str, text: bytes, *, rejected: bool = False) -> None:
        """A run that will not be taken as it is: told, kept, and not asked for again before it changes.

        Only a document that came can be refused, or rejected by the receiver. No answer of the platform, or of what
        stands before it, says that its next one will be the same.
        """
        self.letters.write_text(text)
        entry.state, entry.due, entry.reason, entry.failures = TrackState.REFUSED, None, reason, 0
        if len(self.refused) < MAX_NAMED:
            self.refused.append((entry.run_id, reason))
            if rejected:
                self.rejected.append((entry.run_id, reason))
            if self.settings.follow:  # else the report comes soon, and says so
                self.note(f"refused: run {entry.run_id}: {reason}")
        self.save(entry)

    def retry_later(self, entry: TrackedRun, reason: str) -> None:
        """A run that could not be fetched, this time."""
        entry.failures += 1
        entry.reason = reason
        entry.due = retry_at(self.clock(), entry.failures)
        self.save(entry)

    def mark_missing(self, entry: TrackedRun) -> None:
        """A run that was listed and is not there."""
        answers, pages = self._missing.get(entry.run_id, (0, self.counts.pages))
        answers += 1
        proved = pages < self.counts.pages
        if answers < GONE_AFTER or not proved:
            entry.failures = min(entry.failures, GONE_AFTER - 2)  # it is looked into, and not left for later
            self.retry_later(entry, "the platform lists it and does not have it")
            self._missing[entry.run_id] = answers, pages
            self.doubt = self.doubt or (answers + 1 >= GONE_AFTER and not proved)
            return
        self.counts.vanished += 1
        self.counts.vanished_open += entry.state is TrackState.OPEN
        entry.state, entry.due, entry.failures, entry.changed_at = TrackState.GONE, None, 0, self.clock()
        self.save(entry)
