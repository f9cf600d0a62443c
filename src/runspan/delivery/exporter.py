"""``OtlpExporter``: batches of runs sent by several threads, every response read, every run counted."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Self

from runspan.delivery.dead_letters import DeadLetters
from runspan.delivery.report import ExportReport, ExportStats, OnSettled
from runspan.delivery.transport import (
    Accepted,
    Batch,
    ExportResult,
    PartialSuccess,
    Rejected,
    RejectionScope,
    Retryable,
    Transport,
)
from runspan.errors import item_error
from runspan.http.retry import RetryPolicy

_log = logging.getLogger("runspan.delivery")

MAX_REQUEST_BYTES = 3_000_000
"""Collectors, Tempo and gRPC receivers bound a request, gRPC ones at 4 MiB; some silently drop a larger one."""

MAX_HELD_BYTES = 16 << 20
MAX_CONSECUTIVE_REJECTIONS = 1000
"""After so many rejected runs and none accepted, the reason is not in the runs."""

TENANT_MISSING = "no org id"
"""Tempo's message, with a retryable status, to a sender without its tenant header: a retry never helps."""

_NEVER: Final = float("-inf")
_GRACE: Final = 1.0
"""Seconds that ``close`` waits for threads after sending has stopped."""


class OtlpExporter:
    """Send batches: ``submit`` blocks while enough is in flight, ``close`` drains and reports.

    A batch that is rejected for its contents, or accepted in part, is sent in halves, down to single runs, so that one
    bad run costs only itself. An endpoint that accepts nothing for a request's complete retry time, or that rejects our
    config, stops the exporter: later batches are counted as not sent.

    workers: Requests in flight.
    max_held_bytes: Of all batches in flight; a single larger one passes alone.
    clock: Monotonic seconds.
    sleep: Waits between attempts; by default it ends early when sending stops.
    dead_letters: Keeps the documents that are not accepted; the caller closes it after the exporter.
    on_settled: Called with the status of each run as soon as it is known; runs in flight at an interrupt get none.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        workers: int = 4,
        retry: RetryPolicy | None = None,
        max_request_bytes: int = MAX_REQUEST_BYTES,
        max_held_bytes: int = MAX_HELD_BYTES,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
        dead_letters: DeadLetters | None = None,
        on_settled: OnSettled | None = None,
    ) -> None:
        self.stats = ExportStats(dead_letters, on_settled)
        self._transport = transport
        self._retry = retry or RetryPolicy()
        self._max_request_bytes = max_request_bytes
        self._max_held_bytes = max_held_bytes
        self._clock = clock
        self._halt = threading.Event()
        self._sleep = sleep or self._halt.wait
        self._changed = threading.Condition()
        self._queue: deque[Batch] = deque()
        self._held_batches = 0
        self._held_bytes = 0
        self._closed = False
        self._interrupted = False
        self.endpoint = transport.endpoint
        """The endpoint, without secrets."""
        self.stopped = ""
        """Why nothing is sent any more, or ""."""
        self.last_error = ""
        """Why the last request that got a response will be retried, or ""."""
        self.retry_after = 0.0
        """The seconds that the receiver asked to wait when sending stopped; 0 if it did not say."""
        self._defect: BaseException | None = None
        self._last_accepted_at = _NEVER
        self._sample: Batch | None = None
        """The smallest run of the last batch that was accepted."""
        # Daemons: an interrupted program does not wait for a response that may take minutes.
        self._threads = [
            threading.Thread(target=self._work, name=f"runspan-delivery-{number}", daemon=True)
            for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, batch: Batch) -> bool:
        """Queue a batch; block while too much is in flight. Return False if sending has stopped."""
        size = batch.size
        self.stats.submitted(batch.runs)
        with self._changed:
            if self._closed:
                raise RuntimeError("submit after close")
            self._changed.wait_for(lambda: self.stopped or not self._is_full(size))
            if self.stopped:
                self.stats.not_sent(batch.runs)
                return False
            self._held_batches += 1
            self._held_bytes += size
            self._queue.append(batch)
            self._changed.notify_all()
        return True

    def flush(self) -> ExportReport:
        """Wait until every batch submitted so far is settled, and report."""
        with self._changed:
            self._changed.wait_for(lambda: self._interrupted or not self._held_batches)
        return self.report()

    def report(self) -> ExportReport:
        """Return the current counts."""
        if self._defect is not None:
            raise self._defect
        return self.stats.report(self.stopped)

    def stop(self, reason: str) -> None:
        """Stop sending: queued batches are counted as not sent, those in flight may still get a response."""
        with self._changed:
            self.stopped = self.stopped or reason
            self._halt.set()
            while self._queue:
                batch = self._queue.popleft()
                self.stats.not_sent(batch.runs)
                self._release(batch)
            self._changed.notify_all()

    def interrupt(self) -> None:
        """Stop sending at once, without waiting for requests in flight."""
        self._interrupted = True
        self.stop("interrupted")

    def close(self) -> ExportReport:
        """Drain, release threads and connections, and report. Idempotent."""
        try:
            self.flush()
        except BaseException:
            self.interrupt()
            raise
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()
            deadline = time.monotonic() + _GRACE
            for thread in self._threads:
                thread.join(max(0.0, deadline - time.monotonic()) if self.stopped else None)
            self._transport.close()
        return self.report()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.interrupt()
        self.close()

    def _is_full(self, size: int) -> bool:
        waiting = len(self._queue) >= len(self._threads)
        return waiting or (self._held_batches > 0 and self._held_bytes + size > self._max_held_bytes)

    def _release(self, batch: Batch) -> None:
        self._held_batches -= 1
        self._held_bytes -= batch.size

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            try:
                self._deliver(batch, self._retry)
            except Exception as error:
                # A defect of ours: flush must neither hang nor report success.
                self._defect = error
                self.stop(f"internal error: {type(error).__name__}")
            finally:
                with self._changed:
                    self._release(batch)
                    self._changed.notify_all()

    def _next_batch(self) -> Batch | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            self._changed.notify_all()
            return self._queue.popleft() if self._queue else None

    def _deliver(self, batch: Batch, retry: RetryPolicy, since: float | None = None) -> None:
        """Send a batch and count each of its runs once. since: The start of its first attempt."""
        begun = self._clock() if since is None else since
        result = self._send(batch, retry)
        match result:
            case Accepted(message):
                self._last_accepted_at = self._clock()
                self._sample = replace(batch, runs=(min(batch.runs, key=lambda run: run.size),))
                self.stats.accepted(batch.runs, message)
            case Rejected(reason, RejectionScope.ENDPOINT):
                self.stats.not_sent(batch.runs)
                self.stop(f"{self.endpoint} refuses: {reason}")
            case Rejected(_, RejectionScope.RUNS | RejectionScope.SIZE) if len(batch.runs) > 1:
                for half in batch.halves():
                    self._deliver(half, retry)
            case Rejected(reason, _):
                self._reject(batch, reason)
            case Retryable():
                self._give_up(batch, retry, begun, result)

    def _reject(self, batch: Batch, reason: str) -> None:
        rejected = self.stats.rejected(batch.runs, reason)
        if rejected >= MAX_CONSECUTIVE_REJECTIONS and self._last_accepted_at == _NEVER:
            self.stop(f"{self.endpoint} refused the first {rejected} runs: {reason}")

    def _give_up(self, batch: Batch, retry: RetryPolicy, begun: float, result: Retryable) -> None:
        """Handle a batch whose retry time is over, or that was in flight when sending stopped."""
        if self._halt.is_set():
            self.stats.not_sent(batch.runs)
        elif self._last_accepted_at >= begun and len(batch.runs) == 1:
            self._reject(batch, f"gave up: {result.describe()}")
        elif self._last_accepted_at >= begun or self._accepts_another(batch):
            # The endpoint accepts others, so the reason is in this batch: each part gets one more attempt.
            for part in batch.halves() if len(batch.runs) > 1 else (batch,):
                self._deliver(part, replace(retry, max_time=0.0), begun)
        else:
            self.stats.not_sent(batch.runs)
            self.retry_after = result.delay or 0.0
            asked = f"{result.reason}, asks to wait {self.retry_after:.15g} s" if self.retry_after else result.reason
            self.stop(f"{self.endpoint} took nothing {self._tried(begun, retry)}: {asked}")

    def _tried(self, begun: float, retry: RetryPolicy) -> str:
        """Return how long a batch was tried: less than the policy allows if the receiver asks to wait longer."""
        if self.retry_after and self._clock() < begun + retry.max_time:
            return f"and is not waited for longer than {retry.max_time:g} s"
        return f"for {retry.max_time:g} s"

    def _accepts_another(self, batch: Batch) -> bool:
        """Return True if the endpoint accepts a run of a batch that it did not accept, or again one that it had.

        Some stores respond "later" for ever to a request in which one span is too large for them. A run that is
        accepted here is sent, and counted, again with its batch: the same spans change nothing.
        """
        runs = batch.runs if len(batch.runs) > 1 else ()
        alone = [replace(batch, runs=(run,)) for run in (*runs[:1], *runs[-1:], *runs[len(runs) // 2 :][:1])]
        for each in (*alone, self._sample):
            if each is not None and isinstance(self._send(each, replace(self._retry, max_time=0.0)), Accepted):
                self._last_accepted_at = self._clock()
                return True
        return False

    def _send(self, batch: Batch, retry: RetryPolicy) -> Accepted | Rejected | Retryable:
        result = batch.send(lambda part: self._send_request(part.body(), retry), self._max_request_bytes)
        if isinstance(result, PartialSuccess):
            # A receiver with an incomplete run has no run. Spans that it has already are sent again as the same spans.
            rejected = min(result.rejected_spans, batch.spans)
            return Rejected(f"{rejected} of {batch.spans} spans rejected: {result.message}", RejectionScope.RUNS)
        return result

    def _send_request(self, body: bytes, retry: RetryPolicy) -> ExportResult:
        attempts = 0

        def attempt() -> ExportResult:
            nonlocal attempts
            attempts += 1
            self.stats.sent(len(body), is_retry=attempts > 1)
            try:
                result = self._transport.send(body)
            except Exception as error:
                # An answer that no code expected. If the receiver takes others, this one is divided down to the run.
                _log.exception("%s: a request failed", self.endpoint)
                result = Retryable(item_error(error, "the response").message)
            if isinstance(result, Retryable) and TENANT_MISSING in result.reason:
                result = Rejected(result.reason, RejectionScope.ENDPOINT)
            self.last_error = result.describe() if isinstance(result, Retryable) else ""
            return result

        if self._halt.is_set():
            return Retryable("sending has stopped")
        return retry.run(attempt, _retry_delay, sleep=self._sleep, clock=self._clock, halted=self._halt.is_set)


def _retry_delay(result: ExportResult) -> float | None:
    return (result.delay or 0.0) if isinstance(result, Retryable) else None
