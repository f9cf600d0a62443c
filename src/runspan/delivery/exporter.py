"""``Delivery``: batches of runs sent by several threads, every answer read, nothing lost without being counted.

When a request is sent again: after the wait asked for, or a backoff with full jitter, inside one budget of time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from types import TracebackType
from typing import Self

from tenacity import RetryCallState, Retrying, retry_if_result, wait_random_exponential

from runspan.delivery.batch import Batch
from runspan.delivery.dead_letters import DeadLetters
from runspan.delivery.report import ExportReport, ExportStats, OnSettled
from runspan.delivery.result import (
    Accepted,
    ExportResult,
    PartialSuccess,
    Rejected,
    RejectionScope,
    Retryable,
    Transport,
)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Seconds. budget: for one request, all attempts and waits together. first, longest: bounds of the backoff, whose
    n-th wait is drawn between 0 and ``first * 2**(n - 1)``."""

    budget: float = 300.0
    first: float = 0.5
    longest: float = 30.0


def send_with_retry(
    attempt: Callable[[], ExportResult],
    policy: RetryPolicy,
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    halted: Callable[[], bool],
) -> ExportResult:
    """The outcome of the last attempt; ``Later`` when the budget is spent, or would be by the wait asked for.

    sleep may return early; then ``halted()`` is true, and nothing is sent any more.
    """
    deadline = clock() + policy.budget
    last = [attempt()]
    if not isinstance(last[0], Retryable):
        # tenacity's state refers to itself: it would keep the body of each request until the next garbage collection.
        return last[0]
    backoff = wait_random_exponential(multiplier=policy.first, max=policy.longest)
    tries = count()

    def once() -> ExportResult:
        if next(tries) and not halted():
            last[0] = attempt()
        return last[0]

    def wait(state: RetryCallState) -> float:
        # The last attempt comes when the budget ends.
        return _server_delay(last[0]) or min(backoff(state), max(0.0, deadline - clock()))

    def stop(state: RetryCallState) -> bool:
        return halted() or clock() + _server_delay(last[0]) >= deadline

    retrying = Retrying(
        retry=retry_if_result(_is_retryable),
        wait=wait,
        stop=stop,
        sleep=sleep,
        retry_error_callback=lambda state: last[0],
    )
    return retrying(once)


def _server_delay(outcome: ExportResult) -> float:
    """The wait that the receiver asks for, or 0; a receiver that asks for none gets the backoff, or it would be asked
    again without pause."""
    return (isinstance(outcome, Retryable) and outcome.delay) or 0.0


def _is_retryable(outcome: ExportResult) -> bool:
    return isinstance(outcome, Retryable)


MAX_REQUEST_BYTES = 3_000_000
"""Collectors, Tempo and gRPC receivers bound a request, gRPC ones at 4 MiB; some drop what is larger silently."""

MAX_HELD_BYTES = 16 << 20
MAX_CONSECUTIVE_REJECTIONS = 1000
"""So many runs refused while none was ever taken: it is not the runs."""

TENANT_MISSING = "no org id"
"""Tempo's words, with a status that asks to be asked again, to a sender without its tenant's header: it never helps."""

NO_RETRY = float("-inf")
_GRACE = 1.0


class OtlpExporter:
    """Sends batches. ``submit`` blocks while enough is under way; ``close`` drains and reports.

    workers: requests in flight. max_held_bytes: of all batches under way; a single larger one passes alone.
    sleep: waits between attempts; by default it ends early when sending stops. clock: monotonic seconds.
    letters: keeps the documents that are not taken; the caller closes it after the delivery. on_settled: told what
    came of each run, as soon as that is known; runs in flight at an interrupt get no verdict.

    A batch that is refused for what is in it is sent in halves, down to single runs, so that one bad run costs only
    itself. An endpoint that takes nothing for a request's whole budget, or that refuses our settings, stops the
    delivery: later batches are counted as not sent.
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
        sleep: Callable[[float], None] | None = None,
        letters: DeadLetters | None = None,
        on_settled: OnSettled | None = None,
    ) -> None:
        self.tally = ExportStats(letters, on_settled)
        self._transport = transport
        self._retry = retry or RetryPolicy()
        self._max_request_bytes = max_request_bytes
        self._max_held_bytes = max_held_bytes
        self._clock = clock
        self._halt = threading.Event()
        self._sleep = sleep or self._wait_or_halt
        self._changed = threading.Condition()
        self._queue: deque[Batch] = deque()
        self._held_batches = 0
        self._held_bytes = 0
        self._closed = False
        self._interrupted = False
        self._reason = ""
        self._trouble = ""
        self._defect: BaseException | None = None
        self._last_taken = NO_RETRY
        # Daemons: an interrupted program does not wait for an answer that may take minutes.
        self._threads = [
            threading.Thread(target=self._work, name=f"runspan-delivery-{number}", daemon=True)
            for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def endpoint(self) -> str:
        """Where it sends to, without secrets."""
        return self._transport.endpoint

    @property
    def stopped(self) -> str:
        """Why nothing is sent any more, or ""."""
        return self._reason

    @property
    def last_error(self) -> str:
        """Why the last request that was answered will be sent again, or ""."""
        return self._trouble

    def submit(self, batch: Batch) -> bool:
        """Takes a batch, and blocks while too much is under way. False when sending has stopped."""
        size = batch.size
        self.tally.submitted(batch.runs)
        with self._changed:
            if self._closed:
                raise RuntimeError("submit after close")
            while not self._reason and self._is_full(size):
                self._changed.wait()
            if self._reason:
                self.tally.not_sent(batch.runs)
                return False
            self._held_batches += 1
            self._held_bytes += size
            self._queue.append(batch)
            self._changed.notify_all()
        return True

    def flush(self) -> ExportReport:
        """Waits until everything submitted so far is answered for."""
        with self._changed:
            while self._held_batches and not self._interrupted:
                self._changed.wait()
        return self.report()

    def report(self) -> ExportReport:
        """The counts as they stand."""
        if self._defect is not None:
            raise self._defect
        return self.tally.report(self._reason)

    def stop(self, reason: str) -> None:
        """Ends sending: what waits is counted as not sent, what is in flight may still be answered."""
        with self._changed:
            self._reason = self._reason or reason
            self._halt.set()
            while self._queue:
                batch = self._queue.popleft()
                self.tally.not_sent(batch.runs)
                self._release(batch)
            self._changed.notify_all()

    def interrupt(self) -> None:
        """Ends sending at once; requests in flight are not waited for."""
        self._interrupted = True
        self.stop("interrupted")

    def close(self) -> ExportReport:
        """Drains, releases threads and connections, and reports. Calling it twice is allowed."""
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
                thread.join(max(0.0, deadline - time.monotonic()) if self._reason else None)
            self._transport.close()
        return self.report()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.interrupt()
        self.close()

    def _is_full(self, size: int) -> bool:
        waiting = len(self._queue) >= len(self._threads)
        return waiting or (self._held_batches > 0 and self._held_bytes + size > self._max_held_bytes)

    def _release(self, batch: Batch) -> None:
        self._held_batches -= 1
        self._held_bytes -= batch.size

    def _wait_or_halt(self, seconds: float) -> None:
        self._halt.wait(seconds)

    def _work(self) -> None:
        while (batch := self._take()) is not None:
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

    def _take(self) -> Batch | None:
        with self._changed:
            while not self._queue:
                if self._closed:
                    return None
                self._changed.wait()
            self._changed.notify_all()
            return self._queue.popleft()

    def _deliver(self, batch: Batch, retry: RetryPolicy, since: float | None = None) -> None:
        """Sends a batch and counts each of its runs once. since: when its first attempt began."""
        begun = self._clock() if since is None else since
        outcome = self._send(batch, retry) if len(batch.runs) > 1 else self._send_run(batch, retry)
        match outcome:
            case Accepted(message):
                self._last_taken = self._clock()
                self.tally.accepted(batch.runs, message)
            case PartialSuccess(rejected_spans, message):
                self._last_taken = self._clock()
                self.tally.partial(batch.runs, rejected_spans, message)
            case Rejected(reason, RejectionScope.ENDPOINT):
                self.tally.not_sent(batch.runs)
                self.stop(f"{self.endpoint} refuses: {reason}")
            case Rejected(_, RejectionScope.RUNS | RejectionScope.SIZE) if len(batch.runs) > 1:
                for half in batch.halves():
                    self._deliver(half, retry)
            case Rejected(reason, _):
                self._reject(batch, reason)
            case Retryable(reason, delay):
                self._give_up(batch, retry, begun, f"{reason}, asks to wait {delay:g} s" if delay else reason)

    def _reject(self, batch: Batch, reason: str) -> None:
        rejected = self.tally.rejected(batch.runs, reason)
        if rejected >= MAX_CONSECUTIVE_REJECTIONS and self._last_taken == NO_RETRY:
            self.stop(f"{self.endpoint} refused the first {rejected} runs: {reason}")

    def _give_up(self, batch: Batch, retry: RetryPolicy, begun: float, reason: str) -> None:
        """The budget of a batch is spent, or sending has stopped."""
        if self._halt.is_set():
            self.tally.not_sent(batch.runs)
        elif self._last_taken < begun and not self._takes_one_of(batch):
            self.tally.not_sent(batch.runs)
            self.stop(f"{self.endpoint} took nothing for {retry.budget:g} s: {reason}")
        elif len(batch.runs) > 1:
            # Others were taken meanwhile, so it is something in here: each part gets one more attempt.
            for half in batch.halves():
                self._deliver(half, replace(retry, budget=0.0), begun)
        else:
            self._reject(batch, f"gave up: {reason}")

    def _takes_one_of(self, batch: Batch) -> bool:
        """Whether the endpoint takes a single run of a batch that it did not take as a whole.

        Some stores answer "later" for ever to a request in which one span is too large for them. A run that is taken
        here is sent, and counted, once more with its batch: the same spans again change nothing.
        """
        runs = batch.runs if len(batch.runs) > 1 else ()
        for run in (*runs[:1], *runs[-1:], *runs[len(runs) // 2 : len(runs) // 2 + 1]):
            alone = Batch(batch.frame, (run,))
            if isinstance(self._send_run(alone, replace(self._retry, budget=0.0)), Accepted):
                self._last_taken = self._clock()
                return True
        return False

    def _send_run(self, batch: Batch, retry: RetryPolicy) -> ExportResult:
        """Sends one run, in several requests when it is too large for one: the head span last, and only if all of the
        others were taken, so that no receiver holds a finished run without its steps."""
        divisible = batch.spans > 1
        if batch.size <= self._max_request_bytes or not divisible:
            outcome = self._send(batch, retry)
            if not (divisible and isinstance(outcome, Rejected) and outcome.scope is RejectionScope.SIZE):
                return outcome
        first, second = batch.halves()
        match self._send_run(first, retry):
            case Accepted():
                return self._send_run(second, retry)
            case PartialSuccess(rejected_spans, message):
                return Rejected(
                    f"{rejected_spans} spans rejected: {message or 'no reason given'}", RejectionScope.REQUEST
                )
            case failure:
                return failure

    def _send(self, batch: Batch, retry: RetryPolicy) -> ExportResult:
        request = batch.request()
        attempts = 0

        def attempt() -> ExportResult:
            nonlocal attempts
            attempts += 1
            self.tally.sent(len(request.body), again=attempts > 1)
            outcome = self._transport.send(request)
            if isinstance(outcome, Retryable) and TENANT_MISSING in outcome.reason:
                outcome = Rejected(outcome.reason, RejectionScope.ENDPOINT)
            self._trouble = outcome.reason if isinstance(outcome, Retryable) else ""
            return outcome

        if self._halt.is_set():
            return Retryable("sending has stopped")
        return send_with_retry(attempt, retry, clock=self._clock, sleep=self._sleep, halted=self._halt.is_set)
