"""The loop of a sync, which connects the platform, the checkpoint and the receiver.

One thread, that of ``SyncEngine.run``, decides and writes the checkpoint. Others fetch, list and send, and post the
results to it. In each round the results are handled in one transaction, which also stores what is about to be sent, and
is sent only after the commit. So after a kill at any moment the checkpoint contains each document that the receiver may
have, and none as acknowledged that it does not have.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Final

from runspan import errors
from runspan.delivery import DeadLetters
from runspan.model.document import Run
from runspan.model.timestamps import SECOND
from runspan.otlp.protobuf_writer import Resource
from runspan.platform_api.client import PlatformClient
from runspan.platform_api.schema import RunListPage
from runspan.sync.checkpoint import Checkpoint, TrackedRun, TrackState
from runspan.sync.context import MAX_FAILURES, MAX_PAUSE, SyncConfig, SyncContext, SyncTotals
from runspan.sync.list_crawler import ListCrawler, ListScan
from runspan.sync.queues import Connect, FetchQueue, Job, SendQueue, known_digest
from runspan.sync.report import SyncMonitor, SyncProgress, SyncReport

_ROUND: Final = 0.25
"""Seconds after which a round ends that has no results to handle."""

_MAX_RESULTS: Final = 500
"""Results that are handled in one transaction."""

_DOWN_AFTER: Final = 20.0
"""Seconds without a response after which the platform counts as down, and gets one request at a time."""

_ALL_FORBIDDEN: Final = 20
"""Documents that are forbidden before any is fetched, after which the API key lacks the permission to read them."""

_PROBE_EVERY: Final = 2.0
_SHARE_EVERY: Final = 0.5
_RECONNECT_AFTER: Final = 5.0
_MAX_RECONNECT_DELAY: Final = 300.0


class SyncEngine:
    """Syncs until the receiver has everything or, with ``SyncConfig.follow``, until ``stop``.

    - ``platform``: the source of runs, closed when the sync ends.
    - ``checkpoint``, ``dead_letters``: opened and closed by the caller.
    - ``connect``: see ``queues.Connect``.
    - ``halt``: called when the sync ends, to interrupt the platform client's pauses.
    - ``clock``: returns nanoseconds since 1970.
    - ``totals``: those of the engine before, if the sync begins again.
    - ``log``: shows a line to the user.
    - ``on_progress``: called a few times a second.
    """

    def __init__(
        self,
        config: SyncConfig,
        platform: PlatformClient,
        checkpoint: Checkpoint,
        *,
        connect: Connect,
        halt: Callable[[], None],
        dead_letters: DeadLetters,
        tenant: str,
        resource: Resource,
        clock: Callable[[], int] = time.time_ns,
        totals: SyncTotals | None = None,
        log: Callable[[str], None] = lambda message: None,
        on_progress: Callable[[SyncProgress], None] = lambda progress: None,
    ) -> None:
        self._config = config
        self._platform = platform
        self._checkpoint = checkpoint
        self._halt = halt
        self._clock = clock
        self._results: SimpleQueue[Job] = SimpleQueue()
        self._fetchers = _Workers("fetch", config.concurrency, self._results.put)
        self._lister = _Workers("list", 1, self._results.put)
        self._sender = _Workers("send", 1, self._results.put)
        self._context = SyncContext(config, checkpoint, clock, dead_letters, log, totals=totals or SyncTotals())
        self._sends = SendQueue(
            self._context,
            connect,
            post=self._results.put,
            submit=self._sender.submit,
            tenant=tenant,
            resource=resource,
        )
        self._fetches = FetchQueue(
            self._context, self._sends.add, is_contested=lambda: platform.rate_limiter.is_contested
        )
        self._lists = ListCrawler(self._context)
        self._monitor = SyncMonitor(self._context, platform, self._sends, self._lists, on_progress)
        self._stopping = False
        self._error: errors.RunspanError | None = None
        self._reconnect_at = 0.0
        self._reconnect_delay = _RECONNECT_AFTER
        self._probe_at = 0.0
        self._last_round_at = 0
        self._forbidden = 0
        self._share_at = 0.0

    def stop(self) -> None:
        """Fetch nothing more, and end after ``SyncConfig.grace`` at most. Any thread or signal handler may call it."""
        self._stopping = True
        self._results.put(lambda: None)

    def run(self) -> SyncReport:
        """Return the report when the sync is complete or stopped.

        Errors that end the sync are raised after the requests in flight have ended: Unauthorized and Forbidden if the
        platform refuses the key; BackendUnreachable, BackendRefused and RateLimited if the platform or the receiver
        fails for too long; StoreError if the checkpoint cannot be written. If the sync follows, only StoreError is
        raised once the platform has worked (``known_to_work``).
        """
        try:
            self._prepare()
            while not (self._stopping or self._error or self._is_complete()):
                self._round()
                self._end_with(self._monitor.update())
                if not (self._stopping or self._error):
                    self._share()
                    self._fetch()
                    self._list()
                    self._checkpoint.commit()
            self._drain()
        finally:
            self._halt()
            self._sends.close()
            self._platform.close()
            for workers in (self._fetchers, self._lister, self._sender):
                workers.close()
        if self._error is not None:
            raise self._error
        return self.report()

    @property
    def known_to_work(self) -> bool:
        """Whether the address and the key are right: the platform has answered, to this sync or an earlier one."""
        return self._lists.known_to_work

    @property
    def latest(self) -> SyncProgress:
        """The progress of a moment ago, for any thread."""
        return self._monitor.latest

    def report(self) -> SyncReport:
        """Return the report so far."""
        interrupted = "interrupted" if self._stopping and not self._config.follow else ""
        return self._monitor.report(str(self._error) if self._error is not None else interrupted)

    def _prepare(self) -> None:
        """Schedule runs that an earlier sync left."""
        config, checkpoint = self._config, self._checkpoint
        checkpoint.forget_failures()
        self._last_round_at = self._clock()
        checkpoint.clamp_due(self._last_round_at + MAX_PAUSE)
        if not config.follow:
            checkpoint.reschedule(TrackState.OPEN)
        if config.resend:
            if checkpoint.has_other_workers:
                hint = "stop the others, run this one, and start them again"
                raise errors.ConfigError(where="--resend", expected="one sync", got="several with this file", hint=hint)
            checkpoint.resend(self._clock() - config.resend)
        if config.retry_refused and self._context.totals.refused_before is None:
            checkpoint.reschedule(TrackState.REFUSED)
        totals = self._context.totals
        if totals.refused_before is None:
            totals.refused_before = 0 if config.retry_refused else checkpoint.counts[TrackState.REFUSED]
        checkpoint.commit()

    def _is_complete(self) -> bool:
        if self._config.follow or not self._lists.done:
            return False
        busy = self._context.in_progress or self._sends.in_flight or self._sends.waiting or self._fetches.in_flight
        return not busy and not self._fetches.has_runs(self._clock())

    def _round(self) -> None:
        """Handle results, and send what is ready."""
        self._handle_clock_reset()
        self._handle_results()
        batches = self._sends.take_batches(idle=not self._fetches.in_flight)
        self._checkpoint.commit()
        for batch in batches:
            self._sends.send(batch)
        self._restart_exporter()

    def _handle_results(self) -> None:
        """Wait for a result, and handle those that are there."""
        for number in range(_MAX_RESULTS):
            try:
                handle = self._results.get(timeout=0.0 if number else _ROUND)
            except Empty:
                return
            handle()

    def _handle_clock_reset(self) -> None:
        """Discard times that were stored by a clock that was ahead."""
        before, self._last_round_at = self._last_round_at, self._clock()
        if self._last_round_at < before - SECOND:  # a smaller step is a regular correction
            self._checkpoint.clamp_due(self._last_round_at)
            self._fetches.wake()

    def _restart_exporter(self) -> None:
        """Replace an exporter that has stopped, once the status of all of its documents is known."""
        sends = self._sends
        sends.check()
        if sends.receiver_works:
            self._reconnect_delay = _RECONNECT_AFTER
        if not sends.stopped or sends.in_flight:
            return
        if not self._config.follow:
            kind = errors.BackendUnreachable if "took nothing" in sends.stopped else errors.BackendRefused
            self._end_with(kind(sends.stopped, hint="check --endpoint; the next sync resumes where this one stopped"))
        elif not self._reconnect_at:
            self._monitor.log("receiver", f"{sends.stopped}; trying again")
            self._reconnect_at = time.monotonic() + self._reconnect_delay
            self._reconnect_delay = min(2 * self._reconnect_delay, _MAX_RECONNECT_DELAY)
        elif time.monotonic() >= self._reconnect_at:
            self._reconnect_at = 0.0
            sends.reset()

    def _share(self) -> None:
        """Leave workflows to other workers, and take over from those that were killed."""
        if time.monotonic() >= self._share_at:
            self._share_at = time.monotonic() + _SHARE_EVERY
            self._checkpoint.release({run.workflow for run in self._context.in_progress.values()})
            self._checkpoint.free_leases()

    def _fetch(self) -> None:
        """Keep each fetching thread busy, with one more request for each."""
        if self._sends.full or self._sends.stopped:
            return
        limit = 2 * self._config.concurrency
        if self._is_platform_down():
            if time.monotonic() < self._probe_at:
                return
            limit = 1
        now = self._clock()
        while self._fetches.in_flight < limit:
            # The backlog is fetched oldest first, so it has to be complete.
            run = self._fetches.next_run(now, backlog=not self._lists.first_scan_in_progress)
            if run is None:
                return
            self._fetchers.submit(partial(self._fetch_run, run, known_digest(run, now, self._config)))

    def _fetch_run(self, tracked: TrackedRun, known: bytes) -> Job:
        """Fetch a document, unless it is the known one. Return the job that handles what came of it."""
        try:
            response = self._platform.document(tracked.run_id, known)
            fetched_at = self._clock()
            found = None if response is None else (_parse(response.text, tracked.run_id), response)
        except Exception as error:
            return partial(self._fetch_failed, tracked, errors.item_error(error, f"run {tracked.run_id}"))
        return partial(self._fetches.fetched, tracked, found, fetched_at)

    def _fetch_failed(self, run: TrackedRun, error: errors.RunspanError) -> None:
        self._probe_at = time.monotonic() + _PROBE_EVERY
        self._fetches.failed(run, error, platform_down=self._is_platform_down())
        if self._config.follow and run.failures >= MAX_FAILURES:
            self._monitor.log("runs", f"run {run.run_id} cannot be fetched: {error}; trying again")
        if isinstance(error, errors.Forbidden):
            self._forbidden += 1
            if self._forbidden < _ALL_FORBIDDEN or self._context.counts.fetched:
                return  # of one run, because the list is allowed
        if self._is_final(error):
            self._end_with(error)

    def _list(self) -> None:
        """Request the next page, if no page is requested."""
        now = self._clock()
        scan = self._lists.next_scan(now, has_backlog=partial(self._fetches.has_backlog, now))
        if scan is not None:
            self._lister.submit(partial(self._read_page, scan))

    def _read_page(self, scan: ListScan) -> Job:
        """Request a page. Return the job that handles what came of it."""
        filter_ = scan.filter
        try:
            page = self._platform.runs(
                workflow_id=filter_.workflow_id, status=filter_.status, since=scan.since, cursor=scan.cursor
            )
        except Exception as error:
            return partial(self._list_failed, scan, errors.item_error(error, "a page of the list"))
        return partial(self._add_page, scan, page)

    def _add_page(self, scan: ListScan, page: RunListPage) -> None:
        try:
            self._end_with(self._lists.add_page(scan, page))
        except errors.StoreError:
            raise
        except Exception as error:
            self._list_failed(scan, errors.item_error(error, "a page of the list"))
        self._fetches.wake()

    def _list_failed(self, scan: ListScan, error: errors.RunspanError) -> None:
        if self._is_final(error):
            self._end_with(error)
        self._end_with(self._lists.fail(scan, error))

    def _is_platform_down(self) -> bool:
        return self._platform.unanswered_for > _DOWN_AFTER

    def _is_final(self, error: errors.RunspanError) -> bool:
        """Whether an error of the platform ends the sync."""
        if isinstance(error, (errors.Unauthorized, errors.Forbidden)):
            return not (self._config.follow and self.known_to_work)  # a key may be replaced, and is read again
        unanswered = self._platform.unanswered_for > self._config.retry_max_time
        return unanswered and not self._config.follow and isinstance(error, errors.BackendError)

    def _end_with(self, error: errors.RunspanError | None) -> None:
        """End the sync with the first error that ends it."""
        self._error = self._error or error

    def _drain(self) -> None:
        """Start nothing more, and wait a while for the status of what is in flight to the receiver."""
        self._fetches.release()
        if isinstance(self._error, errors.StoreError):
            return
        deadline = time.monotonic() + self._config.grace
        while self._sends.in_flight and not self._sends.stopped and time.monotonic() < deadline:
            self._handle_results()
            self._checkpoint.commit()
            self._sends.check()


class _Workers:
    """Threads that run jobs in their order, and post what each returns. A job raises nothing.

    They are daemons, because a response may take minutes, and the process must not wait.
    """

    def __init__(self, name: str, count: int, post: Callable[[Job], None]) -> None:
        self._post = post
        self._jobs: SimpleQueue[Callable[[], Job] | None] = SimpleQueue()
        self._count = count
        for number in range(count):
            threading.Thread(target=self._work, name=f"runspan-sync-{name}-{number}", daemon=True).start()

    def submit(self, job: Callable[[], Job]) -> None:
        """Run the job once a thread is idle."""
        self._jobs.put(job)

    def close(self) -> None:
        """End each thread after the jobs that were submitted, without waiting for it."""
        for _ in range(self._count):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._post(job())


def _parse(text: bytes, run_id: str) -> Run | errors.DocumentError:
    """Return the run of a document, or why it cannot be carried."""
    where = f"run {run_id}"
    try:
        run = Run.from_json(text, where=where)
    except errors.DocumentError as error:
        return error
    if run.id != run_id:
        return errors.DocumentError(where=f"{where} id", expected=repr(run_id), got=repr(run.id))
    return run
