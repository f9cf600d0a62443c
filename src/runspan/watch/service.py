"""The watch use case: files that appear in a folder to a receiver, for as long as anybody likes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from runspan.delivery import OnSettled, OtlpExporter, RunSpans, RunStatus
from runspan.errors import DocumentError, SettingError
from runspan.export import TARGET_SPANS, ExportItem, ObservedRun, batches
from runspan.model.run import Run
from runspan.otlp.protobuf_writer import Resource
from runspan.sources import pieces, runs
from runspan.sources.splitter import RawDocument
from runspan.telemetry import CumulativeSource, MetricsRegistry, export_samples
from runspan.telemetry.instruments import OLDEST_UNFINISHED, REFUSED, UNFINISHED, WATCH_FAILED, WATCH_PENDING, WATCHED
from runspan.watch.coalescer import NAMED, FileProgress, PendingRun, SnapshotCoalescer
from runspan.watch.done_dir import ProcessedFileMover
from runspan.watch.poller import DirectoryPoller, WatchedFile, head_of
from runspan.watch.state_db import FileStatus, SendPlan, WatchState

FORGET_EVERY: Final = 3600 * 1_000_000_000
_LONGEST_PAUSE: Final = 300.0
_IDLE: Final = 4.0
"""Of the time at most a fifth goes into looking, however many files there are."""


@dataclass(frozen=True, slots=True)
class WatchConfig:
    """poll: seconds between two looks. done_folder: where files go that are done with, or "" for nowhere."""

    tenant: str
    resource: Resource
    poll: float
    done_folder: str = ""
    target_spans: int = TARGET_SPANS


class WatchService:
    """Used by one thread.

    connect: makes a delivery that tells what came of each run; another one when it has stopped. wait: returns after so
    many seconds, or True before that when it is to end. clock: nanoseconds since 1970. note: told what people should
    know, one line each.

    A run counts as sent when the receiver has accepted it, and not before: whenever this is killed, what was not
    accepted is sent when it starts again, and what may have been is sent as the same spans.
    """

    def __init__(
        self,
        folder: DirectoryPoller,
        ledger: WatchState,
        settings: WatchConfig,
        *,
        connect: Callable[[OnSettled], OtlpExporter],
        wait: Callable[[float], bool],
        clock: Callable[[], int],
        health: MetricsRegistry,
        note: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._ledger = ledger
        self._settings = settings
        self._connect = connect
        self._wait = wait
        self._clock = clock
        self._health = health
        self._note = note
        self._delivery: OtlpExporter | None = None
        self._sending: dict[int, PendingRun] = {}
        self._versions = SnapshotCoalescer()
        self._moving = ProcessedFileMover(folder, ledger, settings.done_folder, note)
        self._settled: deque[tuple[tuple[RunSpans, ...], RunStatus, str]] = deque()
        self._away = ""
        self._forget_at = 0
        self._deliveries = CumulativeSource()
        health.register(self._deliveries.collect)

    def run(self) -> None:
        """Looks and sends until it is to end. What is under way then is given a moment and else sent the next time."""
        pause = self._settings.poll
        try:
            while not self._wait(pause):
                pause = self._round(pause)
        finally:
            if self._delivery is not None:
                self._delivery.interrupt()
                self._delivery.close()
            self._drain()
            self._moving.end()
            self._ledger.commit()

    @property
    def endpoint(self) -> str:
        """Where it sends to, without secrets."""
        delivery = self._delivery
        return "" if delivery is None else delivery.endpoint

    @property
    def last_error(self) -> str:
        """Why a request is sent again now, or ""."""
        delivery = self._delivery
        return "" if delivery is None else delivery.last_error

    def _round(self, pause: float) -> float:
        """One look, and what it leads to; how long to wait for the next."""
        found = self._look()
        readings = [FileProgress(candidate) for candidate in found]
        stopped = self._send(readings) if readings else ""
        for reading in readings:
            self._finish(reading)
        self._tell_unread(readings)
        if not self._away:
            self._moving.step()
        self._tell_health()
        self._ledger.commit()
        if not stopped:
            return max(self._settings.poll, _IDLE * self._folder.took)
        pause = min(_LONGEST_PAUSE, 2 * pause)
        self._note(f"{stopped}; nothing is lost, trying again in {pause:g} s")
        return pause

    def _look(self) -> list[WatchedFile]:
        """A folder that is away for a while is no reason to end."""
        now = self._clock()
        try:
            found = self._folder.poll()
            if now >= self._forget_at:
                self._ledger.forget(self._folder.path, now)
                self._forget_at = now + FORGET_EVERY
        except OSError as error:
            why = f"{self._folder.path}: {error.strerror or error}"
            if why != self._away:
                self._note(f"{why}; looking again every {self._settings.poll:g} s")
            self._away = why
            return []
        self._away = ""
        return found

    def _send(self, readings: list[FileProgress]) -> str:
        """Sends the files and waits for all answers. Why the delivery has stopped, or ""."""
        delivery = self._delivery or self._connected()
        for batch in batches(
            self._documents(readings),
            tenant=self._settings.tenant,
            observed_at=self._clock,
            resource=self._settings.resource,
            target_spans=self._settings.target_spans,
            on_refused=delivery.stats.refused,
            keep_text=True,
        ):
            # What is intended is on disk before it goes, so that it goes in the same way the next time.
            self._ledger.commit()
            if not delivery.submit(batch):
                break
            self._drain()
        delivery.flush()
        self._drain()
        for version in (*self._sending.values(), *self._versions.rest()):
            version.not_sent()  # handed to the batches and never submitted, or not even that
        self._sending.clear()
        if not delivery.stopped:
            return ""
        delivery.close()
        self._deliveries.replace(dict)  # what it counted stays counted
        self._delivery = None
        return delivery.stopped

    def _connected(self) -> OtlpExporter:
        made = self._delivery = self._connect(lambda *settled: self._settled.append(settled))
        self._deliveries.replace(lambda: export_samples(made.stats.report()))
        return made

    def _documents(self, readings: list[FileProgress]) -> Iterator[ExportItem]:
        """What of the files the receiver does not have yet."""
        for reading in readings:
            file = reading.candidate
            before = self._ledger.start_file(file.name, file.signature, partial(head_of, file.path))
            for run in self._read(reading):
                intent = self._ledger.plan_send(run, self._clock(), news=reading.offset > before)
                if intent is not None:
                    yield from map(self._to_send, self._versions.put(run, intent, reading))
            returned = self._ledger.reverted_runs(file.signature.changed)
            if returned:
                yield from self._sent_again(reading, returned)
            reading.read = True
        yield from map(self._to_send, self._versions.rest())

    def _sent_again(self, reading: FileProgress, returned: set[bytes]) -> Iterator[ExportItem]:
        """A file that ends with an older version of a run takes a change back."""
        last = {}
        again = FileProgress(reading.candidate)
        for item in self._read(again):
            if (trace_id := self._ledger.trace_id(item)) in returned:
                last[trace_id] = item
        reading.unsent |= again.unsent
        for run in last.values():
            intent = self._ledger.plan_resend(run, self._clock())
            yield from map(self._to_send, self._versions.put(run, intent, reading))

    def _read(self, reading: FileProgress) -> Iterator[Run]:
        def followed(found: Iterator[RawDocument]) -> Iterator[RawDocument]:
            for piece in found:
                reading.offset = piece.end_offset
                yield piece

        try:
            found = runs(followed(pieces(reading.candidate.path)))
        except SettingError as error:
            reading.fail(error)  # it went, or cannot be opened now
            return
        except DocumentError as error:
            reading.refuse(error)
            return
        for item in found:
            if not isinstance(item, DocumentError):
                reading.documents += 1
                reading.cut = False
                yield item
            elif isinstance(item.__cause__, OSError):
                reading.fail(item)
            else:
                reading.refuse(item)

    def _to_send(self, version: PendingRun) -> ExportItem:
        run, intent = version.run, version.intent
        self._sending[id(run.text)] = version
        there = self._ledger.acked_spans(intent, self._clock())
        if run.finished and not (intent.after_root or there):
            return run  # its spans do not depend on when it was seen, and many are written at once
        observed = ObservedRun(run, intent.observed_at, intent.after_root)
        if not there:
            return observed
        written = observed.encode(self._settings.tenant)
        self._ledger.retain_only(intent, written.step_digests)
        return written.without(there)

    def _drain(self) -> None:
        """Writes down what was answered since the last time."""
        taken: list[SendPlan] = []
        while self._settled:
            spans, verdict, reason = self._settled.popleft()
            for run in spans:
                version = self._sending.pop(id(run.text), None)
                if version is None:
                    continue
                for reading in version.readings:
                    reading.left -= 1
                if verdict is RunStatus.ACCEPTED:
                    taken += version.settles
                    if run.step_digests:
                        self._ledger.acknowledged(version.intent, run.step_digests, self._clock())
                elif verdict is RunStatus.NOT_SENT:
                    version.not_sent()
                else:
                    for reading in version.readings:
                        reading.reject(f"run {run.run_id} {verdict.value}: {reason}")
        self._ledger.mark_acked(taken)

    def _finish(self, reading: FileProgress) -> None:
        """Decides whether a file is done with, and tells what is wrong with it, once."""
        candidate = reading.candidate
        if not reading.read or reading.unsent or reading.left:
            return
        if not self._folder.same(candidate):
            self._folder.touch(candidate)
            return
        if (reading.cut or reading.empty) and not self._folder.is_overdue(candidate):
            return
        if reading.empty:
            self._folder.done(candidate, FileStatus.EMPTY)
            return
        for line in reading.faults:
            self._note(line)
        if more := reading.refused + reading.rejected - len(reading.faults):
            self._note(f"{candidate.path}: … {more:,} more")
        outcome = FileStatus.REJECTED if reading.rejected else FileStatus.BROKEN if reading.refused else FileStatus.SENT
        self._health.add(WATCHED)
        self._health.add(REFUSED, reading.refused)
        self._folder.done(candidate, outcome)

    def _tell_unread(self, readings: list[FileProgress]) -> None:
        """Files that are there and that the system does not let us read, once each."""
        new = [reading for reading in readings if reading.unread and self._is_news(reading.candidate)]
        for reading in new:
            reading.candidate.told = True
        for reading in new[:NAMED]:
            self._note(f"{reading.candidate.path}: cannot be read: {reading.unread}; it is tried again and again")
        if more := len(new[NAMED:]):
            self._note(f"{self._folder.path}: … {more:,} more that cannot be read")

    def _is_news(self, candidate: WatchedFile) -> bool:
        return not candidate.told and self._folder.is_overdue(candidate) and self._folder.same(candidate)

    def _tell_health(self) -> None:
        count, oldest = self._ledger.unfinished()
        self._health.set(UNFINISHED, count)
        self._health.set_timestamp(OLDEST_UNFINISHED, oldest)
        self._health.set(WATCH_PENDING, self._folder.waiting)
        self._health.set(WATCH_FAILED, self._ledger.failed_files())
