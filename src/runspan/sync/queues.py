"""The way of a document through a sync: which run is fetched next, how its document is sent, and what came of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from runspan.codec.fields import ROOT_REVISION, observed_time
from runspan.contracts import HEARTBEAT_SHARE, Document
from runspan.delivery import OnSettled, OtlpExporter, RunSpans, RunStatus
from runspan.errors import DocumentError, NotFound, QueryError, RunspanError, StoreError
from runspan.export import ObservedRun, batches
from runspan.http.client import ResponseTooLarge
from runspan.model.document import LIVE_RUN_STATUSES, Run, sort_time
from runspan.otlp.protobuf_writer import Resource
from runspan.platform_api.schema import fingerprint_of_summary
from runspan.storage.span_acks import digest_of
from runspan.sync.checkpoint import AT_ONCE, Due, TrackedRun, TrackState
from runspan.sync.context import HOUR, MAX_FAILURES, MAX_PAUSE, SyncConfig, SyncContext

REFILL: Final = 200
"""Runs that ``FetchQueue`` reads from the checkpoint at once."""

LINGER: Final = 0.2
"""Seconds that a document waits for others to be sent with it."""

MAX_BYTES: Final = 16 << 20
"""Of documents in flight to the receiver, and again of documents that wait; a single larger one passes alone."""

_EMPTY_FOR: Final = 250_000_000
"""Nanoseconds for which an empty lane is not read again, unless the checkpoint has changed."""

_AHEAD: Final = HOUR
"""How much later than the oldest run of the backlog a run may have started that competes with it for requests."""

_BACKLOG, _TRACKED = 0, 1

_QUIET_PARTS: Final = 10
"""A run that has not changed for a time is fetched again after a tenth of it."""

Connect = Callable[[OnSettled], OtlpExporter]
"""Makes an exporter that reports the status of each run."""

Job = Callable[[], None]


@dataclass(frozen=True, slots=True)
class PlannedSend:
    """A document to send."""

    tracked: TrackedRun
    run: Run
    digest: bytes
    """The first 16 bytes of the SHA-256 of its text."""
    revision: int
    """See ``codec.encode``."""

    @property
    def observed(self) -> ObservedRun:
        """The document to export."""
        return ObservedRun(self.run, self.revision % ROOT_REVISION, self.revision > ROOT_REVISION)


def plan_send(tracked: TrackedRun, run: Run, now: int, config: SyncConfig) -> PlannedSend | None:
    """Return how to send a document that was just fetched; None if the receiver has it.

    A document that may have arrived without an acknowledgement gets the same revision again, so the same spans. After a
    run span that may have arrived, any other document is a revision above it, because a span id is written once.
    """
    digest = digest_of(run.text)
    if digest == tracked.sent_digest:
        if digest != tracked.acked_digest:
            return PlannedSend(tracked, run, digest, tracked.sent_revision)
        if run.finished or not _is_heartbeat_due(tracked, run, now, config):
            return None
    if run.finished and not tracked.run_span_sent:
        return PlannedSend(tracked, run, digest, ROOT_REVISION)
    # If the clock was set back, a newer document must still get a higher revision.
    observed_at = max(now, observed_time(tracked.sent_revision) + 1) if tracked.sent_digest else now
    return PlannedSend(tracked, run, digest, observed_at + (ROOT_REVISION if tracked.run_span_sent else 0))


def known_digest(tracked: TrackedRun, now: int, config: SyncConfig) -> bytes:
    """Return the digest of the document that need not be fetched again if the platform still has it; b"" for none.

    It is that of the document that the receiver has, unless a heartbeat may be due, which sends it once more.
    """
    if tracked.state is TrackState.OPEN:
        is_enough = not config.heartbeat or 0 <= now - tracked.acked_at < config.heartbeat
    else:
        is_enough = tracked.state is TrackState.ENDED
    return tracked.acked_digest if is_enough and tracked.acked_digest == tracked.sent_digest else b""


def refresh_at(tracked: TrackedRun, run: Run | None, now: int, config: SyncConfig) -> int | None:
    """Return when to fetch an acknowledged run again; None if it has ended.

    The longer it has not changed, the longer the pause: an approval may take days, and requests are limited.

    run: None if it was not fetched again, see ``known_digest``.
    """
    if tracked.state is TrackState.ENDED if run is None else run.finished:
        return None
    pause = min(max((now - tracked.changed_at) // _QUIET_PARTS, config.poll), MAX_PAUSE)
    if config.heartbeat and (run is None or run.status in LIVE_RUN_STATUSES):
        pause = min(pause, max(config.heartbeat, config.poll))
    return now + pause


def _is_heartbeat_due(tracked: TrackedRun, run: Run, now: int, config: SyncConfig) -> bool:
    if not config.heartbeat:
        return False
    if run.status in LIVE_RUN_STATUSES:
        # A day-long run leaves about a hundred revisions; a reader allows for that before it calls a run stuck.
        share = (tracked.acked_at - sort_time(run.envelope)) // HEARTBEAT_SHARE
    else:
        # A run that waits for days for an approval needs no sign of life every few minutes.
        share = (now - tracked.changed_at) // _QUIET_PARTS
    pause = max(config.heartbeat, share)
    return not 0 <= now - tracked.acked_at < pause  # an acknowledgement in the future is by a clock that was ahead


class FetchQueue:
    """Selects the runs to fetch from two lanes, and handles what comes of each request.

    One lane is the backlog, the oldest run first, because the platform deletes it first. The other is that of tracked
    runs that are due again. While both have runs, they take turns. Runs of a workflow that another worker has leased
    are left to it, and so are requests while they do not suffice for all, and it has much older runs.

    - ``send``: takes a document that the receiver does not have.
    - ``is_contested``: see ``RateLimiter``.
    """

    def __init__(
        self, context: SyncContext, send: Callable[[PlannedSend], None], *, is_contested: Callable[[], bool]
    ) -> None:
        self._context = context
        self._send = send
        self._is_contested = is_contested
        self._lanes: tuple[deque[TrackedRun], deque[TrackedRun]] = (deque(), deque())
        self._empty_until = [0, 0]
        self._next_lane = _TRACKED
        self.in_flight = 0
        """Requests without a response."""

    def wake(self) -> None:
        """Read empty lanes again, because the checkpoint has changed."""
        self._empty_until = [0, 0]

    def next_run(self, now: int, *, backlog: bool) -> TrackedRun | None:
        """Return the run to fetch next; None if none is due. backlog: Whether that lane is open."""
        for lane in (self._next_lane, 1 - self._next_lane):
            if (backlog or lane == _TRACKED) and self._refill(lane, now):
                self._next_lane = 1 - lane
                self.in_flight += 1
                return self._lanes[lane].popleft()
        return None

    def has_backlog(self, now: int) -> bool:
        """Whether a run of the backlog is due that is not being fetched."""
        return self._refill(_BACKLOG, now)

    def release(self) -> None:
        """Empty the lanes. The runs stay due in the checkpoint."""
        for lane in self._lanes:
            for run in lane:
                del self._context.in_progress[run.run_id]
            lane.clear()

    def has_runs(self, now: int) -> bool:
        """Whether a sync that does not follow will fetch another run, now or after a pause."""
        self.wake()
        if self._refill(_BACKLOG, now) or self._refill(_TRACKED, now):
            return True
        checkpoint = self._context.checkpoint
        if checkpoint.next_retry(MAX_FAILURES) is not None:
            return True
        # What another worker has leased: if that is killed, this one continues.
        return any(checkpoint.has_due(self._due(lane, now)) for lane in (_BACKLOG, _TRACKED))

    def fetched(self, tracked: TrackedRun, found: tuple[Run | DocumentError, Document] | None, fetched_at: int) -> None:
        """Handle a document, and None if it is the one that the receiver has. fetched_at: In nanoseconds since 1970."""
        self.in_flight -= 1
        try:
            self._context.counts.fetched += 1
            if found is None:
                tracked.failures = 0
                self._keep(tracked, None, fetched_at)
            else:
                self._handle_document(tracked, *found, fetched_at)
        except StoreError:
            raise
        except Exception as error:
            self._context.fail(tracked, error)

    def _handle_document(
        self, tracked: TrackedRun, run: Run | DocumentError, response: Document, fetched_at: int
    ) -> None:
        context = self._context
        if response.incomplete and tracked.failures + 1 < MAX_FAILURES:
            # A server over Tempo or Jaeger returns an older revision until the newest is complete.
            reason = f"an older revision, because the newest is incomplete: {'; '.join(response.incomplete)}"
            context.retry_later(tracked, reason)
            return
        tracked.failures = 0
        if isinstance(run, DocumentError):
            context.refuse(tracked, str(run), response.text)
            return
        tracked.document_fingerprint = fingerprint_of_summary(run.summary())
        tracked.time = sort_time(run.envelope) or tracked.time
        planned = plan_send(tracked, run, fetched_at, context.config)
        if planned is None:
            tracked.state = TrackState.ENDED if run.finished else TrackState.OPEN
            self._keep(tracked, run, fetched_at)
            return
        if planned.digest != tracked.sent_digest:
            tracked.changed_at = fetched_at
        self._send(planned)

    def _keep(self, tracked: TrackedRun, run: Run | None, fetched_at: int) -> None:
        """Schedule a run whose document the receiver has. run: See ``refresh_at``."""
        context = self._context
        context.counts.unchanged += 1
        tracked.reason = ""
        tracked.due = refresh_at(tracked, run, fetched_at, context.config)
        context.save(tracked)

    def failed(self, run: TrackedRun, error: RunspanError, *, platform_down: bool) -> None:
        """Handle a request without a document.

        Only the platform's own NOT_FOUND says that a run is gone. Any other error may be a gateway's, so the run is
        fetched again, and reported as failing until it succeeds.

        - ``platform_down``: whether all requests fail, so that the failure says nothing about this run.
        """
        self.in_flight -= 1
        context = self._context
        if isinstance(error, NotFound):
            context.mark_missing(run)
        elif isinstance(error, ResponseTooLarge) and run.failures + 1 >= MAX_FAILURES:
            context.refuse(run, str(error), b"")
        elif platform_down and not isinstance(error, QueryError):
            context.save(run)
            self.wake()
        else:
            context.retry_later(run, str(error))

    def _refill(self, lane: int, now: int) -> bool:
        """Read due runs into an empty lane. Return False if it stays empty."""
        runs, context = self._lanes[lane], self._context
        if runs or context.monotonic() < self._empty_until[lane]:
            return bool(runs)
        due = self._due(lane, now)
        latest = self._latest(due) if lane == _BACKLOG else None
        runs.extend(context.checkpoint.due_runs(due, REFILL, context.in_progress.values(), latest=latest))
        context.in_progress.update({run.run_id: run for run in runs})
        if not runs:
            self._empty_until[lane] = context.monotonic() + _EMPTY_FOR
        return bool(runs)

    def _latest(self, due: Due) -> int | None:
        """Return the latest start of the runs to fetch, because of older runs that another worker has leased."""
        checkpoint = self._context.checkpoint
        if not (self._is_contested() and checkpoint.has_other_workers):
            return None
        oldest = checkpoint.oldest_due(due)
        return None if oldest is None else oldest + _AHEAD

    def _due(self, lane: int, now: int) -> Due:
        follow = self._context.config.follow
        return Due(
            backlog=lane == _BACKLOG,
            until=now if follow else AT_ONCE,
            retry_until=now,
            max_failures=1_000_000 if follow else MAX_FAILURES,
        )


class SendQueue:
    """Sends documents in batches. Each is stored in the checkpoint before it is sent and after its status is known.

    - ``connect``: makes an exporter, and another one once that has stopped.
    - ``post``: runs a job on the thread that calls the methods.
    - ``submit``: runs a job on a thread of its own.
    """

    def __init__(
        self,
        context: SyncContext,
        connect: Connect,
        *,
        post: Callable[[Job], None],
        submit: Callable[[Callable[[], Job]], None],
        tenant: str,
        resource: Resource,
    ) -> None:
        self._context = context
        self._connect = connect
        self._post = post
        self._submit = submit
        self._tenant = tenant
        self._resource = resource
        self.exporter: OtlpExporter | None = connect(self._on_settled)
        self.stopped = ""
        """Why the exporter sends nothing any more, or ""."""
        self.receiver_works = False
        """Whether the receiver has accepted or rejected anything since the exporter was made."""
        self._open: list[PlannedSend] = []
        self._open_bytes = 0
        self._opened_at = 0.0
        self._ready: list[list[PlannedSend]] = []
        self.in_flight: dict[str, PlannedSend] = {}
        """The documents whose status is unknown, by run id."""
        self._bytes_in_flight = 0

    @property
    def waiting(self) -> bool:
        """Whether documents were not sent yet."""
        return bool(self._open or self._ready)

    @property
    def full(self) -> bool:
        """Whether to fetch nothing more until documents were sent.

        A new exporter gets only a few documents, until the receiver has accepted or rejected one.
        """
        if not self.receiver_works and (self.waiting or self.in_flight):
            return True
        return len(self._ready) > 1 or self._open_bytes > MAX_BYTES

    def add(self, planned: PlannedSend) -> None:
        """Queue a document of a run that is in progress."""
        if not self._open:
            self._opened_at = time.monotonic()
        self._open.append(planned)
        self._open_bytes += len(planned.run.text)
        if self._open_bytes > MAX_BYTES // 4:
            self._close_batch()

    def take_batches(self, *, idle: bool) -> list[list[Run | RunSpans]]:
        """Return the batches to send now, after storing what is about to be sent. Call ``send`` after the commit.

        They are without the step spans that the receiver has.

        - ``idle``: whether no document is being fetched that could be added to the last batch.
        """
        if self._open and (idle or time.monotonic() - self._opened_at >= LINGER):
            self._close_batch()
        taken = []
        while self._ready and not self.stopped and self._has_room(self._ready[0]):
            items = [self._start_sending(planned) for planned in self._ready.pop(0)]
            taken.append([item for item in items if item is not None])
        return taken

    def send(self, batch: list[Run | RunSpans]) -> None:
        """Pass a batch to the exporter, on another thread: the exporter blocks while too much is in flight."""
        if self.exporter is None:
            self.exporter = self._connect(self._on_settled)
        exporter = self.exporter
        self._submit(partial(self._export, exporter, batch))

    def reset(self) -> None:
        """Close an exporter that has stopped. The next batch makes another one."""
        exporter, self.exporter, self.stopped, self.receiver_works = self.exporter, None, "", False
        if exporter is not None:
            exporter.close()

    def check(self) -> None:
        """Raise the exporter's internal error, if there was one, and note whether it has stopped."""
        if self.exporter is not None:
            self.exporter.report()
            self.stopped = self.exporter.stopped

    def close(self) -> None:
        """Stop at once. Documents in flight may still arrive, and are sent again by the next sync."""
        if self.exporter is not None:
            self.exporter.interrupt()
            self.exporter.close()

    def _close_batch(self) -> None:
        self._ready.append(self._open)
        self._open, self._open_bytes = [], 0

    def _has_room(self, batch: Sequence[PlannedSend]) -> bool:
        return not self.in_flight or self._bytes_in_flight + _bytes_of(batch) <= MAX_BYTES

    def _start_sending(self, planned: PlannedSend) -> Run | RunSpans | None:
        """Store that a document is about to be sent. Return what to send of it; None if it cannot be encoded."""
        tracked, checkpoint = planned.tracked, self._context.checkpoint
        try:
            item = planned.observed.without_acked(checkpoint.spans, tracked.key, self._tenant, self._context.clock())
        except StoreError:
            raise
        except Exception as error:
            self._context.fail(tracked, error)
            return None
        tracked.sent_digest, tracked.sent_revision = planned.digest, planned.revision
        tracked.run_span_sent = tracked.run_span_sent or planned.revision == ROOT_REVISION
        checkpoint.save(tracked)
        self.in_flight[tracked.run_id] = planned
        self._bytes_in_flight += len(planned.run.text)
        return item

    def _export(self, exporter: OtlpExporter, batch: list[Run | RunSpans]) -> Job:
        """Submit documents. Return the job that handles those that cannot be encoded."""
        submitted: set[str] = set()
        failed: dict[str, Exception] = {}
        try:
            self._submit_batches(exporter, batch, submitted)
        except Exception:
            # One of them cannot be encoded, and each of the others is sent.
            for item in batch:
                run_id = item.id if isinstance(item, Run) else item.run_id
                if run_id not in submitted:
                    try:
                        self._submit_batches(exporter, [item], submitted)
                    except Exception as error:
                        failed[run_id] = error
        return partial(self._not_encoded, failed)

    def _submit_batches(self, exporter: OtlpExporter, items: list[Run | RunSpans], submitted: set[str]) -> None:
        """Submit documents, and add their ids to ``submitted``."""
        clock, resource = self._context.clock, self._resource
        for batch in batches(items, tenant=self._tenant, observed_at=clock, resource=resource):
            submitted.update([run.run_id for run in batch.runs])
            exporter.submit(batch)

    def _not_encoded(self, failed: Mapping[str, Exception]) -> None:
        for run_id, error in failed.items():
            planned = self.in_flight.pop(run_id)
            self._bytes_in_flight -= len(planned.run.text)
            self._context.fail(planned.tracked, error)

    def _on_settled(self, runs: tuple[RunSpans, ...], status: RunStatus, reason: str) -> None:
        digests = {run.run_id: run.step_digests for run in runs}
        self._post(lambda: self._settle(digests, status, reason))

    def _settle(self, digests: Mapping[str, Sequence[bytes]], status: RunStatus, reason: str) -> None:
        """Handle the status of runs. digests: Of the step spans that were sent of each."""
        settled = [self.in_flight.pop(run_id) for run_id in digests]
        self._bytes_in_flight -= _bytes_of(settled)
        self.receiver_works = self.receiver_works or status is not RunStatus.NOT_SENT
        for planned in settled:
            try:
                self._settle_run(planned, digests[planned.tracked.run_id], status, reason)
            except StoreError:
                raise
            except Exception as error:
                self._context.fail(planned.tracked, error)

    def _settle_run(self, planned: PlannedSend, digests: Sequence[bytes], status: RunStatus, reason: str) -> None:
        tracked = planned.tracked
        if status is RunStatus.ACCEPTED:
            self._ack(planned, digests)
        elif status is RunStatus.REJECTED:
            self._context.refuse(tracked, reason, planned.run.text, rejected=True)
        else:
            tracked.due = AT_ONCE
            self._context.save(tracked)

    def _ack(self, planned: PlannedSend, digests: Sequence[bytes]) -> None:
        """Store an acknowledgement. digests: Of the step spans that were sent."""
        context, tracked, run = self._context, planned.tracked, planned.run
        context.counts.sent += planned.revision == ROOT_REVISION
        context.counts.snapshots += planned.revision < ROOT_REVISION
        context.counts.revisions += planned.revision > ROOT_REVISION
        tracked.acked_digest, tracked.acked_at = planned.digest, context.clock()
        tracked.state, tracked.reason = TrackState.ENDED if run.finished else TrackState.OPEN, ""
        tracked.due = refresh_at(tracked, run, tracked.acked_at, context.config)
        context.save(tracked)
        if tracked.state is TrackState.OPEN:
            context.checkpoint.spans.add(tracked.key, digests, tracked.acked_at)


def _bytes_of(documents: Iterable[PlannedSend]) -> int:
    return sum(len(planned.run.text) for planned in documents)
