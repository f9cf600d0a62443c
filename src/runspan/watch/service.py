"""The watch use case: export the files that appear and change in a folder, until it is stopped.

A file may hold every version of a run, and several of them may be read at once. Of the snapshots among them only the
newest is sent: the older ones would be visible for no time, and each would resend the steps that ended in between.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from runspan.delivery import OnSettled, OtlpExporter, RunSpans, RunStatus, export_samples
from runspan.errors import ConfigError, DocumentError, RunspanError, StoreError, StoreFull, item_error
from runspan.export import TARGET_SPANS, ObservedRun, batches
from runspan.model.document import Run
from runspan.otlp.protobuf_writer import Resource
from runspan.sources import RawDocument, parse, pieces
from runspan.telemetry import Instrument, MetricsRegistry, Samples
from runspan.telemetry.registry import OLDEST_UNFINISHED, REFUSED, UNFINISHED, WATCH_FAILED, WATCH_PENDING, WATCHED
from runspan.watch.done_dir import ProcessedFileMover
from runspan.watch.poller import DirectoryPoller, WatchedFile, prefix_digest
from runspan.watch.state_db import FileStatus, SendPlan, WatchState

_log = logging.getLogger("runspan.watch")

EXPIRE_EVERY: Final = 3600 * 1_000_000_000
MAX_HELD: Final = 500
MAX_HELD_BYTES: Final = 8 << 20
MAX_NAMED: Final = 20
"""Errors of a file, and files that cannot be read, that are reported one by one; there may be one on every line."""

_LONGEST_PAUSE: Final = 300.0
_IDLE: Final = 4.0
"""Polling takes at most a fifth of the time, however many files there are."""


@dataclass(frozen=True, slots=True)
class WatchConfig:
    """How a folder is watched."""

    tenant: str
    resource: Resource
    poll: float
    """Seconds between two polls."""
    done_folder: str = ""
    """Where processed files are moved, or "" to leave them."""
    recursive: bool = False
    """Whether the folders in the folder are read too."""
    follow_symlinks: bool = False
    """Whether symbolic links out of the folder are followed."""
    target_spans: int = TARGET_SPANS


@dataclass(slots=True, eq=False)
class FileProgress:
    """What came of a file in one round."""

    file: WatchedFile
    read: bool = False
    """Whether it was read to its end."""
    refused: int = 0
    """Documents that cannot be read."""
    rejected: int = 0
    """Runs that the receiver does not take."""
    errors: list[str] = field(default_factory=list)
    """The first errors of either kind."""
    unsent: bool = False
    """Whether some of it did not reach the receiver."""
    unreadable: str = ""
    """Why the system does not let it be read."""
    documents: int = 0
    """Documents that could be read."""
    cut: bool = False
    """Whether the last document cannot be read, as when it is still being written."""
    offset: int = 0
    """The end of the document that was read last."""

    @property
    def empty(self) -> bool:
        """Whether there is no document in it, nor a part of one."""
        return not (self.documents or self.refused)

    def fail(self, error: RunspanError) -> None:
        """Record that the system does not let the file be read now."""
        self.unsent = True
        self.unreadable = error.got or str(error)

    def refuse(self, error: DocumentError) -> None:
        """Record a document that cannot be read."""
        self.refused += 1
        self.cut = True
        self._report(str(error))

    def refuse_defect(self, where: str, error: Exception) -> None:
        """Record that a defect of ours does not let something of the file through."""
        _log.error("%s: %s", self.file.path, where, exc_info=error)
        self.refused += 1
        self._report(str(item_error(error, where)))

    def reject(self, run_id: str, reason: str) -> None:
        """Record a run that the receiver does not take."""
        self.rejected += 1
        self._report(f"{self.file.path}: run {run_id} rejected: {reason}")

    def _report(self, line: str) -> None:
        if len(self.errors) < MAX_NAMED:
            self.errors.append(line)


@dataclass(slots=True, eq=False)
class PendingRun:
    """A document that the receiver does not have."""

    run: Run
    plan: SendPlan
    settles: list[SendPlan]
    """Its own plan, and those of the older snapshots that it replaces."""
    files: list[FileProgress]
    """The files of all of them."""
    whole: bool = False
    """Whether it is sent without the digests of its spans: an end of which the receiver has nothing."""

    def replace(self, older: PendingRun) -> None:
        """Take over an older snapshot, which is not sent and settled with this one."""
        self.settles += older.settles
        for progress in older.files:
            if progress not in self.files:
                self.files.append(progress)

    def not_sent(self) -> None:
        """Record that it has to be read again."""
        for progress in self.files:
            progress.unsent = True


class SnapshotCoalescer:
    """Holds snapshots in case a newer one of their run is read at once; a limited number, of a limited size."""

    def __init__(self) -> None:
        self._held: dict[bytes, PendingRun] = {}
        self._bytes = 0

    def put(self, run: Run, plan: SendPlan, progress: FileProgress) -> Iterator[PendingRun]:
        """Add a document. Yield what has to be sent now."""
        pending = PendingRun(run, plan, [plan], [progress])
        trace_id = plan.key[0]
        held = self._held.get(trace_id)
        if held is not None:
            older, newer = sorted((held, pending), key=lambda each: each.plan.observed_at)
            if not older.run.finished:
                self._pop(trace_id)
                newer.replace(older)
                pending = newer
        if pending.run.finished:
            yield pending
            return
        self._held[trace_id] = pending
        self._bytes += len(pending.run.text)
        while len(self._held) > MAX_HELD or self._bytes > MAX_HELD_BYTES:
            yield self._pop(next(iter(self._held)))

    def drain(self) -> Iterator[PendingRun]:
        """Yield everything that is held, in the order in which it came."""
        while self._held:
            yield self._pop(next(iter(self._held)))

    def _pop(self, trace_id: bytes) -> PendingRun:
        pending = self._held.pop(trace_id)
        self._bytes -= len(pending.run.text)
        return pending


class WatchService:
    """Exports a folder's files. Used by one thread.

    A run counts as sent when the receiver has acknowledged it, and not before. Whenever the process is killed, what was
    not acknowledged is sent by the next one, and what may have been sent is sent as the same spans.
    """

    def __init__(
        self,
        poller: DirectoryPoller,
        state: WatchState,
        config: WatchConfig,
        *,
        connect: Callable[[OnSettled], OtlpExporter],
        wait: Callable[[float], bool],
        clock: Callable[[], int],
        metrics: MetricsRegistry,
        note: Callable[[str], None],
    ) -> None:
        """Create the service; ``run`` starts it.

        - ``connect``: makes an exporter that reports the result of each run; called again when it has stopped.
        - ``wait``: returns False after so many seconds, or True before that when the service has to stop.
        - ``clock``: nanoseconds since 1970.
        - ``note``: called with each line for people.
        """
        self._poller = poller
        self._state = state
        self._config = config
        self._connect = connect
        self._wait = wait
        self._clock = clock
        self._metrics = metrics
        self._note = note
        self.exporter: OtlpExporter | None = None
        """The exporter in use, for any thread."""
        self._sending: dict[int, PendingRun] = {}
        self._snapshots = SnapshotCoalescer()
        self._mover = ProcessedFileMover(poller, config.done_folder, note)
        self._settled: deque[tuple[tuple[RunSpans, ...], RunStatus, str]] = deque()
        self._retry_after = 0.0
        """Seconds that the receiver asked to wait."""
        self._away = ""
        self._expire_at = 0
        self._counts: Counter[Instrument] = Counter()
        self._gauges: Samples = {}
        metrics.register(lambda: {**self._counts, **self._gauges})
        self._registration = ExitStack()

    def run(self) -> None:
        """Poll and send until it has to stop. Requests under way then get a moment; the rest is sent the next time.

        No error of a file, a document or the receiver ends it, nor a disk that is full. StoreError when the state file
        fails in another way.
        """
        pause = self._config.poll
        try:
            while not self._wait(pause):
                try:
                    pause = self._round(pause)
                except StoreFull as error:
                    pause = self._begin_anew(str(error), pause)
                except StoreError:
                    raise
                except Exception as error:
                    _log.exception("%s: a round of the watch failed", self._poller.path)
                    pause = self._begin_anew(str(item_error(error, self._poller.path)), pause)
        finally:
            self._disconnect()
            self._settle()
            self._state.commit()

    def _begin_anew(self, reason: str, pause: float) -> float:
        """Forget what was not committed, after a round that failed. Return the seconds until the next round."""
        self._disconnect()
        self._settled.clear()
        self._sending.clear()
        self._snapshots = SnapshotCoalescer()
        self._state.roll_back()
        return self._longer_pause(reason, pause)

    def _disconnect(self) -> None:
        """Stop sending, without waiting for more than a moment."""
        if self.exporter is None:
            return
        exporter, self.exporter = self.exporter, None
        exporter.interrupt()
        try:
            exporter.close()
        except Exception:
            _log.exception("%s: the exporter failed", exporter.endpoint)
        self._registration.close()  # what it counted stays counted

    def _longer_pause(self, reason: str, pause: float) -> float:
        pause = min(_LONGEST_PAUSE, max(2 * pause, self._retry_after))
        self._note(f"{reason}; nothing is lost, trying again in {pause:g} s")
        return pause

    def _round(self, pause: float) -> float:
        """Poll once and process what was found. Return the seconds until the next round."""
        files = [FileProgress(file) for file in self._poll()]
        stopped = self._send(files) if files else ""
        for progress in files:
            self._finish(progress)
        self._note_unreadable(files)
        self._note_skipped()
        if not self._away:
            self._mover.step()
        self._update_metrics()
        self._state.commit()
        if not stopped:
            return max(self._config.poll, _IDLE * self._poller.took)
        return self._longer_pause(stopped, pause)

    def _poll(self) -> list[WatchedFile]:
        """Return the complete files. A folder that is away for a while does not end the service."""
        now = self._clock()
        try:
            files = self._poller.poll()
            if now >= self._expire_at:
                self._state.expire(self._poller.path, now)
                self._expire_at = now + EXPIRE_EVERY
        except OSError as error:
            reason = f"{self._poller.path}: {error.strerror or error}"
            if reason != self._away:
                self._note(f"{reason}; looking again every {self._config.poll:g} s")
            self._away = reason
            return []
        self._away = ""
        return files

    def _send(self, files: list[FileProgress]) -> str:
        """Send the files and wait for all responses. Return why the exporter has stopped, or ""."""
        exporter = self.exporter or self._connected()
        for batch in batches(
            self._documents(files),
            tenant=self._config.tenant,
            observed_at=self._clock,
            resource=self._config.resource,
            target_spans=self._config.target_spans,
            on_failed=self._refuse_defect,
        ):
            # The plans are on disk before anything is sent, so that it is sent in the same way the next time.
            self._state.commit()
            if not exporter.submit(batch):
                break
            self._settle()
        exporter.flush()
        self._settle()
        for pending in (*self._sending.values(), *self._snapshots.drain()):
            pending.not_sent()  # given to a batch that was never submitted, or not even that
        self._sending.clear()
        if not exporter.stopped:
            return ""
        self._retry_after = exporter.retry_after
        self._disconnect()
        return exporter.stopped

    def _connected(self) -> OtlpExporter:
        exporter = self.exporter = self._connect(lambda *settled: self._settled.append(settled))
        self._registration.callback(self._metrics.register(lambda: export_samples(exporter.stats.report())))
        return exporter

    def _documents(self, files: list[FileProgress]) -> Iterator[Run | RunSpans]:
        """Yield what the receiver does not have."""
        for progress in files:
            file = progress.file
            before = self._state.start_file(file.name, file.stat, partial(prefix_digest, file.path))
            for run in self._read(progress):
                plan = self._plan(run, progress, new=progress.offset > before)
                if plan is None:
                    continue
                reason = self._state.rejection(run)
                if reason is None:
                    yield from self._items(self._snapshots.put(run, plan, progress))
                else:
                    progress.reject(run.id, reason)
            reverted = self._state.reverted_runs(file.stat.modified)
            if reverted:
                yield from self._resend(progress, reverted)
            progress.read = True
        yield from self._items(self._snapshots.drain())

    def _plan(self, run: Run, progress: FileProgress, *, new: bool) -> SendPlan | None:
        try:
            return self._state.plan_send(run, self._clock(), new=new)
        except StoreError:
            raise
        except Exception as error:
            progress.refuse_defect(f"run {run.id}", error)
            return None

    def _resend(self, progress: FileProgress, reverted: set[bytes]) -> Iterator[Run | RunSpans]:
        """Yield the runs of which a file ends with an older version, which reverts a change."""
        last = {}
        again = FileProgress(progress.file)
        for run in self._read(again):
            if (trace_id := self._state.trace_id(run)) in reverted:
                last[trace_id] = run
        progress.unsent |= again.unsent
        for run in last.values():
            if self._state.rejection(run) is not None:
                continue
            plan = self._state.plan_resend(run, self._clock())
            yield from self._items(self._snapshots.put(run, plan, progress))

    def _read(self, progress: FileProgress) -> Iterator[Run]:
        """Yield the runs of a file. Whatever goes wrong with one of them does not affect the others."""
        try:
            found = pieces(progress.file.path, follow_symlinks=self._config.follow_symlinks)
            yield from self._read_pieces(progress, found)
        except ConfigError as error:
            progress.fail(error)  # it was deleted, or cannot be opened now
        except DocumentError as error:
            progress.refuse(error)
        except Exception as error:
            progress.refuse_defect(f"{progress.file.path} after byte {progress.offset}", error)

    def _read_pieces(self, progress: FileProgress, found: Iterator[RawDocument]) -> Iterator[Run]:
        for piece in found:
            progress.offset = piece.end_offset
            try:
                document = parse(piece)
            except Exception as error:
                progress.refuse_defect(piece.where, error)
                continue
            if not isinstance(document, DocumentError):
                progress.documents += 1
                progress.cut = False
                yield document
            elif isinstance(document.__cause__, OSError):
                progress.fail(document)
            else:
                progress.refuse(document)

    def _items(self, found: Iterator[PendingRun]) -> Iterator[Run | RunSpans]:
        """Yield what to send of each run: the spans that the receiver does not have."""
        for pending in found:
            run, plan = pending.run, pending.plan
            self._sending[id(run.text)] = pending
            observed = ObservedRun(run, plan.observed_at, plan.after_root)
            try:
                item = observed.without_acked(self._state.spans, plan.key[0], self._config.tenant, self._clock())
            except StoreError:
                raise
            except Exception as error:
                self._refuse_defect(run, error)
                continue
            pending.whole = item is run
            yield item

    def _refuse_defect(self, run: Run, error: Exception) -> None:
        """Record a run that cannot be encoded in the files that contain it."""
        for progress in self._sending.pop(id(run.text)).files:
            progress.refuse_defect(f"run {run.id}", error)

    def _settle(self) -> None:
        """Record the responses that came since the last time."""
        acked: list[SendPlan] = []
        while self._settled:
            spans, status, reason = self._settled.popleft()
            for run in spans:
                pending = self._sending.pop(id(run.text), None)
                if pending is None:
                    continue
                if status is RunStatus.ACCEPTED:
                    acked += pending.settles
                    if not pending.whole:
                        self._state.add_acked_spans(pending.plan, run.step_digests, self._clock())
                elif status is RunStatus.NOT_SENT:
                    pending.not_sent()
                else:
                    self._state.mark_rejected(pending.plan, reason)
                    for progress in pending.files:
                        progress.reject(run.run_id, reason)
        self._state.mark_acked(acked)

    def _finish(self, progress: FileProgress) -> None:
        """Decide whether a file is processed. It is tried again when that fails."""
        try:
            self._finish_read(progress)
        except StoreError:
            raise
        except Exception as error:
            _log.exception("%s", progress.file.path)
            progress.unreadable = str(item_error(error, progress.file.path))

    def _finish_read(self, progress: FileProgress) -> None:
        """Decide whether a file is processed, and report its errors once."""
        file = progress.file
        if not progress.read or progress.unsent:
            return
        if not self._poller.is_same(file):
            file.since = self._poller.clock()  # it changed while it was read: wait again
            return
        if (progress.cut or progress.empty) and not self._poller.is_overdue(file):
            return
        if progress.empty:
            self._poller.done(file, FileStatus.EMPTY)
            return
        for line in progress.errors:
            self._note(line)
        if more := progress.refused + progress.rejected - len(progress.errors):
            self._note(f"{file.path}: … {more:,} more")
        status = (
            FileStatus.REJECTED if progress.rejected else FileStatus.BROKEN if progress.refused else FileStatus.SENT
        )
        self._counts[WATCHED] += 1
        self._counts[REFUSED] += progress.refused
        self._poller.done(file, status)

    def _note_unreadable(self, files: list[FileProgress]) -> None:
        """Report files that the system does not let be read, once each."""
        poller = self._poller
        unreadable = [progress for progress in files if progress.unreadable and not progress.file.noted]
        new = [each for each in unreadable if poller.is_overdue(each.file) and poller.is_same(each.file)]
        for progress in new:
            progress.file.noted = True
        for progress in new[:MAX_NAMED]:
            self._note(f"{progress.file.path}: cannot be read: {progress.unreadable}; it is tried again and again")
        if more := len(new[MAX_NAMED:]):
            self._note(f"{poller.path}: … {more:,} more that cannot be read")

    def _note_skipped(self) -> None:
        """Report what is not read although it may contain documents, once each."""
        by_reason: dict[str, list[str]] = {}
        for path, reason in self._poller.newly_skipped():
            by_reason.setdefault(reason, []).append(path)
        for reason, paths in by_reason.items():
            more = f" and {len(paths) - MAX_NAMED:,} more" if len(paths) > MAX_NAMED else ""
            self._note(f"{', '.join(sorted(paths)[:MAX_NAMED])}{more}: not read: {reason}")

    def _update_metrics(self) -> None:
        count, oldest = self._state.unfinished()
        self._gauges = {
            UNFINISHED: count,
            OLDEST_UNFINISHED: oldest,
            WATCH_PENDING: self._poller.pending,
            WATCH_FAILED: self._state.failed_files(),
        }
