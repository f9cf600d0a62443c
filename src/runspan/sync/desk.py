"""``Desk``: what the parts of a sync share: settings, the checkpoint, the runs in somebody's hands, and the counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from runspan.delivery import DeadLetters
from runspan.sync.checkpoint import Checkpoint
from runspan.sync.entry import AT_ONCE, Entry, State
from runspan.sync.plan import HOUR, MINUTE, Rhythm, retry_at
from runspan.sync.report import MAX_NAMED, Counts
from runspan.sync.sweep import Filter
from runspan.times import SECOND

GONE_AFTER: Final = 3
"""Answers in a row that a listed run is not there: the list and the documents may come from two copies."""


@dataclass(frozen=True, slots=True)
class Settings:
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

    filters: tuple[Filter, ...] = (Filter(),)
    since: int | None = None
    follow: bool = False
    poll: int = 15 * SECOND
    rescan: int = HOUR
    overlap: int = 15 * MINUTE
    recheck: int = 0
    resend: int = 0
    rhythm: Rhythm = field(default_factory=Rhythm)
    retention: int | None = None
    concurrency: int = 8
    give_up: float = 300.0
    grace: float = 10.0


@dataclass(slots=True)
class Desk:
    """clock: nanoseconds since 1970. letters: keeps documents that are refused. note: a line for whoever looks on.

    busy: the entries of runs that are fetched, wait to be sent, or are sent; what is heard of such a run meanwhile is
    written on its entry.
    """

    settings: Settings
    checkpoint: Checkpoint
    clock: Callable[[], int]
    letters: DeadLetters
    note: Callable[[str], None]
    counts: Counts = field(default_factory=Counts)
    busy: dict[str, Entry] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def put_back(self, entry: Entry) -> None:
        """Writes down what became of a run, and lets go of it."""
        if entry.again and entry.own != entry.listed:
            entry.due = AT_ONCE
        entry.again = False
        self.checkpoint.save(entry)
        del self.busy[entry.run_id]

    def refuse(self, entry: Entry, reason: str, text: bytes) -> None:
        """A run that will not be taken as it is: told, kept, and not asked for again before it changes."""
        self.letters.keep_text(text)
        entry.state, entry.due, entry.reason, entry.failures = State.REFUSED, None, reason, 0
        if len(self.refused) < MAX_NAMED:
            self.refused.append((entry.run_id, reason))
            if self.settings.follow:  # else the report comes soon, and says so
                self.note(f"refused: run {entry.run_id}: {reason}")
        self.put_back(entry)

    def postpone(self, entry: Entry, reason: str) -> None:
        """A run that could not be fetched, this time."""
        entry.failures += 1
        entry.reason = reason
        entry.due = retry_at(self.clock(), entry.failures)
        self.put_back(entry)

    def missing(self, entry: Entry) -> None:
        """A run that was listed and is not there."""
        if entry.failures + 1 < GONE_AFTER:
            self.postpone(entry, "the platform lists it and does not have it")
            return
        self.counts.vanished += 1
        self.counts.vanished_open += entry.state is State.OPEN
        entry.state, entry.due, entry.failures, entry.changed_at = State.GONE, None, 0, self.clock()
        self.put_back(entry)
