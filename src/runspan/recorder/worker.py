"""``Sender``: the thread that sends what is due, reads every answer, and counts what is given up."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from random import Random
from typing import Final

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, set_value
from opentelemetry.sdk.trace import ReadableSpan

from runspan.delivery import Accepted, DeadLetters, ExportResult, PartialSuccess, Rejected, RejectionScope, Retryable
from runspan.errors import SettingError
from runspan.recorder.config import ExportConfig
from runspan.recorder.delta import RunDelta, RunExportState
from runspan.recorder.outbox import Outbox
from runspan.recorder.sinks import SpanSink
from runspan.recorder.state import RunSession
from runspan.recorder.stats import Counters

_log = logging.getLogger("runspan.recorder")

_GRACE: Final = 1.0
"""Seconds that the end waits for an answer that is on its way."""
_LONGEST_ASKED: Final = 300.0
"""Seconds that a receiver may ask to wait."""


class ExportWorker:
    """Owns an outbox, and sends from it. outlet: made when first needed, and again in a forked child, whose connections
    must not be the parent's. clock: nanoseconds since 1970. monotonic: seconds. letters: keeps the documents of runs
    that are given up."""

    def __init__(
        self,
        outlet: Callable[[], SpanSink],
        counts: Counters,
        pace: ExportConfig,
        *,
        clock: Callable[[], int],
        monotonic: Callable[[], float],
        random: Random,
        letters: DeadLetters | None = None,
        exception_events: bool = True,
        disabled: bool = False,
    ) -> None:
        self._make_outlet = outlet
        self._counts = counts
        self._pace = pace
        self._clock = clock
        self._monotonic = monotonic
        self._random = random
        self._letters = letters
        self._letters_path = "" if letters is None else letters.path
        self._reopened_path = self._letters_path
        self._exception_events = exception_events
        self._disabled = disabled
        self._fresh()

    def _fresh(self) -> None:
        self._outlet: SpanSink | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.RLock()
        self._keeping = threading.RLock()
        self._failures = 0
        self._shut = False
        self.outbox = Outbox(
            self._counts, self._pace, self._monotonic, self._start, self._give_up, disabled=self._disabled
        )

    def mark(self, live: RunSession, urgent: bool) -> None:
        """See ``Outbox.mark``; of whichever outbox there is, since a forked child has its own."""
        self.outbox.mark_dirty(live, urgent)

    def after_fork(self) -> None:
        """In the child: nothing of the parent's is sent from here. Its dead letters go into a file of its own, made
        when it needs one, since the parent removes an empty one at its end."""
        self.outbox.disown()
        if self._letters_path:
            self._reopened_path = f"{self._letters_path}.{os.getpid()}"
            self._letters = None
        self._fresh()

    def close(self, timeout: float) -> None:
        """Flushes, gives up what is left then, and counts it. Calling it twice is allowed."""
        if self.outbox.closed:
            return
        self.outbox.flush(timeout)
        self.outbox.close()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(min(timeout, _GRACE))
        for post in self.outbox.drain():
            self._give_up(post, "the time to shut down was over")
        if self._outlet is not None:
            self._outlet.close()
        with self._keeping:
            self._shut = True
            self._put_letters_away()

    # The thread.

    def _start(self) -> None:
        if self._thread is not None:
            return
        with self._starting:
            if self._thread is None:
                # A daemon: whoever exits does not wait for a receiver longer than ``close`` does.
                thread = threading.Thread(target=self._work, name="runspan-recorder", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    # No thread can be had, as at the end of the interpreter: the next change tries again.
                    self._counts.trouble = str(error)
                    return
                self._thread = thread

    def _work(self) -> None:
        attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))  # an instrumented HTTP client would record our requests
        outbox = self.outbox
        while (taken := outbox.get_due()) is not None:
            posts, foreign = taken
            try:
                self._send(posts, foreign)
            except Exception as error:
                self._counts.add("defects")
                _log.exception("runspan.Recorder: an error of its own; what was to be sent is tried again")
                for post in posts:
                    self._later(post, f"internal error: {type(error).__name__}")
            finally:
                outbox.finish_round(posts)

    def _send(self, posts: list[RunExportState], foreign: list[ReadableSpan]) -> None:
        if self._outlet is None:
            self._outlet = self._make_outlet()
        parcels = self._read(posts)
        last: ExportResult = Accepted()
        if parcels:
            outcomes = self._outlet.send(parcels)
            for parcel, outcome in outcomes:
                self._settle(parcel, outcome)
            last = outcomes[-1][1]
        if foreign:
            if _is_later(last):
                self.outbox.requeue(foreign)
            else:
                last = self._outlet.send_foreign(foreign)
                self._settle_foreign(foreign, last)
        self._rest(last)

    def _read(self, posts: list[RunExportState]) -> list[RunDelta]:
        now = self._clock()
        parcels = []
        for post in posts:
            try:
                parcels.append(post.build_delta(now, self._exception_events))
            except Exception:
                self._counts.add("defects")
                self.outbox.forget(post)
                _log.exception("runspan.Recorder: run %s cannot be encoded", post.live.record.id)
                self._give_up(post, "it cannot be encoded")
        return parcels

    # What came of it.

    def _settle(self, parcel: RunDelta, outcome: ExportResult) -> None:
        spans = len(parcel.spans)
        rejected = 0
        match outcome:
            case PartialSuccess(rejected_spans, message):
                # It does not say which, and OTLP forbids to send them again.
                rejected = min(rejected_spans, spans)
                parcel.post.damaged = True
                told = f"{rejected} of {spans} spans rejected: {message or 'no reason given'}"
                _log.error("runspan.Recorder: run %s: %s", parcel.run.id, told)
            case Rejected(reason, scope) if scope is not RejectionScope.ENDPOINT:
                self._refused(parcel, reason)
                return
            case Rejected(reason, _) | Retryable(reason):
                self._later(parcel.post, reason)
                return
        parcel.acknowledged()
        self._counts.add("spans_rejected", rejected)
        self._counts.add("spans_sent", spans - rejected)
        self._counts.add("snapshots_sent", not parcel.run.finished and not rejected)
        self.outbox.ack(parcel.post, parcel.final)
        if parcel.final and parcel.post.damaged:
            self._give_up(parcel.post, "the receiver refused some of its spans")
        elif parcel.run.finished:
            self._counts.add("runs_delivered")

    def _refused(self, parcel: RunDelta, reason: str) -> None:
        """Nothing of it was taken. Whatever it lacks goes with the next snapshot, and at last with the end of the run:
        only a refusal of that is one of the run."""
        post = parcel.post
        if parcel.final:
            self._counts.add("spans_rejected", len(parcel.spans))
            self.outbox.forget(post)
            self._give_up(post, f"the receiver refused it: {reason}")
            return
        if not post.failures:
            _log.warning("runspan.Recorder: run %s as it stands is refused: %s", parcel.run.id, reason)
        self._counts.add("retries")
        self._later(post, reason)

    def _later(self, post: RunExportState, reason: str) -> None:
        post.failures += 1
        self._counts.trouble = reason
        self.outbox.retry_later(post, self._backoff(post.failures))

    def _settle_foreign(self, spans: list[ReadableSpan], outcome: ExportResult) -> None:
        match outcome:
            case Accepted():
                self._counts.add("foreign_sent", len(spans))
            case PartialSuccess(rejected_spans, _):
                self._counts.add("foreign_sent", max(0, len(spans) - rejected_spans))
                self._counts.add("foreign_dropped", min(len(spans), rejected_spans))
            case Rejected(_, scope) if scope is not RejectionScope.ENDPOINT:
                self._counts.add("foreign_dropped", len(spans))
            case Rejected(reason, _) | Retryable(reason):
                self._counts.trouble = reason
                self.outbox.requeue(spans)

    def _rest(self, last: ExportResult) -> None:
        """After a round whose last request was not taken, the receiver rests a while, as long as it asks for."""
        where = "" if self._outlet is None else self._outlet.endpoint
        if not _is_later(last):
            if self._failures:
                _log.info("runspan.Recorder: %s takes spans again", where)
            self._failures = 0
            self._counts.trouble = last.reason if isinstance(last, Rejected) else ""
            return
        self._failures += 1
        self._counts.add("retries")
        asked = last.delay if isinstance(last, Retryable) and last.delay else 0.0
        self.outbox.pause(max(self._backoff(self._failures), min(asked, _LONGEST_ASKED)))
        if self._failures == 1:
            _log.warning("runspan.Recorder: %s takes nothing, to be tried again: %s", where, self._counts.trouble)

    def _backoff(self, failures: int) -> float:
        longest: float = min(self._pace.retry_longest, self._pace.retry_first * 2 ** min(failures - 1, 16))
        return longest * (0.5 + self._random.random() / 2)

    def _give_up(self, post: RunExportState, reason: str) -> None:
        """The receiver lacks some of this run and will not get it from here."""
        # A run that went on at the shutdown is given up then, and once more when it has ended.
        first, post.live.lost = not post.live.lost, True
        where = self._keep(post.live.record.document().text)
        if first:
            self._counts.dropped(bool(where))
        told = f"kept in {where}" if where else "not kept"
        _log.error("runspan.Recorder: run %s is not delivered: %s; %s", post.live.record.id, reason, told)

    def _keep(self, text: bytes) -> str:
        """The file that has the document now, or nothing."""
        with self._keeping:
            if self._letters is None and self._reopened_path:
                try:
                    self._letters = DeadLetters(self._reopened_path)
                except SettingError as error:
                    _log.error("runspan.Recorder: %s", error)
            if self._letters is None:
                return ""
            before = self._letters.kept
            self._letters.write_text(text)
            where = self._letters.path if self._letters.kept > before else ""
            if self._shut:
                self._put_letters_away()
            return where

    def _put_letters_away(self) -> None:
        """On disk, and opened again for what comes later."""
        if self._letters is not None:
            self._letters.close()
            self._letters = None


def _is_later(outcome: ExportResult) -> bool:
    """Whether asking again can help: later, or once somebody mended the settings of the receiver."""
    return isinstance(outcome, Retryable) or (
        isinstance(outcome, Rejected) and outcome.scope is RejectionScope.ENDPOINT
    )
