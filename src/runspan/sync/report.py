"""The progress and the report of a sync, its metrics, and what it logs while it waits or falls behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from runspan.delivery.report import DeliveryReport, plural, reason_lines
from runspan.errors import RateLimited
from runspan.model.timestamps import SECOND
from runspan.platform_api.client import PlatformClient
from runspan.sync.checkpoint import TrackState
from runspan.sync.context import MAX_NAMED, MINUTE, SyncContext, SyncCounts
from runspan.sync.list_crawler import ListCrawler
from runspan.sync.queues import SendQueue
from runspan.telemetry import Instrument, Samples, registry

_QUIET: Final = 2.0
"""Seconds without a response that are not logged, because single failures are retried."""

_REPEAT_AFTER: Final = 60.0
"""Seconds after which an unchanged message is logged again."""

_COUNT_EVERY: Final = 5.0
"""Seconds after which the runs that other workers have changed are counted again."""

_RATE_EVERY: Final = 30.0
_RATE_OVER: Final = 300.0
_FIRST_RATE: Final = 5.0
_RETENTION_INTERVAL: Final = 15 * MINUTE


@dataclass(frozen=True, slots=True)
class SyncProgress:
    """The progress of a sync. Times are nanoseconds since 1970."""

    counts: SyncCounts
    """Shared with the sync; not to be changed."""
    requests: tuple[int, int, int]
    """See ``PlatformClient.requests``."""
    tracked: int
    """Runs in the checkpoint."""
    backlog: int
    """Runs that the receiver has not acknowledged yet."""
    unfinished: int
    """Runs of which the receiver has a snapshot."""
    oldest_backlog: int | None
    """The start of the oldest run of the backlog."""
    oldest_unfinished: int | None
    polled_at: int | None
    """When all lists had been read."""
    first_scan: bool
    """Whether a first full scan is in progress, so that the backlog is not complete yet."""


def sync_samples(progress: SyncProgress, retention: int | None) -> Samples:
    """Return the metrics of a sync. Unknown values are omitted, because an age of 0 would mean that all is well.

    - ``retention``: how long the platform keeps a run, in nanoseconds; None: unknown.
    """
    requests, retries, _ = progress.requests
    oldest = progress.oldest_backlog
    samples: dict[Instrument, float | None] = {
        registry.REFUSED: progress.counts.refused,
        registry.FETCHED: progress.counts.fetched,
        registry.SYNC_REQUESTS: requests,
        registry.SYNC_RETRIED: retries,
        registry.BACKLOG: progress.backlog,
        registry.LAG: oldest,
        registry.UNFINISHED: progress.unfinished,
        registry.OLDEST_UNFINISHED: progress.oldest_unfinished,
    }
    if progress.polled_at is not None:
        samples[registry.POLLED] = progress.polled_at
    if retention is not None:
        samples[registry.RETENTION_MARGIN] = None if oldest is None else oldest + retention
    return samples


@dataclass(frozen=True, slots=True)
class SyncReport(DeliveryReport):
    """The result of a sync so far."""

    counts: SyncCounts
    seconds: float
    requests: int
    """Attempts, including ``retries``."""
    retries: int
    rate_limited: int
    """Responses that asked to wait."""
    backlog: int
    unfinished: int
    refused_before: int
    """Runs that an earlier sync refused, and that are still refused."""
    at_risk: int = 0
    refused_now: Sequence[tuple[str, str]] = ()
    """(run id, reason) of the first documents that were refused or rejected."""
    rejected_now: Sequence[tuple[str, str]] = ()
    """Those of them that the receiver rejected."""
    refused_earlier: Sequence[tuple[str, str]] = ()
    failing: Sequence[tuple[str, str]] = ()
    """(run id, reason) of the first runs that could not be fetched and are retried by the next sync."""
    failing_count: int = 0
    stopped: str = ""
    """Why the sync ended early, or ""."""

    @property
    def complete(self) -> bool:
        """Whether the receiver has all runs that the platform listed, as they were when they were fetched."""
        counts = self.counts
        refused = counts.refused + counts.rejected + self.refused_before
        return not (refused or counts.unusable or self.failing_count or self.backlog or self.stopped)

    def summary_lines(self) -> list[str]:
        """Return the report for people; the first two lines are always there."""
        counts = self.counts
        per_second = counts.fetched / self.seconds if self.seconds > 0 else 0.0
        lines = [
            f"{plural(counts.sent, 'run')} sent, {plural(counts.snapshots, 'snapshot')} of unfinished runs, "
            f"{plural(counts.revisions, 'revision')}, {counts.unchanged:,} unchanged",
            f"{plural(counts.fetched, 'document')} fetched in {self.seconds:,.1f} s ({per_second:,.1f} a second), "
            f"{plural(self.requests, 'request')} to the platform ({self.retries:,} retried, "
            f"{self.rate_limited:,} rate-limited)",
        ]
        if counts.gone:
            lines.append(f"{plural(counts.gone, 'run')} listed, and gone before they could be fetched")
        if counts.gone_unfinished:
            lines.append(f"{plural(counts.gone_unfinished, 'run')} of them unfinished: their last snapshot stays")
        if self.refused_now:
            lines.append(f"{plural(counts.refused + counts.rejected, 'run')} refused:")
            lines += reason_lines(self.refused_now, counts.refused + counts.rejected, MAX_NAMED)
        if counts.unusable:
            lines.append(f"{plural(counts.unusable, 'list item')} without a usable id")
        if self.failing_count:
            lines.append(f"{plural(self.failing_count, 'run')} could not be fetched; the next sync tries again:")
            lines += reason_lines(self.failing, self.failing_count, MAX_NAMED)
        if self.refused_before:
            again = "they are fetched again when they change, or with --retry-refused"
            lines.append(f"{plural(self.refused_before, 'run')} refused by an earlier sync; {again}:")
            lines += reason_lines(self.refused_earlier, self.refused_before, MAX_NAMED)
        if self.at_risk:
            lines.append(f"warning: the platform will delete {plural(self.at_risk, 'run')} before they are fetched")
        if self.stopped:
            lines.append(f"stopped: {self.stopped}")
        if self.backlog:
            lines.append(f"{plural(self.backlog, 'run')} still to fetch; the next sync resumes there")
        if self.unfinished:
            again = "they are fetched again with --follow, or by the next sync"
            lines.append(f"{plural(self.unfinished, 'run')} unfinished; {again}")
        return lines + self.kept_lines()


class SyncMonitor:
    """Observes the parts of a sync without changing them."""

    def __init__(
        self,
        context: SyncContext,
        platform: PlatformClient,
        sends: SendQueue,
        lists: ListCrawler,
        on_progress: Callable[[SyncProgress], None],
    ) -> None:
        self._context = context
        self._platform = platform
        self._sends = sends
        self._lists = lists
        self._on_progress = on_progress
        self._requests_before = context.totals.requests
        now = time.monotonic()
        self._rate_from = (now, self._left_backlog())
        self._rate_at = now + _FIRST_RATE
        self._at_risk = 0
        """Runs of the backlog that the platform will probably delete before they are fetched."""
        self._logged: dict[str, tuple[str, float]] = {}
        """Topic → the last message and when it was logged."""
        self.latest = self._progress()
        """The progress at the last update, for other threads."""

    def update(self) -> RateLimited | None:
        """Log what there is to log. Return an error if the platform asks to wait longer than the sync may take."""
        self.latest = self._progress()
        self._on_progress(self.latest)
        platform, config = self._platform, self._context.config
        if platform.last_error and platform.unanswered_for > _QUIET:
            self.log("platform", f"{platform.base}: {platform.last_error}; trying again")
        exporter = self._sends.exporter
        if exporter is not None and exporter.last_error and not self._sends.stopped:
            self.log("receiver", f"{exporter.endpoint}: {exporter.last_error}; trying again")
        if time.monotonic() >= self._rate_at:
            self._rate_at = time.monotonic() + _RATE_EVERY
            self._check_retention()
        delay, asked = platform.rate_limiter.paused_for, platform.rate_limiter.asked
        if delay <= config.retry_max_time or config.follow:
            return None
        hint = "sync again then: it resumes where this one stopped"
        return RateLimited(f"{platform.base} asks to wait {asked:.15g} s", retry_after=asked, hint=hint)

    def _progress(self) -> SyncProgress:
        checkpoint, counts = self._context.checkpoint, self._context.checkpoint.counts
        checkpoint.recount(max_age=_COUNT_EVERY)
        return SyncProgress(
            counts=self._context.counts,
            requests=self._requests(),
            tracked=counts.total(),
            backlog=counts[TrackState.NEW],
            unfinished=counts[TrackState.OPEN],
            oldest_backlog=checkpoint.oldest(TrackState.NEW),
            oldest_unfinished=checkpoint.oldest(TrackState.OPEN),
            polled_at=self._lists.polled_at,
            first_scan=self._lists.first_scan_in_progress,
        )

    def _requests(self) -> tuple[int, int, int]:
        """Return the requests to the platform since the start of the sync; see ``PlatformClient.requests``."""
        requests, retries, limited = self._platform.requests
        before = self._requests_before
        self._context.totals.requests = (before[0] + requests, before[1] + retries, before[2] + limited)
        return self._context.totals.requests

    def report(self, stopped: str) -> SyncReport:
        """Return the report. stopped: Why the sync ended early, or ""."""
        context, checkpoint = self._context, self._context.checkpoint
        totals = context.totals
        requests, retries, rate_limited = self._requests()
        checkpoint.recount()
        now = {run_id for run_id, _ in totals.refused}
        refused = checkpoint.refused(MAX_NAMED + len(now)) if totals.refused_before else []
        return SyncReport(
            counts=context.counts,
            seconds=time.monotonic() - totals.started,
            requests=requests,
            retries=retries,
            rate_limited=rate_limited,
            backlog=checkpoint.counts[TrackState.NEW],
            unfinished=checkpoint.counts[TrackState.OPEN],
            refused_before=min(totals.refused_before or 0, checkpoint.counts[TrackState.REFUSED]),
            at_risk=self._at_risk,
            refused_now=tuple(totals.refused),
            rejected_now=tuple(totals.rejected),
            refused_earlier=tuple([each for each in refused if each[0] not in now][:MAX_NAMED]),
            failing=tuple(checkpoint.failing(MAX_NAMED)),
            failing_count=checkpoint.failing_count(),
            stopped=stopped,
        )

    def log(self, topic: str, message: str) -> None:
        """Log a message: at once if it is a new one of its topic, and from time to time while it stays the same."""
        before, at = self._logged.get(topic, ("", float("-inf")))
        now = time.monotonic()
        if (message != before and now - at > _QUIET) or now - at > _REPEAT_AFTER:
            self._logged[topic] = (message, now)
            self._context.log(message)

    def _left_backlog(self) -> int:
        """Return how many runs are out of the backlog, by the work of all workers."""
        counts = self._context.checkpoint.counts
        return counts.total() - counts[TrackState.NEW]

    def _check_retention(self) -> None:
        """Warn if the platform will delete runs before they are fetched."""
        context, retention = self._context, self._context.config.retention
        if retention is None or self._lists.first_scan_in_progress:
            return
        since, before = self._rate_from
        seconds, left = time.monotonic() - since, self._left_backlog()
        rate = max(left - before, 1) / seconds
        if seconds > _RATE_OVER:
            self._rate_from = (time.monotonic(), left)
        backlog = context.checkpoint.backlog_by_time(_RETENTION_INTERVAL)
        self._at_risk = at_risk_of_retention(backlog, per_second=rate, retention=retention, now=context.clock())
        if self._at_risk:
            self.log(
                "retention",
                f"warning: at {rate:,.1f} runs a second, the platform's retention will delete {self._at_risk:,} runs "
                "of the backlog before they are fetched; raise --requests-per-minute, or narrow the sync with "
                "--workflow",
            )


def at_risk_of_retention(backlog: Iterable[tuple[int, int]], *, per_second: float, retention: int, now: int) -> int:
    """Return how many runs of the backlog the platform will delete before they are fetched.

    - ``backlog``: (start, runs) of intervals, the oldest first, which is the order of fetching.
    - ``retention``: nanoseconds that the platform keeps a run, counted from its start, which is never too late.
    """
    ahead = lost = 0
    for start, runs in backlog:
        remaining = (start + retention - now) / SECOND
        in_time = min(runs, max(0, int(remaining * per_second) - ahead))
        lost += runs - in_time
        # Deleted runs take no time to fetch.
        ahead += in_time
    return lost
