"""What came of a sync: counts, names of what went wrong, and what is still to do, for people and programs; no I/O."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from runspan.http.urls import sanitize_message

MAX_NAMED: Final = 20
"""How many runs of a kind are named; all of them are counted."""

_NAMED_IN_ONE: Final = 5


@dataclass(slots=True)
class SyncCounts:
    """What happened since the start.

    noticed: runs listed for the first time. fetched: documents read, again and again of a run that goes on. sent: of
    them, those that the receiver took of runs that had ended; snapshots: of runs before their end; revisions: changes
    of what had ended; unchanged: those that it has already. refused: documents that cannot be carried. rejected: runs
    that the receiver does not take. vanished: runs listed, and then not there; vanished_open: those of them of which
    the receiver has a snapshot. odd: items of lists without an id. sweeps, pages: walks over lists, and their pages.
    """

    noticed: int = 0
    fetched: int = 0
    sent: int = 0
    snapshots: int = 0
    revisions: int = 0
    unchanged: int = 0
    refused: int = 0
    rejected: int = 0
    vanished: int = 0
    vanished_open: int = 0
    odd: int = 0
    sweeps: int = 0
    pages: int = 0


@dataclass(frozen=True, slots=True)
class SyncProgress:
    """How far a sync is. Times are nanoseconds since 1970.

    counts: see ``Counts``, not to be changed. requests: see ``Platform.requests``. known: runs in the checkpoint.
    backlog: those that the receiver has nothing of. unfinished: those that it has as they were before their end.
    behind: the start of the oldest run of the backlog, None without one. oldest_unfinished: likewise.
    polled: when the list was last read to its end. threatened: runs that the platform will have deleted before their
    turn comes. walking: whether a list is read all the way, so that older runs may come up. in_flight: documents that
    wait for the receiver's answer.
    """

    counts: SyncCounts
    requests: tuple[int, int, int]
    known: int
    backlog: int
    unfinished: int
    behind: int | None
    oldest_unfinished: int | None
    polled: int | None
    threatened: int
    walking: bool
    in_flight: int


@dataclass(frozen=True, slots=True)
class SyncReport:
    """The end of a sync, or how it stands.

    requests: attempts at the platform, with the ``retries`` and those that were answered ``limited`` (429) among them.
    refused_now: (run id, reason) of runs refused or rejected since the start; rejected_now: of those among them that
    were rejected; refused_before: how many were so at the start and still are; refused_earlier: of the first of these.
    failing: those that could not be fetched and will be tried again. backlog, unfinished: what
    there is still to do. stopped: why it ended early, or "". kept, kept_in: documents in the file of dead letters;
    lost: how many should be there and are not, because of ``keeping_failed``.
    """

    counts: SyncCounts
    seconds: float
    requests: int
    retries: int
    limited: int
    backlog: int
    unfinished: int
    refused_before: int
    threatened: int = 0
    refused_now: Sequence[tuple[str, str]] = ()
    rejected_now: Sequence[tuple[str, str]] = ()
    refused_earlier: Sequence[tuple[str, str]] = ()
    failing: Sequence[tuple[str, str]] = ()
    failing_count: int = 0
    notes: Sequence[str] = field(default=())
    stopped: str = ""
    kept: int = 0
    kept_in: str = ""
    lost: int = 0
    keeping_failed: str = ""

    @property
    def complete(self) -> bool:
        """Whether the receiver has every run that the platform showed, as it was when it was fetched."""
        counts = self.counts
        wrong = counts.refused + counts.rejected + self.refused_before
        return not (wrong or counts.odd or self.failing_count or self.backlog or self.stopped)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"complete": self.complete, **asdict(self)}

    def summary_lines(self) -> list[str]:
        """A line for each thing worth knowing; the first two are always there."""
        counts = self.counts
        per_second = counts.fetched / self.seconds if self.seconds > 0 else 0.0
        lines = [
            f"{_runs(counts.sent)} sent, {counts.snapshots:,} snapshots of unfinished ones, "
            f"{counts.revisions:,} revisions, {counts.unchanged:,} unchanged",
            f"{counts.fetched:,} documents in {self.seconds:,.1f} s ({per_second:,.1f} a second), "
            f"{self.requests:,} requests to the platform, {self.retries:,} of them again, "
            f"{self.limited:,} told to wait",
        ]
        if counts.vanished:
            lines.append(f"{_runs(counts.vanished)} listed, and gone before they could be fetched")
        if counts.vanished_open:
            lines.append(f"{_runs(counts.vanished_open)} of them stay as they were last seen, unfinished")
        if self.refused_now:
            lines.append(f"{_runs(counts.refused + counts.rejected)} refused:")
            lines += _named(self.refused_now, counts.refused + counts.rejected)
        if counts.odd:
            lines.append(f"{counts.odd:,} items of lists without a usable id")
        if self.failing_count:
            lines.append(f"{_runs(self.failing_count)} could not be fetched; the next sync tries again:")
            lines += _named(self.failing, self.failing_count)
        if self.refused_before:
            again = "they are asked for again when they change, or with --retry-refused"
            lines.append(f"{_runs(self.refused_before)} refused by an earlier sync; {again}:")
            lines += _named(self.refused_earlier, self.refused_before)
        lines += [f"warning: {note}" for note in self.notes]
        if self.threatened:
            lines.append(f"warning: {_runs(self.threatened)} will be deleted by the platform before their turn comes")
        if self.stopped:
            lines.append(f"stopped: {self.stopped}")
        if self.backlog:
            lines.append(f"{_runs(self.backlog)} still to fetch; the next sync goes on from here")
        if self.unfinished:
            lines.append(f"{_runs(self.unfinished)} have not ended; --follow, or the next sync, fetches them again")
        if self.kept:
            again = sanitize_message(f"runspan export {shlex.quote(self.kept_in)}")
            lines.append(
                f"{self.kept:,} documents kept in {sanitize_message(self.kept_in)}; to send them again: {again}"
            )
        if self.lost:
            lines.append(f"{self.lost:,} documents NOT kept in {sanitize_message(self.kept_in)}: {self.keeping_failed}")
        return lines


def _named(runs: Sequence[tuple[str, str]], total: int) -> list[str]:
    """A line for each reason, with the runs that it was given for."""
    names: dict[str, list[str]] = {}
    for run_id, reason in runs:
        names.setdefault(reason, []).append(run_id)
    lines = []
    for reason, found in names.items():
        more = f", … {len(found) - _NAMED_IN_ONE} more" if len(found) > _NAMED_IN_ONE else ""
        lines.append(f"  {sanitize_message(', '.join(found[:_NAMED_IN_ONE]))}{more}: {sanitize_message(reason)}")
    return lines if total <= len(runs) else [*lines, f"  … the first {len(runs)} by name"]


def _runs(number: int) -> str:
    return f"{number:,} run{'' if number == 1 else 's'}"
