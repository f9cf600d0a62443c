"""What the parts of a sync share: its config, its counts, and the runs that are in progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from runspan.delivery import DeadLetters
from runspan.errors import item_error
from runspan.model.timestamps import SECOND
from runspan.sync.checkpoint import Checkpoint, TrackedRun, TrackState

MINUTE: Final = 60 * SECOND
HOUR: Final = 3600 * SECOND
DAY: Final = 24 * HOUR

MAX_FAILURES: Final = 3
"""Failed fetches in a row, each with retries of its own, before a run is left to the next sync."""

GONE_AFTER: Final = 3
"""404 responses in a row before a listed run counts as gone: lists and documents may come from two replicas. A page of
the list must have been read since the first of them, as a proof that the platform still knows its runs."""

MAX_PAUSE: Final = 10 * MINUTE
"""Between two fetches of a run. A run that is due later was scheduled by a clock that was ahead."""

MAX_NAMED: Final = 20
"""How many runs of a kind a report names. All are counted."""


@dataclass(frozen=True, slots=True)
class ListFilter:
    """What the platform is asked to list; None means any."""

    workflow_id: str | None = None
    status: str | None = None

    @property
    def name(self) -> str:
        """Its key in the checkpoint."""
        return f"{self.status or ''}/{self.workflow_id or ''}"


@dataclass(frozen=True, slots=True)
class SyncConfig:
    """What a sync does. Durations are nanoseconds unless stated otherwise."""

    filters: tuple[ListFilter, ...] = (ListFilter(),)
    """The lists to read, at least one."""
    since: int | None = None
    """How far back the first scan goes, and later full scans; None: without limit."""
    follow: bool = False
    """Continue until stopped. Otherwise the sync ends when everything is sent."""
    poll: int = 15 * SECOND
    """The interval between scans of the top of the list, and between fetches of an unfinished run."""
    rescan: int | None = None
    """The interval between full scans; None: an hour with ``follow``, otherwise 0."""
    overlap: int = 15 * MINUTE
    """How far below the newest tracked run a scan of the top goes."""
    recheck: int = 0
    """With each full scan, fetch ended runs that started this long ago or later again, for changes that lists do not
    show; 0: none."""
    resend: int = 0
    """Send acknowledged runs that started this long ago or later once more; 0: none."""
    heartbeat: int = 5 * MINUTE
    """Send an unchanged snapshot again after this time, as a sign that the run is followed; 0: never."""
    retry_refused: bool = False
    """Fetch runs that an earlier sync refused once more."""
    retention: int | None = None
    """How long the platform keeps a run; None: unknown."""
    concurrency: int = 8
    """Requests to the platform in flight."""
    retry_max_time: float = 300.0
    """Seconds without a response of the platform after which a sync that does not follow ends."""
    grace: float = 10.0
    """Seconds that requests in flight to the receiver have when the sync is stopped."""


@dataclass(slots=True)
class SyncCounts:
    """What happened since the start of the sync."""

    listed: int = 0
    """Runs that were listed for the first time."""
    fetched: int = 0
    """Documents, including those of one run that were fetched again."""
    sent: int = 0
    """Runs that had ended, and that the receiver accepted."""
    snapshots: int = 0
    revisions: int = 0
    """Changes of runs that had ended before."""
    unchanged: int = 0
    """Documents that the receiver has already."""
    refused: int = 0
    """Documents that cannot be carried."""
    rejected: int = 0
    """Documents that the receiver rejected."""
    gone: int = 0
    """Runs that were listed, and then not found."""
    gone_unfinished: int = 0
    """Those of them of which the receiver has a snapshot."""
    unusable: int = 0
    """List items without a usable id."""
    scans: int = 0
    pages: int = 0


@dataclass(slots=True)
class SyncTotals:
    """What a sync reports, however often it began again."""

    counts: SyncCounts = field(default_factory=SyncCounts)
    requests: tuple[int, int, int] = (0, 0, 0)
    """See ``PlatformClient.requests``; of the clients before."""
    refused: list[tuple[str, str]] = field(default_factory=list)
    """(run id, reason) of the first refused or rejected documents."""
    rejected: list[tuple[str, str]] = field(default_factory=list)
    """Those of them that the receiver rejected."""
    refused_before: int | None = None
    """Runs that an earlier sync refused; None until the state file was read."""
    started: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class SyncContext:
    """The state of a sync, used by the thread of ``SyncEngine.run``."""

    config: SyncConfig
    checkpoint: Checkpoint
    clock: Callable[[], int]
    """Returns nanoseconds since 1970."""
    dead_letters: DeadLetters
    log: Callable[[str], None]
    """Shows a line to the user."""
    monotonic: Callable[[], int] = time.monotonic_ns
    """Returns nanoseconds. Pauses use it, because they would last for hours if ``clock`` was set back."""
    totals: SyncTotals = field(default_factory=SyncTotals)
    in_progress: dict[str, TrackedRun] = field(default_factory=dict)
    """The runs that are fetched, wait to be sent, or are sent."""
    _not_found: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Run id → 404 responses in a row, and the number of pages that had been read at the first."""

    @property
    def counts(self) -> SyncCounts:
        """What happened since the start of the sync."""
        return self.totals.counts

    def save(self, run: TrackedRun) -> None:
        """Store a run that was in progress."""
        self._not_found.pop(run.run_id, None)
        self.checkpoint.save(run)
        del self.in_progress[run.run_id]

    def refuse(self, run: TrackedRun, reason: str, text: bytes, *, rejected: bool = False) -> None:
        """Write a document to the dead letters, and do not fetch the run again before it changes.

        Only a document can be refused, or rejected by the receiver. A failed fetch does not mean that the next one
        fails too.
        """
        self.dead_letters.write_text(text)
        run.state, run.due, run.reason, run.failures = TrackState.REFUSED, None, reason, 0
        self.counts.rejected += rejected
        self.counts.refused += not rejected
        if len(self.totals.refused) < MAX_NAMED:
            self.totals.refused.append((run.run_id, reason))
            if rejected:
                self.totals.rejected.append((run.run_id, reason))
            if self.config.follow:  # otherwise the report names it soon
                self.log(f"refused: run {run.run_id}: {reason}")
        self.save(run)

    def retry_later(self, run: TrackedRun, reason: str) -> None:
        """Schedule a run whose fetch failed."""
        run.failures += 1
        run.reason = reason
        run.due = retry_at(self.clock(), run.failures)
        self.save(run)

    def fail(self, run: TrackedRun, error: Exception) -> None:
        """Schedule a run whose document could not be handled, for a reason that no code expected."""
        reason = str(item_error(error, f"run {run.run_id}"))
        self.log(f"{reason}; trying again later")
        self.retry_later(run, reason)

    def mark_missing(self, run: TrackedRun) -> None:
        """Schedule a listed run that was not found, or count it as gone."""
        pages_now, _ = self.checkpoint.pages
        responses, pages = self._not_found.get(run.run_id, (0, pages_now))
        responses += 1
        list_works = pages < pages_now
        if responses < GONE_AFTER or not list_works:
            run.failures = min(run.failures, GONE_AFTER - 2)  # so that it is not left to the next sync
            self.retry_later(run, "the platform lists it and does not have it")
            self._not_found[run.run_id] = responses, pages
            if responses + 1 >= GONE_AFTER and not list_works:
                self.checkpoint.want_page()
            return
        self.counts.gone += 1
        self.counts.gone_unfinished += run.state is TrackState.OPEN
        run.state, run.due, run.failures, run.changed_at = TrackState.GONE, None, 0, self.clock()
        self.save(run)


def retry_at(now: int, failures: int) -> int:
    """Return when to retry after this many failures in a row. The pause doubles up to ``MAX_PAUSE``."""
    return now + min(SECOND << min(failures - 1, 20), MAX_PAUSE)
