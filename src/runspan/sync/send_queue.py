"""``Sends``: documents on their way to the receiver, in lots, each written down before it goes and after its answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from runspan.codec.fields import ROOT_REVISION
from runspan.delivery import OnSettled, OtlpExporter, RunSpans, RunStatus
from runspan.errors import DocumentError
from runspan.export import TARGET_SPANS, ExportItem, batches
from runspan.otlp.protobuf_writer import Resource
from runspan.sync.checkpoint import AT_ONCE, TrackedRun, TrackState
from runspan.sync.context import SyncContext
from runspan.sync.policy import PlannedSend, refresh_at
from runspan.sync.workers import Workers

LINGER: Final = 0.2
"""Seconds that a document waits for others to go with it."""

MAX_BYTES: Final = 16 << 20
"""Of documents under way, and again of documents that wait; a single larger one passes alone."""

Connect = Callable[[OnSettled], OtlpExporter]
Post = Callable[[Callable[[], None]], None]


@dataclass(slots=True)
class SendBatch:
    """Documents that are handed over together. left: those of them without an answer. lacking: what goes of each."""

    dispatches: list[PlannedSend]
    lacking: list[ExportItem] = field(default_factory=list)
    left: int = 0
    spans: int = 0
    size: int = 0

    def add(self, item: PlannedSend) -> None:
        self.dispatches.append(item)
        self.left += 1
        self.spans += 1 + len(item.run.steps)
        self.size += item.size


@dataclass(slots=True)
class _Sending:
    entry: TrackedRun
    item: PlannedSend
    lot: SendBatch
    there: frozenset[bytes]
    """The digests of spans that were left out."""


@dataclass(slots=True)
class SendQueue:
    """connect: makes a delivery; another one, once that has stopped. post: has something done by the sync's own
    thread, where all methods are called as well. target_spans: of a lot, about."""

    desk: SyncContext
    connect: Connect
    post: Post
    failed: Callable[[BaseException], None]
    tenant: str
    resource: Resource
    workers: int
    target_spans: int = TARGET_SPANS
    clock: Callable[[], float] = time.monotonic
    stopped: str = ""
    """Why the delivery takes nothing any more, or ""."""
    proved: bool = False
    """Whether the receiver has taken, or judged, anything since the delivery was made."""
    _delivery: OtlpExporter | None = None
    _open: SendBatch = field(default_factory=lambda: SendBatch([]))
    _ready: list[SendBatch] = field(default_factory=list)
    _since: float = 0.0
    _entries: dict[str, TrackedRun] = field(default_factory=dict)
    _sending: dict[str, _Sending] = field(default_factory=dict)
    _lots: int = 0
    _bytes: int = 0
    _submitter: Workers = field(init=False)

    def __post_init__(self) -> None:
        self._submitter = Workers("sync-submit", 1, self.failed)

    @property
    def in_flight(self) -> int:
        """Documents that wait for an answer of the receiver."""
        return len(self._sending)

    @property
    def waiting(self) -> int:
        """Documents that are not handed over yet."""
        return len(self._entries)

    @property
    def full(self) -> bool:
        """Whether so much waits to be sent that nothing more should be fetched.

        Nothing is known of a new delivery: a few documents tell whether it is worth while to fetch many.
        """
        if not self.proved and (self._entries or self._sending):
            return True
        return len(self._ready) > 1 or self._open.size > MAX_BYTES

    @property
    def delivery(self) -> OtlpExporter | None:
        """The one that is in use."""
        return self._delivery

    def add(self, entry: TrackedRun, item: PlannedSend) -> None:
        """Takes a document of a run that is in ``desk.busy``."""
        if not self._open.dispatches:
            self._since = self.clock()
        self._entries[entry.run_id] = entry
        self._open.add(item)
        if self._open.spans >= self.target_spans or self._open.size > MAX_BYTES // 4:
            self._cut()

    def take_batches(self, *, idle: bool) -> list[SendBatch]:
        """What goes now. Each run's entry is written with what is about to be sent, and what the receiver will keep of
        the run for sure; once that is on disk, hand the lots to ``submit``. idle: whether nothing is being fetched that
        could go with the last lot."""
        if self._open.dispatches and (idle or self.clock() - self._since >= LINGER):
            self._cut()
        taken = []
        while self._ready and not self.stopped and self._has_room(self._ready[0]):
            lot = self._ready.pop(0)
            for item in lot.dispatches:
                entry = self._entries.pop(item.run.id)
                lacking, there = self._lacking(entry, item)
                lot.lacking.append(lacking)
                entry.sent, entry.revision = item.digest, item.revision
                entry.rooted = entry.rooted or item.revision == ROOT_REVISION
                self.desk.checkpoint.save(entry)
                self._sending[item.run.id] = _Sending(entry, item, lot, there)
            self._lots += 1
            self._bytes += lot.size
            taken.append(lot)
        return taken

    def submit(self, lot: SendBatch) -> None:
        """Hands a lot over, on a thread of its own: the delivery blocks while too much is under way."""
        if self._delivery is None:
            self._delivery = self.connect(self._on_settled)
        delivery = self._delivery
        self._submitter.submit(lambda: self._hand_over(delivery, lot))

    def renew(self) -> None:
        """Closes a delivery that has stopped. The next lot makes another one."""
        delivery, self._delivery, self.stopped, self.proved = self._delivery, None, "", False
        if delivery is not None:
            delivery.close()

    def check(self) -> None:
        """Raises the delivery's defect, if it has one, and sees whether it has stopped."""
        if self._delivery is not None:
            self._delivery.report()
            self.stopped = self._delivery.stopped

    def close(self) -> None:
        """Ends at once: what is in flight may still arrive, and is sent again by the next sync."""
        if self._delivery is not None:
            self._delivery.interrupt()
            self._delivery.close()
        self._submitter.close(1.0)

    def _lacking(self, entry: TrackedRun, item: PlannedSend) -> tuple[ExportItem, frozenset[bytes]]:
        """A document without the spans that the receiver has, and the digests of these."""
        spans = self.desk.checkpoint.spans
        there = spans.get(entry.key, self.desk.clock()) if entry.state is TrackState.OPEN else frozenset()
        if not there:
            return item.document, there
        written = item.observed.encode(self.tenant)
        spans.retain_only(entry.key, written.step_digests)
        return written.without(there), there

    def _cut(self) -> None:
        self._ready.append(self._open)
        self._open = SendBatch([])

    def _has_room(self, lot: SendBatch) -> bool:
        return not self._lots or (self._lots <= self.workers and self._bytes + lot.size <= MAX_BYTES)

    def _hand_over(self, delivery: OtlpExporter, lot: SendBatch) -> None:
        refused: list[DocumentError] = []
        for batch in batches(
            lot.lacking,
            tenant=self.tenant,
            observed_at=self.desk.clock,
            resource=self.resource,
            target_spans=self.target_spans,
            on_refused=refused.append,
        ):
            delivery.submit(batch)

    def _on_settled(self, runs: tuple[RunSpans, ...], verdict: RunStatus, reason: str) -> None:
        names = {run.run_id: run.step_digests for run in runs}
        self.post(lambda: self._settle(names, verdict, reason))

    def _settle(self, names: Mapping[str, Sequence[bytes]], verdict: RunStatus, reason: str) -> None:
        found = [self._sending.pop(run_id) for run_id in names]
        for sending in found:
            sending.lot.left -= 1
            if not sending.lot.left:
                self._lots -= 1
                self._bytes -= sending.lot.size
        self.proved = self.proved or verdict is not RunStatus.NOT_SENT
        if verdict is RunStatus.UNKNOWN:
            self._halve(found)
            return
        for sending in found:
            entry, item = sending.entry, sending.item
            if verdict is RunStatus.ACCEPTED:
                self._taken(entry, item, [name for name in names[entry.run_id] if name not in sending.there])
            elif verdict is RunStatus.REJECTED:
                self.desk.counts.rejected += 1
                self.desk.refuse(entry, reason, item.run.text, rejected=True)
            else:
                entry.due = AT_ONCE
                self.desk.save(entry)

    def _taken(self, entry: TrackedRun, item: PlannedSend, names: Sequence[bytes]) -> None:
        """names: the digests of the spans below the head that were sent: what was left out got no younger by that."""
        desk, run = self.desk, item.run
        desk.counts.sent += item.revision == ROOT_REVISION
        desk.counts.snapshots += item.revision < ROOT_REVISION
        desk.counts.revisions += item.revision > ROOT_REVISION
        entry.acked = item.digest
        entry.state = TrackState.ENDED if run.finished else TrackState.OPEN
        entry.reason = ""
        entry.sent_at = desk.clock()
        entry.due = refresh_at(entry, run, entry.sent_at, desk.settings.rhythm)
        desk.save(entry)
        if entry.state is TrackState.OPEN:
            desk.checkpoint.spans.add(entry.key, names, entry.sent_at)

    def _halve(self, found: Sequence[_Sending]) -> None:
        """The receiver took some of them and does not say which: smaller lots tell. The same spans again change
        nothing."""
        for part in (found[: len(found) // 2], found[len(found) // 2 :]):
            lot = SendBatch([])
            for sending in part:
                self._entries[sending.entry.run_id] = sending.entry
                lot.add(sending.item)
            self._ready.append(lot)
