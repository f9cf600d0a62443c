"""A sync's progress as health tells it; no I/O."""

from __future__ import annotations

from runspan.health import Numbers
from runspan.health.table import (
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
from runspan.sync.report import Progress


def numbers(progress: Progress, retention: int | None) -> Numbers:
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
