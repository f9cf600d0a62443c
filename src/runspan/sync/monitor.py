"""``Watch``: tells how a sync stands, what keeps it waiting, and whether retention is faster than it is.

A sync's progress as health tells it; no I/O.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from runspan.errors import RateLimited
from runspan.platform_api import PlatformClient
from runspan.sync.checkpoint import TrackState
from runspan.sync.context import SyncContext
from runspan.sync.list_crawler import ListCrawler
from runspan.sync.policy import MINUTE, at_risk_of_retention
from runspan.sync.report import MAX_NAMED, SyncProgress, SyncReport
from runspan.sync.send_queue import SendQueue
from runspan.telemetry import Samples
from runspan.telemetry.instruments import (
    BACKLOG,
    FETCHED,
    LAG,
    OLDEST_UNFINISHED,
    POLLED,
    REFUSED,
    RETENTION_MARGIN,
    SYNC_REQUESTS,
    SYNC_RETRIED,
    UNFINISHED,
)


def sync_samples(progress: SyncProgress, retention: int | None) -> Samples:
    """What is not known is left out: an age of 0 would say that all is well.

    retention: how long the platform keeps a run, nanoseconds, None: not told.
    """
    requests, retries, _ = progress.requests
    told = {
        REFUSED: progress.counts.refused,
        FETCHED: progress.counts.fetched,
        SYNC_REQUESTS: requests,
        SYNC_RETRIED: retries,
        BACKLOG: progress.backlog,
        LAG: progress.behind,
        UNFINISHED: progress.unfinished,
        OLDEST_UNFINISHED: progress.oldest_unfinished,
    }
    if progress.polled is not None:
        told[POLLED] = progress.polled
    if retention is not None:
        told[RETENTION_MARGIN] = None if progress.behind is None else progress.behind + retention
    return told


_QUIET: Final = 2.0
"""Seconds without an answer before that is worth a word: single failures are asked again and forgotten."""

_RATE_EVERY: Final = 30.0
_RATE_OVER: Final = 300.0
_FIRST_RATE: Final = 5.0
_TELL_AGAIN: Final = 60.0
_SPANS_OF_TIME: Final = 15 * MINUTE


class SyncMonitor:
    """Looks at the parts of a sync, and changes nothing. refused_before: runs that an earlier sync left refused.
    latest: how far it was when last looked at, for readers on other threads."""

    def __init__(
        self,
        desk: SyncContext,
        platform: PlatformClient,
        sends: SendQueue,
        lists: ListCrawler,
        on_progress: Callable[[SyncProgress], None],
    ) -> None:
        self.refused_before = 0
        self._desk = desk
        self._platform = platform
        self._sends = sends
        self._lists = lists
        self._on_progress = on_progress
        self._began = time.monotonic()
        self._rate_from = (self._began, 0)
        self._rate_at = self._began + _FIRST_RATE
        self._threatened = 0
        self._told: dict[str, tuple[str, float]] = {}
        self.latest = self.progress()

    def update(self) -> RateLimited | None:
        """Tells what there is to tell. An error when the platform asks to wait longer than the sync may take."""
        self.latest = self.progress()
        self._on_progress(self.latest)
        platform, settings = self._platform, self._desk.settings
        if platform.last_error and platform.unanswered_for > _QUIET:
            self.log("platform", f"{platform.base}: {platform.last_error}; trying again")
        delivery = self._sends.delivery
        if delivery is not None and delivery.last_error and not self._sends.stopped:
            self.log("receiver", f"{delivery.endpoint}: {delivery.last_error}; trying again")
        if time.monotonic() >= self._rate_at:
            self._rate_at = time.monotonic() + _RATE_EVERY
            self._check_retention()
        held = platform.rate_limiter.paused_for
        if held <= settings.give_up or settings.follow:
            return None
        hint = "sync again then; it goes on from here"
        return RateLimited(f"{platform.base} asks to wait {held:.0f} s", retry_after=held, hint=hint)

    def progress(self) -> SyncProgress:
        """How far it is."""
        checkpoint, counts = self._desk.checkpoint, self._desk.checkpoint.counts
        return SyncProgress(
            counts=self._desk.counts,
            requests=self._platform.requests,
            known=counts.total(),
            backlog=counts[TrackState.NEW],
            unfinished=counts[TrackState.OPEN],
            behind=checkpoint.oldest(TrackState.NEW),
            oldest_unfinished=checkpoint.oldest(TrackState.OPEN),
            polled=self._lists.polled,
            threatened=self._threatened,
            walking=self._lists.walking,
            in_flight=self._sends.in_flight,
        )

    def report(self, stopped: str) -> SyncReport:
        """How it stands. stopped: why it ended early, or ""."""
        desk, checkpoint = self._desk, self._desk.checkpoint
        requests, retries, limited = self._platform.requests
        failing = checkpoint.failing_count()
        now = {run_id for run_id, _ in desk.refused}
        refused = [] if not self.refused_before else checkpoint.reasons(TrackState.REFUSED, MAX_NAMED + len(now))
        return SyncReport(
            counts=desk.counts,
            seconds=time.monotonic() - self._began,
            requests=requests,
            retries=retries,
            limited=limited,
            backlog=checkpoint.counts[TrackState.NEW],
            unfinished=checkpoint.counts[TrackState.OPEN],
            refused_before=min(self.refused_before, checkpoint.counts[TrackState.REFUSED]),
            threatened=self._threatened,
            refused_now=tuple(desk.refused),
            rejected_now=tuple(desk.rejected),
            refused_earlier=tuple([each for each in refused if each[0] not in now][:MAX_NAMED]),
            failing=checkpoint.failing(MAX_NAMED) if failing else (),
            failing_count=failing,
            stopped=stopped,
        )

    def log(self, what: str, words: str) -> None:
        """A line for whoever looks on: at once when it is another, and now and then while it stays."""
        before, at = self._told.get(what, ("", float("-inf")))
        now = time.monotonic()
        if (words != before and now - at > _QUIET) or now - at > _TELL_AGAIN:
            self._told[what] = (words, now)
            self._desk.note(words)

    def _check_retention(self) -> None:
        """Warns when the platform deletes runs before their turn comes."""
        retention = self._desk.settings.retention
        if retention is None or self._lists.walking:
            return
        since, fetched = self._rate_from
        seconds = time.monotonic() - since
        rate = max(self._desk.counts.fetched - fetched, 1) / seconds
        if seconds > _RATE_OVER:
            self._rate_from = (time.monotonic(), self._desk.counts.fetched)
        backlog = self._desk.checkpoint.backlog_by_time(_SPANS_OF_TIME)
        self._threatened = at_risk_of_retention(backlog, per_second=rate, retention=retention, now=self._desk.clock())
        if self._threatened:
            self.log(
                "retention",
                f"warning: at {rate:,.1f} runs a second, {self._threatened:,} runs of the backlog will be past the "
                "platform's retention before their turn comes; raise --requests-per-minute, or narrow the sync with "
                "--workflow",
            )
