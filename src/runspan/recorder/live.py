"""A run in the hands of an engine: its record, the clock, and who is told when it changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec import UnsetType

from runspan.ids import child_span_id
from runspan.recorder.record import Attempt, Clock, RunRecord, StepRecord
from runspan.recorder.report import Counts
from runspan.recorder.values import payload


class LiveRun:
    """on_change: called after a change, outside the lock; True when the run's own status changed.

    abandoned: the run belongs to another process, the parent of this one or whoever resumed it: nothing that happens
    here is recorded. lost: the receiver lacks some of the run, and will not get it from here.
    """

    __slots__ = ("abandoned", "clock", "counts", "lost", "on_change", "record")

    def __init__(
        self, record: RunRecord, clock: Clock, counts: Counts, on_change: Callable[[LiveRun, bool], None]
    ) -> None:
        self.record = record
        self.clock = clock
        self.counts = counts
        self.on_change = on_change
        self.abandoned = False
        self.lost = False

    def stamp(self, not_before: int | None = None) -> int:
        """The time, not before another one. Call it under the lock."""
        record = self.record
        record.latest = now = self.clock.stamp(max(not_before or 0, record.since))
        return now

    def change(
        self, write: Callable[[RunRecord], None], step: StepRecord | None = None, *, status: bool = False
    ) -> bool:
        """Writes under the lock, and tells of it. False, and counted, when the run or the step has ended already."""
        record = self.record
        with record.lock:
            taken = not (self.abandoned or record.ended_already or (step is not None and step.finished))
            if taken:
                write(record)
        if taken:
            self.on_change(self, status)
        else:
            self.counts.add("late")
        return taken

    def begin_step(
        self,
        step_id: str,
        name: str | UnsetType,
        kind: str | UnsetType,
        extra: bytes = b"",
        retry: Mapping[str, object] | None = None,
        planned: bool = False,
    ) -> StepRecord | None:
        """A step that begins now, or is planned; None when the run has ended."""
        made: list[StepRecord] = []

        def write(record: RunRecord) -> None:
            step = record.add_step(step_id, name, kind, planned=planned)
            step.extra = extra or step.extra
            if retry is not None:
                step.retry_policy = payload(retry).text
            if not planned:
                now = self.stamp()
                step.started = now if step.started is None else step.started
                step.status = "running"
            made.append(step)

        self.change(write)
        return made[0] if made else None


def attempt_span_id(step: StepRecord, attempt: Attempt) -> bytes:
    """As ``projection.attempts_of`` gives it to the attempt at this place in the list."""
    return child_span_id(step.span_id, "attempt", attempt.position)
