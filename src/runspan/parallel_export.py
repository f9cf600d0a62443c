"""The export use case on several cores: this process reads the input, and workers encode and send shares of it.

A worker is a process that runs ``export``, with an exporter of its own, over the documents that come through its pipe.
It asks for each share, so a slow one delays no other. A worker whose pipe ends stops: its parent is gone.

Workers start before this process has another thread, so that on Linux they are forked and import nothing.
"""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Final, NamedTuple, Self

from runspan.delivery import DeadLetters, ExporterConfig, ExportReport, OtlpExporter, RetryPolicy, connect
from runspan.delivery.report import ExportStats, merge_reports
from runspan.errors import DocumentError
from runspan.export import export
from runspan.model.document import Run
from runspan.otlp.protobuf_writer import Resource
from runspan.sources.files import parse
from runspan.sources.splitter import RawDocument, RawLines, flatten
from runspan.system import HANGUP, can_fork, signals_blocked

SHARE_BYTES: Final = 512 << 10
"""Bytes of documents after which a share is complete."""

_ASKED_AHEAD: Final = 2
"""Shares that a worker asks for at first, so that it encodes one while the next is on the way."""
_STATUS_EVERY: Final = 0.5
_GRACE: Final = 5.0
"""Seconds that workers have to end by themselves."""
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, HANGUP)
"""Workers ignore these: a terminal or a service manager sends them to every process, and the parent decides."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """How each worker exports. For the fields see ``export`` and ``delivery.connect``."""

    receiver: ExporterConfig
    resource: Resource
    tenant: str
    retry: RetryPolicy
    concurrency: int
    target_spans: int
    after_root: bool
    dead_letters: str | None
    """The path of a file that all workers append to."""


class _Share(NamedTuple):
    """Documents for one worker."""

    pieces: list[RawDocument | RawLines]
    read_at: int
    """When the first was read, in nanoseconds since 1970."""

    @property
    def documents(self) -> int:
        return sum([len(piece.lines) if isinstance(piece, RawLines) else 1 for piece in self.pieces])


class _Status(NamedTuple):
    """What a worker reports."""

    report: ExportReport
    asks: int = 0
    """For how many further shares."""
    last_error: str = ""
    ended: bool = False


class ParallelExporter:
    """Exports with several workers, which start and end with its ``with`` block. ``endpoint`` and ``last_error`` are
    those of ``OtlpExporter``.
    """

    def __init__(self, workers: int, config: WorkerConfig) -> None:
        self.endpoint = config.receiver.display_url
        self.stats = ExportStats()
        """Counts what no worker gets: documents that cannot be read, and links that are not followed."""
        self._config = config
        self._shares = _Shares(workers)
        self._workers: list[_WorkerProcess] = []
        self._number = workers
        self._stopped = ""

    @property
    def last_error(self) -> str:
        return next(filter(None, [worker.last_error for worker in self._workers]), "")

    def export(
        self, pieces: Iterable[RawDocument | RawLines], on_progress: Callable[[ExportReport], None] | None = None
    ) -> ExportReport:
        """Send every document, wait for all responses, and report, as ``runspan.export.export`` does.

        Of two documents of an unfinished run, the later one has the higher revision whichever workers send them.
        """
        connect(self._config.receiver).close()  # raises what would be wrong with its config in every worker
        try:
            for worker in self._workers:
                worker.start(self._config)
            for share in self._split(pieces):
                if not self._shares.put(share):
                    break
                if on_progress is not None:
                    on_progress(self.report())
            self._shares.end()
            for worker in self._workers:
                worker.thread.join()
        except KeyboardInterrupt:
            self._stopped = "interrupted"
            self._shares.stop()
            for worker in self._workers:
                worker.interrupt()
            deadline = time.monotonic() + _GRACE
            for worker in self._workers:
                worker.thread.join(max(0.0, deadline - time.monotonic()))
        return self.report()

    def __enter__(self) -> Self:
        try:
            with signals_blocked(_SIGNALS):
                for _ in range(self._number):
                    self._workers.append(_WorkerProcess(self._shares, self._workers))
        except BaseException:  # also one that has waited for this block
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._shares.stop()
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.end()

    def report(self) -> ExportReport:
        """Return the current counts of all workers."""
        return merge_reports([self.stats.report(self._stopped), *[worker.report for worker in self._workers]])

    def _split(self, pieces: Iterable[RawDocument | RawLines]) -> Iterator[_Share]:
        share, size = _Share([], time.time_ns()), 0
        for piece in pieces:
            if isinstance(piece, RawLines):
                size += sum(map(len, piece.lines))
            elif piece.error is not None:
                self.stats.refused(piece.error)
                continue
            else:
                size += len(piece.data)
            share.pieces.append(piece)
            if size >= SHARE_BYTES:
                yield share
                share, size = _Share([], time.time_ns()), 0
        if share.pieces:
            yield share


class _Shares:
    """The shares that no worker has yet, a few of them. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._shares: deque[_Share] = deque()
        self._changed = threading.Condition()
        self._ended = False

    def put(self, share: _Share) -> bool:
        """Add a share, once there is room. Return False if none is wanted any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._shares) < self._limit)
            if not self._ended:
                self._shares.append(share)
                self._changed.notify_all()
            return not self._ended

    def get(self) -> _Share | None:
        """Take the next share, once there is one; None if there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._shares)
            self._changed.notify_all()
            return self._shares.popleft() if self._shares else None

    def end(self) -> None:
        """Add no more."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Drop what is there, and add no more."""
        with self._changed:
            self._shares.clear()
        self.end()


class _WorkerProcess:
    """A worker as this process sees it. A thread gives it shares and takes its reports."""

    def __init__(self, shares: _Shares, others: Iterable[_WorkerProcess]) -> None:
        self.report = ExportReport()
        self.last_error = ""
        forks = can_fork()
        context: Any = get_context("fork" if forks else "spawn")  # the type of either has no Process
        self.connection, theirs = Pipe()
        # No pipe ends while a forked process has a copy of this end.
        copies = [self.connection, *(worker.connection for worker in others)] if forks else []
        # A daemon ends with this process however that ends.
        self._process = context.Process(target=_work, args=(theirs, copies), daemon=True)
        self._process.start()
        theirs.close()
        self._shares = shares
        self._given = 0
        """Documents that it got."""
        self._sending = threading.Lock()
        self.thread = threading.Thread(target=self._serve, name="runspan-worker", daemon=True)

    def start(self, config: WorkerConfig) -> None:
        """Let it work."""
        self._send((config, gc.get_threshold()))
        self.thread.start()

    def interrupt(self) -> None:
        """Let it stop without waiting for responses."""
        self._send(KeyboardInterrupt)

    def end(self) -> None:
        """Wait until the process has ended, but not for long."""
        self._process.join(_GRACE)
        self._process.kill()
        self._process.join()

    def _serve(self) -> None:
        while True:
            try:
                status: _Status = self.connection.recv()
            except (EOFError, OSError):
                self._died()
                break
            self.report, self.last_error = status.report, status.last_error
            if status.ended:
                break
            for _ in range(status.asks):
                share = self._shares.get()
                self._given += 0 if share is None else share.documents
                self._send(share)
        if self.report.stopped:
            self._shares.stop()

    def _died(self) -> None:
        """Report its documents without a result as those without a response."""
        self._process.join(_GRACE)
        report = self.report
        settled = report.runs_accepted + report.runs_rejected + report.runs_not_sent + report.documents_refused
        died = f"a worker process ended with exit code {self._process.exitcode}"
        stopped = report.stopped or f"{died}: export all of the input again, since the dead letters lack what it had"
        self.report = replace(report, runs_pending=self._given - settled, stopped=stopped)

    def _send(self, message: object) -> None:
        with self._sending, suppress(OSError):  # that it has ended is seen by reading
            self.connection.send(message)


def _work(connection: Connection, copies: list[Connection]) -> None:
    """Run a worker. Its last status has the complete report."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    for copy in copies:
        copy.close()
    try:
        config, gc_threshold = connection.recv()
    except EOFError:  # nothing is exported
        return
    gc.set_threshold(*gc_threshold)
    letters = None if config.dead_letters is None else DeadLetters(config.dead_letters)
    with letters or nullcontext():
        exporter = connect(config.receiver, workers=config.concurrency, retry=config.retry, dead_letters=letters)
        with exporter:
            worker = _Worker(connection, exporter)
            export(
                worker.documents(),
                exporter,
                tenant=config.tenant,
                observed_at=lambda: worker.read_at,
                resource=config.resource,
                after_root=config.after_root,
                target_spans=config.target_spans,
            )
        report = exporter.report()
    worker.send(_Status(report if letters is None else report.with_dead_letters(letters), ended=True))


class _Worker:
    """The worker's side of its pipe."""

    def __init__(self, connection: Connection, exporter: OtlpExporter) -> None:
        self.read_at = 0
        """When the current document was read, in nanoseconds since 1970."""
        self._connection = connection
        self._exporter = exporter
        self._shares: SimpleQueue[_Share | None] = SimpleQueue()
        self._interrupted = threading.Event()
        self._sending = threading.Lock()
        for target in (self._receive, self._report_errors):
            threading.Thread(target=target, daemon=True).start()

    def documents(self) -> Iterator[Run | DocumentError]:
        """Yield the documents of all shares."""
        asks = _ASKED_AHEAD
        while True:
            self.send(_Status(self._exporter.report(), asks, self._exporter.last_error))
            asks = 1
            share = self._shares.get()
            if share is None:
                return
            for index, piece in enumerate(flatten(share.pieces)):
                if self._interrupted.is_set():
                    return
                self.read_at = share.read_at + index
                yield parse(piece)

    def send(self, status: _Status) -> None:
        with self._sending, suppress(OSError):
            self._connection.send(status)

    def _receive(self) -> None:
        while not self._interrupted.is_set():
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                message = KeyboardInterrupt
            if message is KeyboardInterrupt:
                self._interrupted.set()
                self._exporter.interrupt()
                message = None
            self._shares.put(message)

    def _report_errors(self) -> None:
        """Report why requests are retried: no share is asked for meanwhile."""
        reported = ""
        while not self._interrupted.wait(_STATUS_EVERY):
            if self._exporter.last_error != reported:
                reported = self._exporter.last_error
                self.send(_Status(self._exporter.report(), last_error=reported))
