"""What a recorder did and what became of it: counts for people, programs and alerts."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from runspan.telemetry import Samples
from runspan.telemetry.instruments import EXPORTED, QUEUE, RECORDED, RECORDER_FAILED, REQUESTS, RETRIED


@dataclass(frozen=True, slots=True)
class RecorderReport:
    """runs_started, runs_ended: told by the engine. runs_delivered: ended, and the receiver has all of it.

    runs_dropped: given up: too much was waiting, the receiver refused, the time to shut down was over, or they ended
    after it; runs_kept: of these, the documents in the dead letter file. runs_waiting: not delivered as they stand now,
    with the time and place to be. bytes_waiting: of ended runs. spans_sent, snapshots_sent: taken by the receiver.
    spans_rejected: refused by it for good. foreign_sent, foreign_dropped, foreign_waiting: spans of other
    instrumentation; they are dropped from a full queue.
    retries: requests that have to be sent again. late: what was told of a run or step after its end, and ignored.
    inexact: payloads with values that JSON cannot say, carried as text. defects: errors inside the recorder, logged.
    trouble: why the last request was not taken, or "".
    """

    runs_started: int = 0
    runs_ended: int = 0
    runs_delivered: int = 0
    runs_dropped: int = 0
    runs_kept: int = 0
    runs_waiting: int = 0
    bytes_waiting: int = 0
    spans_sent: int = 0
    snapshots_sent: int = 0
    spans_rejected: int = 0
    foreign_sent: int = 0
    foreign_dropped: int = 0
    foreign_waiting: int = 0
    requests: int = 0
    retries: int = 0
    late: int = 0
    inexact: int = 0
    defects: int = 0
    trouble: str = ""

    @property
    def complete(self) -> bool:
        """Whether everything that was recorded so far is at the receiver."""
        lost = self.runs_dropped + self.spans_rejected + self.foreign_dropped + self.defects
        return not (lost or self.runs_waiting or self.foreign_waiting)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"complete": self.complete, **asdict(self)}


def recorder_samples(report: RecorderReport) -> Samples:
    """The report as health tells it."""
    return {
        RECORDED: report.runs_ended,
        RECORDER_FAILED: report.defects + report.runs_dropped + report.foreign_dropped + report.spans_rejected,
        EXPORTED: report.runs_delivered,
        QUEUE: report.runs_waiting,
        REQUESTS: report.requests,
        RETRIED: report.retries,
    }


class Counters:
    """Counts while things happen. Every method may be called from several threads, and from a signal's handler: the
    locks of a recorder can be taken again by who holds them."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._counts: Counter[str] = Counter()
        self.trouble = ""

    def add(self, name: str, number: int = 1) -> None:
        """name: a member of ``RecorderReport``."""
        with self._lock:
            self._counts[name] += number

    def dropped(self, kept: bool) -> None:
        """A run that is given up; both counts at once, so that no report has one without the other."""
        with self._lock:
            self._counts["runs_dropped"] += 1
            self._counts["runs_kept"] += kept

    def report(self, **now: int) -> RecorderReport:
        """The counts, with what is counted elsewhere."""
        with self._lock:
            return RecorderReport(trouble=self.trouble, **{**self._counts, **now})

    def after_fork(self) -> None:
        """In the child: a lock that nobody holds, and nothing counted."""
        self.__init__()  # type: ignore[misc]
