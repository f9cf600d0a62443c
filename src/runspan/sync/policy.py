"""What sync does about a run: whether and how to write it, when to fetch it again, what retention threatens; no I/O.

Nothing here reads a clock; ``now`` is nanoseconds since 1970.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from runspan.codec.fields import ROOT_REVISION, observed_time
from runspan.export import ObservedRun
from runspan.model.document import LIVE_RUN_STATUSES
from runspan.model.run import Run
from runspan.model.timestamps import SECOND
from runspan.sync.checkpoint import TrackedRun

MINUTE: Final = 60 * SECOND
HOUR: Final = 3600 * SECOND
DAY: Final = 24 * HOUR

GIVE_UP_AFTER: Final = 3
"""Fetches in a row that come to nothing, each with attempts of its own, before a run is left for later."""

_WINDOWS: Final = (("1h", HOUR), ("24h", DAY), ("7d", 7 * DAY), ("30d", 30 * DAY))
"""What the platform documents for ``since``."""

SKEW: Final = 5 * MINUTE
"""How far the platform's clock may be from ours when it works out where a window begins."""

_LONGEST_REFRESH: Final = 10 * MINUTE
_LONGEST_BACKOFF: Final = 10 * MINUTE
LONGEST_PAUSE: Final = max(_LONGEST_REFRESH, _LONGEST_BACKOFF)
"""Between two fetches of a run that is still to be fetched. What is due later was put off by a clock that was ahead."""

_QUIET_PARTS: Final = 10


@dataclass(frozen=True, slots=True)
class RefreshPolicy:
    """How often an unfinished run is looked at and told of, nanoseconds.

    refresh: the shortest time between two fetches of a run. heartbeat: after this long an unchanged snapshot is sent
    again, so that a run that goes on can be told from one that nobody watches; 0: never.
    """

    refresh: int = 15 * SECOND
    heartbeat: int = 5 * MINUTE


@dataclass(frozen=True, slots=True)
class PlannedSend:
    """A document to be sent. digest: 16 bytes of the SHA-256 of its text; revision: see ``encode``."""

    run: Run
    digest: bytes
    revision: int

    @property
    def document(self) -> Run | ObservedRun:
        """What the export takes: a run that ended is written once, everything else says when it was seen."""
        return self.run if self.revision == ROOT_REVISION else self.observed

    @property
    def observed(self) -> ObservedRun:
        """The same, always with when it was seen, which changes nothing of a run span."""
        return ObservedRun(self.run, observed_time(self.revision), self.revision > ROOT_REVISION)

    @property
    def size(self) -> int:
        return len(self.run.text)


def plan_send(entry: TrackedRun, run: Run, now: int, rhythm: RefreshPolicy) -> PlannedSend | None:
    """How to write the document that was just fetched; None when the receiver has it and need not hear of it.

    What may have arrived already, since it was sent and no answer was seen, is written with the same revision: the
    same spans again change nothing. After a run span that may have arrived, every other document is a revision above
    it, since span ids are written once.
    """
    digest = sha256(run.text).digest()[:16]
    if digest == entry.sent:
        if digest != entry.acked:
            return PlannedSend(run, digest, entry.revision)
        if run.finished or not _heartbeat_due(entry, run, now, rhythm):
            return None
    if run.finished and not entry.rooted:
        return PlannedSend(run, digest, ROOT_REVISION)
    # A clock that was set back must not rank what is newer below what is older.
    seen = max(now, observed_time(entry.revision) + 1) if entry.sent else now
    return PlannedSend(run, digest, seen + (ROOT_REVISION if entry.rooted else 0))


def refresh_at(entry: TrackedRun, run: Run, now: int, rhythm: RefreshPolicy) -> int | None:
    """When to fetch a run again that the receiver has as it is; None when it has ended.

    The longer nothing changed, the less often: an approval may wait for days, and reads are limited.
    """
    if run.finished:
        return None
    pause = min(max((now - entry.changed_at) // _QUIET_PARTS, rhythm.refresh), _LONGEST_REFRESH)
    if rhythm.heartbeat and run.status in LIVE_RUN_STATUSES:
        pause = min(pause, max(rhythm.heartbeat, rhythm.refresh))
    return now + pause


def retry_at(now: int, failures: int) -> int:
    """When to fetch again what could not be fetched so many times in a row."""
    return now + min(SECOND << min(failures - 1, 20), _LONGEST_BACKOFF)


def since_parameter(edge: int, now: int) -> str | None:
    """The shortest of the platform's windows that reaches back to the edge; None when none does, or edge is 0."""
    needed = now - edge + SKEW
    return next((name for name, length in _WINDOWS if length >= needed), None)


def at_risk_of_retention(backlog: Iterable[tuple[int, int]], *, per_second: float, retention: int, now: int) -> int:
    """How many runs of the backlog the platform will have deleted before their turn comes.

    backlog: (start, runs) of spans of time, the oldest first, which is the order in which they are fetched; runs
    without a time do not belong in it. retention: nanoseconds that the platform keeps a run, counted from its start,
    which is never too late.
    """
    ahead = lost = 0
    for start, runs in backlog:
        left = (start + retention - now) / SECOND
        in_time = min(runs, max(0, int(left * per_second) - ahead))
        lost += runs - in_time
        # What is gone by then takes no time to fetch.
        ahead += in_time
    return lost


def _heartbeat_due(entry: TrackedRun, run: Run, now: int, rhythm: RefreshPolicy) -> bool:
    if not rhythm.heartbeat:
        return False
    pause = rhythm.heartbeat
    if run.status not in LIVE_RUN_STATUSES:
        # Whoever waits for an approval of days needs no sign every few minutes.
        pause = max(pause, (now - entry.changed_at) // _QUIET_PARTS)
    return not 0 <= now - entry.sent_at < pause  # a clock that was ahead says nothing
