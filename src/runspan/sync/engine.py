"""``Sync``: the platform's lists and documents, the checkpoint and the receiver put together, until all is done.

One thread, that of ``run``, decides and writes the checkpoint; others fetch, list and send, and post what came of it.
In each round everything posted is settled in one transaction, and what is to be sent is written down in it; only then
is it handed over. So after a kill at any moment the checkpoint knows of each document that the receiver may have, and
of none as taken that it does not have.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final

from runspan.delivery import DeadLetters
from runspan.errors import (
    BackendError,
    BackendRefused,
    BackendUnreachable,
    DocumentError,
    Forbidden,
    RunspanError,
    StoreError,
    Unauthorized,
)
from runspan.model.run import Run
from runspan.model.timestamps import SECOND
from runspan.otlp.protobuf_writer import Resource
from runspan.platform_api import PlatformClient, RunListPage
from runspan.sync.checkpoint import Checkpoint, TrackedRun, TrackState
from runspan.sync.context import SyncConfig, SyncContext
from runspan.sync.fetch_queue import FetchQueue
from runspan.sync.list_crawler import ListCrawler
from runspan.sync.list_scan import ListScan
from runspan.sync.monitor import SyncMonitor
from runspan.sync.policy import GIVE_UP_AFTER, LONGEST_PAUSE
from runspan.sync.report import SyncProgress, SyncReport
from runspan.sync.send_queue import Connect, SendQueue
from runspan.sync.workers import Workers

_TICK: Final = 0.25
_BURST: Final = 500
_DOWN_AFTER: Final = 20.0
_PROBE_EVERY: Final = 2.0
_RECONNECT_AFTER: Final = 5.0
_RECONNECT_LONGEST: Final = 300.0


class SyncEngine:
    """Syncs until everything is there, or, if it follows, until ``stop``.

    platform: where runs come from; halt: ends its waits, called when the sync ends. connect: see ``Sends``.
    on_progress: told how far it is, a few times a second. retry_refused: whether runs refused by an earlier sync are
    tried again. workers: of the delivery. The checkpoint and the letters are the caller's to close.
    """

    def __init__(
        self,
        settings: SyncConfig,
        platform: PlatformClient,
        checkpoint: Checkpoint,
        *,
        connect: Connect,
        halt: Callable[[], None],
        letters: DeadLetters,
        tenant: str,
        resource: Resource,
        workers: int = 4,
        retry_refused: bool = False,
        clock: Callable[[], int] = time.time_ns,
        note: Callable[[str], None] = lambda words: None,
        on_progress: Callable[[SyncProgress], None] = lambda progress: None,
    ) -> None:
        self._settings = settings
        self._platform = platform
        self._checkpoint = checkpoint
        self._halt = halt
        self._clock = clock
        self._events: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._desk = SyncContext(settings, checkpoint, clock, letters, note)
        self._sends = SendQueue(self._desk, connect, self._post, self._defect, tenant, resource, workers)
        self._fetches = FetchQueue(self._desk, self._sends.add)
        self._lists = ListCrawler(self._desk)
        self._retry_refused = retry_refused
        self._watch = SyncMonitor(self._desk, platform, self._sends, self._lists, on_progress)
        self._stopping = False
        self._error: BaseException | None = None
        self._send_again_at = 0.0
        self._send_pause = _RECONNECT_AFTER
        self._probe_at = 0.0
        self._seen = 0
        self._fetching = Workers("sync-fetch", settings.concurrency, self._defect)
        self._listing = Workers("sync-list", 1, self._defect)

    def stop(self) -> None:
        """Ends the sync: nothing more is fetched, and what is under way to the receiver gets its grace. May be called
        from a signal's handler and from any thread."""
        self._stopping = True
        self._events.put(lambda: None)

    def run(self) -> SyncReport:
        """Returns when it is done or stopped; raises what makes going on useless, after what is under way was settled.

        Unauthorized, Forbidden: the key is refused. BackendUnreachable, BackendRefused, RateLimited: the platform or
        the receiver, unless it follows and that may be over. StoreError: the checkpoint cannot be written.
        """
        try:
            self._prepare()
            while not (self._stopping or self._error or self._done()):
                self._round(_TICK)
                self._give_up(self._watch.update())
                if not (self._stopping or self._error):
                    self._fetch()
                    self._list()
            self._drain()
        finally:
            self._halt()
            self._sends.close()
            self._platform.close()
        if self._error is not None:
            raise self._error
        return self.report()

    @property
    def latest(self) -> SyncProgress:
        """How far it was a moment ago, for any thread."""
        return self._watch.latest

    def report(self) -> SyncReport:
        """How it stands."""
        interrupted = "interrupted" if self._stopping and not self._settings.follow else ""
        return self._watch.report(str(self._error) if self._error is not None else interrupted)

    def _prepare(self) -> None:
        """What an earlier sync left is looked at again."""
        checkpoint = self._checkpoint
        checkpoint.begin()
        checkpoint.forget_failures()
        self._seen = self._clock()
        checkpoint.clamp_due(self._seen + LONGEST_PAUSE)
        if not self._settings.follow:
            checkpoint.reschedule((TrackState.OPEN,))
        if self._settings.resend:
            checkpoint.resend(self._clock() - self._settings.resend)
        if self._retry_refused:
            checkpoint.reschedule((TrackState.REFUSED,))
        else:
            self._watch.refused_before = checkpoint.counts[TrackState.REFUSED]
        checkpoint.commit()

    def _done(self) -> bool:
        if self._settings.follow or not self._lists.done:
            return False
        idle = not (self._desk.busy or self._sends.in_flight or self._sends.waiting or self._fetches.asked)
        return idle and not self._fetches.left(self._clock())

    def _round(self, timeout: float) -> None:
        """Settles what was posted, and hands over what is to be sent."""
        events = self._posted(timeout)
        self._checkpoint.begin()
        self._handle_clock_reset()
        for event in events:
            event()
        idle = not self._fetches.asked
        lots = self._sends.take_batches(idle=idle)
        self._checkpoint.commit()
        for lot in lots:
            self._sends.submit(lot)
        self._restart_exporter()

    def _handle_clock_reset(self) -> None:
        """Moments that were written down by a clock that was ahead are no time to wait for."""
        before, self._seen = self._seen, self._clock()
        if self._seen < before - SECOND:  # less than that is a clock that is kept right
            self._checkpoint.clamp_due(self._seen)
            self._fetches.wake()

    def _posted(self, timeout: float) -> list[Callable[[], None]]:
        events = []
        try:
            events.append(self._events.get(timeout=timeout))
            while len(events) < _BURST:
                events.append(self._events.get_nowait())
        except Empty:
            pass
        return events

    def _restart_exporter(self) -> None:
        """A delivery that has stopped is closed once all of its documents came back, and replaced if that may help."""
        sends = self._sends
        sends.check()
        if sends.proved:
            self._send_pause = _RECONNECT_AFTER
        if not sends.stopped or sends.in_flight:
            return
        reason = sends.stopped
        if not self._settings.follow:
            kind = BackendUnreachable if "took nothing" in reason else BackendRefused
            self._error = self._error or kind(reason, hint="check --endpoint; the next sync goes on from here")
            return
        if not self._send_again_at:
            self._watch.log("receiver", f"{reason}; trying again")
            self._send_again_at = time.monotonic() + self._send_pause
            self._send_pause = min(2 * self._send_pause, _RECONNECT_LONGEST)
        elif time.monotonic() >= self._send_again_at:
            self._send_again_at = 0.0
            sends.renew()

    # Fetching and listing.

    def _fetch(self) -> None:
        """Keeps as many requests in flight as are wanted, and one more for each thread ready to go."""
        if self._sends.full or self._sends.stopped:
            return
        room = 2 * self._settings.concurrency
        if self._is_down():
            if time.monotonic() < self._probe_at:
                return
            room = 1  # to see whether it is over
        now = self._clock()
        while self._fetches.asked < room:
            entry = self._fetches.next(now, backlog=not self._lists.walking)
            if entry is None:
                return
            self._fetching.submit(self._fetching_of(entry))

    def _fetching_of(self, entry: TrackedRun) -> Callable[[], None]:
        def job() -> None:
            try:
                got = self._platform.document(entry.run_id)
            except RunspanError as error:
                failure = error
                self._post(lambda: self._not_fetched(entry, failure))
                return
            seen = self._clock()
            run = _read(got.text, entry.run_id)
            self._post(lambda: self._fetches.take(entry, run, got, seen))

        return job

    def _list(self) -> None:
        sweep = self._lists.next(self._clock())
        if sweep is None:
            return
        each, since, cursor = sweep.filter, sweep.since, sweep.cursor

        def job() -> None:
            try:
                page = self._platform.runs(workflow_id=each.workflow_id, status=each.status, since=since, cursor=cursor)
            except RunspanError as error:
                failure = error
                self._post(lambda: self._not_listed(sweep, failure))
                return
            self._post(lambda: self._listed(sweep, page))

        self._listing.submit(job)

    def _listed(self, sweep: ListScan, page: RunListPage) -> None:
        self._give_up(self._lists.take(sweep, page))
        self._fetches.wake()

    def _not_listed(self, sweep: ListScan, error: RunspanError) -> None:
        if self._is_final(error):
            self._give_up(error)
        self._give_up(self._lists.fail(sweep, error))

    def _not_fetched(self, entry: TrackedRun, error: RunspanError) -> None:
        self._probe_at = time.monotonic() + _PROBE_EVERY
        self._fetches.fail(entry, error, everything=self._is_down())
        if self._settings.follow and entry.failures >= GIVE_UP_AFTER:
            self._watch.log("runs", f"runs cannot be fetched: {error}; trying again")
        if self._is_final(error):
            self._give_up(error)

    def _is_down(self) -> bool:
        """Whether the platform has answered nothing for a while although it was asked."""
        return self._platform.unanswered_for > _DOWN_AFTER

    def _is_final(self, error: RunspanError) -> bool:
        """Whether nothing more can come of the platform."""
        if isinstance(error, (Unauthorized, Forbidden)):
            return True
        silent = self._platform.unanswered_for > self._settings.give_up
        return silent and not self._settings.follow and isinstance(error, BackendError)

    def _give_up(self, error: RunspanError | None) -> None:
        self._error = self._error or error

    def _drain(self) -> None:
        """Nothing more is begun; what is under way to the receiver gets a while for its answer."""
        self._fetches.release()
        if isinstance(self._error, StoreError):
            return
        deadline = time.monotonic() + self._settings.grace
        while self._sends.in_flight and not self._sends.stopped and time.monotonic() < deadline:
            events = self._posted(_TICK)
            self._checkpoint.begin()
            for event in events:
                event()
            self._checkpoint.commit()
            self._sends.check()

    def _post(self, event: Callable[[], None]) -> None:
        self._events.put(event)

    def _defect(self, error: BaseException) -> None:
        """A thread ended by an exception that is not ours: the sync must neither hang nor report success."""

        def raise_it() -> None:
            raise error

        self._events.put(raise_it)


def _read(text: bytes, run_id: str) -> Run | DocumentError:
    """The run of a document, or why it cannot be carried."""
    where = f"run {run_id}"
    try:
        run = Run.from_json(text, where=where)
    except DocumentError as refusal:
        return refusal
    if run.id != run_id:
        return DocumentError(where=f"{where} id", expected=repr(run_id), got=repr(run.id))
    return run
