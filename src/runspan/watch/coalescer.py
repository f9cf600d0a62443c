"""Documents on their way from watched files to a receiver: ``Reading`` is a file, ``Version`` one document of it.

A log holds every version of a run, and several of them may be read at once. Of its snapshots the newest is enough, so
``Versions`` holds each for a while: nobody would see the older ones, and all would bring the steps that ended between.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from runspan.errors import DocumentError, RunspanError
from runspan.model.run import Run
from runspan.watch.poller import WatchedFile
from runspan.watch.state_db import SendPlan

MAX_HELD: Final = 500
MAX_HELD_BYTES: Final = 8 << 20
NAMED: Final = 20
"""Faults of a file that are told one by one."""


@dataclass(slots=True, eq=False)
class FileProgress:
    """A file of a round. left: runs under way. refused, rejected: how many; faults: the first of them in words.

    read: it was read to its end. unsent: some of it did not reach the receiver. unread: why the system does not let it
    be read. documents: how many could be read. cut: the last of it could not be read, as when it is still being
    written. offset: where the document ends that was read last.
    """

    candidate: WatchedFile
    read: bool = False
    left: int = 0
    refused: int = 0
    rejected: int = 0
    faults: list[str] = field(default_factory=list)
    unsent: bool = False
    unread: str = ""
    documents: int = 0
    cut: bool = False
    offset: int = 0

    @property
    def empty(self) -> bool:
        """Whether there is no document in it, nor a part of one."""
        return not (self.documents or self.refused)

    def fail(self, error: RunspanError) -> None:
        """The system does not let it be read, now."""
        self.unsent = True
        self.unread = error.got or str(error)

    def refuse(self, error: DocumentError) -> None:
        """A document that cannot be read."""
        self.refused += 1
        self.cut = True
        self._tell(str(error))

    def reject(self, line: str) -> None:
        """A run that the receiver will not have."""
        self.rejected += 1
        self._tell(f"{self.candidate.path}: {line}")

    def _tell(self, line: str) -> None:
        """A large file may hold a fault in every line."""
        if len(self.faults) < NAMED:
            self.faults.append(line)


@dataclass(slots=True, eq=False)
class PendingRun:
    """A document that the receiver lacks. settles, readings: its own, and those of older snapshots that go with it."""

    run: Run
    intent: SendPlan
    settles: list[SendPlan]
    readings: list[FileProgress]

    def replace(self, older: PendingRun) -> None:
        """An older snapshot is told of as this one is, and not sent."""
        self.settles += older.settles
        for reading in older.readings:
            if reading in self.readings:
                reading.left -= 1
            else:
                self.readings.append(reading)

    def not_sent(self) -> None:
        """It is to be read again."""
        for reading in self.readings:
            reading.unsent = True


class SnapshotCoalescer:
    """Snapshots that wait whether a newer one of their run is read at once; a bounded number, of a bounded size."""

    def __init__(self) -> None:
        self._held: dict[bytes, PendingRun] = {}
        self._bytes = 0

    def put(self, run: Run, intent: SendPlan, reading: FileProgress) -> Iterator[PendingRun]:
        """Takes a document that is to be sent. What is to be sent now."""
        version = PendingRun(run, intent, [intent], [reading])
        reading.left += 1
        trace_id = intent.key[0]
        held = self._held.get(trace_id)
        if held is not None:
            older, newer = sorted((held, version), key=lambda each: each.intent.observed_at)
            if not older.run.finished:
                self._pop(trace_id)
                newer.replace(older)
                version = newer
        if version.run.finished:
            yield version
            return
        self._held[trace_id] = version
        self._bytes += len(version.run.text)
        while len(self._held) > MAX_HELD or self._bytes > MAX_HELD_BYTES:
            yield self._pop(next(iter(self._held)))

    def rest(self) -> Iterator[PendingRun]:
        """All that waits, the first first."""
        while self._held:
            yield self._pop(next(iter(self._held)))

    def _pop(self, trace_id: bytes) -> PendingRun:
        version = self._held.pop(trace_id)
        self._bytes -= len(version.run.text)
        return version
