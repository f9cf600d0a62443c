"""``Outbox``: what the receiver lacks of each run, when it is to be sent next, and counts of what happened.

An engine's thread only marks a run as changed. What is sent is read from the run when it is due, so a slow receiver
gets fewer snapshots and never a queue of old ones; and a step is sent until the receiver has acknowledged it.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Final

from opentelemetry.sdk.trace import ReadableSpan

from runspan.codec.copies import copy_for_caller
from runspan.codec.encode import RunEncoder, StepLayout
from runspan.codec.fields import OPEN_STEP_MARK
from runspan.codec.semconv import Usage
from runspan.contracts import HEARTBEAT_SHARE
from runspan.model.document import Run, step_text
from runspan.model.span import Link, Span
from runspan.recorder.config import ExportConfig
from runspan.recorder.state import RunRecord

_log = logging.getLogger("runspan.recorder")

MAX_ROUND_RUNS: Final = 256
"""Runs that are read for one round of sending."""
MAX_ROUND_BYTES: Final = 8 << 20
"""Approximate bytes of ended runs in one round: while it lasts, memory holds each of them several times."""
MAX_ROUND_FOREIGN_SPANS: Final = 512
"""Spans of other instrumentation in one request."""
_SNAPSHOT_INTERVAL_PER_AGE: Final = 0.02
"""The least interval between two snapshots of a run, as a fraction of its age: their number grows with the logarithm of
the age."""
_DISK_GRACE: Final = 1.0
"""How many seconds ``drain`` waits for dead letters that another thread writes."""
_OVER_LIMIT: Final = "too many ended runs are waiting"
_NEVER: Final = float("inf")
_NOT_WAITING: Final = float("-inf")


class Counters:
    """Counts of what happened.

    Every method may be called from several threads, and from a signal handler: all locks of a recorder are reentrant.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._counts: Counter[str] = Counter()
        self._reported: Counter[str] = Counter()
        self.last_error = ""
        """Why the latest request failed; "" when it did not."""
        self.last_refusal = ""
        """Why the latest run was refused or given up."""

    def add(self, name: str, amount: int = 1) -> None:
        """Increment a count. name: a count of ``RecorderReport``."""
        with self._lock:
            self._counts[name] += amount

    def add_step_without_run(self) -> bool:
        """Count a step that found no run. Return whether it is the first."""
        with self._lock:
            self._counts["steps_without_run"] += 1
            return self._counts["steps_without_run"] == 1

    def add_dropped_run(self, dead_lettered: bool) -> None:
        """Count a run that is given up; both counts at once, so that no report has one without the other."""
        with self._lock:
            self._counts["runs_dropped"] += 1
            self._counts["runs_dead_lettered"] += dead_lettered

    def collect(self) -> dict[str, int]:
        """Return the counts by their names in ``RecorderReport``."""
        with self._lock:
            return dict(self._counts)

    def since_last(self, name: str) -> int:
        """Return how much a count has grown since the last such call."""
        with self._lock:
            grown = self._counts[name] - self._reported[name]
            self._reported[name] = self._counts[name]
            return grown

    def after_fork(self) -> None:
        """Reset, in a forked child: a thread of the parent may have held the lock."""
        self.__init__()  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class FlushResult:
    """What the receiver has when a flush returns. True only if that is everything that no earlier flush has reported.

    It counts runs: all that were started since the recorder was created, or the one that was flushed. A run that was
    given up is ``refused`` in the next result of the recorder, and not in later ones; ``RecorderReport`` keeps it.
    """

    delivered: int = 0
    """Runs of which the receiver has everything up to now, whether they have ended or not."""
    refused: int = 0
    """Runs that the receiver rejected, in whole or in part, or that were given up for another reason."""
    pending: int = 0
    """Runs of which the receiver lacks something, or did not say whether it has it. They are sent again."""
    foreign_spans_dropped: int = 0
    """Spans of other instrumentation that were rejected, or for which the queue had no room, since the last flush."""
    foreign_spans_pending: int = 0
    reason: str = ""
    """Why the last run was refused or, without one, why the latest request failed."""

    def __bool__(self) -> bool:
        return not (self.refused or self.foreign_spans_dropped or self.is_waiting)

    @property
    def is_waiting(self) -> bool:
        """Whether something is still to be sent, so that another flush may deliver more."""
        return bool(self.pending or self.foreign_spans_pending)


@dataclass(slots=True)
class RunDelta:
    """The spans of one run that are to be sent."""

    state: RunExportState
    run: Run
    spans: list[Span]
    """The revision span is last."""
    is_final: bool
    """Whether the run changes no more in this process, so that this is all of it."""


@dataclass(slots=True, eq=False)
class RunExportState:
    """How far one run has been exported. Times are monotonic seconds."""

    record: RunRecord
    registered_at: float
    acked_span_ids: set[bytes] = field(default_factory=set)
    """The spans that the receiver has."""
    changed_at: float | None = None
    """When the run first changed since it was last read; None when it did not."""
    is_urgent: bool = True
    """Whether that was a change of the run's own status."""
    acked_at: float | None = None
    """When the receiver last acknowledged a revision."""
    not_before: float = 0.0
    """When the next try is allowed."""
    failures: int = 0
    """Consecutive tries that failed."""
    size: int = 0
    """Approximate bytes of the run, once it has ended."""
    rejection: str = ""
    """Why the receiver accepted the run without some of its spans; "" if it did not."""
    usages: dict[bytes, list[Usage]] = field(default_factory=dict)
    """The token usage of the agent steps that were sent, by span id."""
    placements: dict[bytes, tuple[bytes | None, int]] = field(default_factory=dict)
    """Parent and position of the step spans, by span id: they stay as they were when the span was first encoded."""

    def build_delta(self, now: int, exception_events: bool) -> RunDelta:
        """Return the spans of ``codec.encode`` that the receiver lacks.

        Steps that it has are not encoded again: a snapshot costs as much as is new in it.

        now: nanoseconds since 1970, the time of observation.
        """
        run, step_ids, revision, is_final = self.record.snapshot(now)
        encoder = RunEncoder(run, self.record.tenant, observed_at=revision, exception_events=exception_events)
        usages = encoder.step_parts.usages
        layout = StepLayout(encoder, run.steps)
        spans: list[Span] = []
        manifest: list[str] = []
        open_steps: list[bytes] = []
        for index, (step, span_id) in enumerate(zip(run.steps, step_ids, strict=True)):
            template = layout.template(index)
            if template.finished:
                manifest.append(span_id.hex())
                if span_id in self.acked_span_ids:
                    usages += self.usages.get(span_id, ())
                    continue
                before = len(usages)
                loop = layout.loop_of(index)
                parent_id, position = self.placements.setdefault(
                    span_id, (None if loop is None else step_ids[loop], layout.position(index))
                )
                spans.append(encoder.step_span(step, span_id, template, parent_id, position))
                if template.is_agent:
                    self.usages[span_id] = usages[before:]
            else:
                manifest.append(OPEN_STEP_MARK)
                open_steps.append(step_text(step))
            if step.extra:
                # The attempts of an open step are children of a span that is not written yet, but whose id is known.
                spans += encoder.attempt_spans(step, span_id, template)
        if encoder.is_live:
            spans += [encoder.live_span(), *layout.points()]
        spans = [span for span in spans if span.span_id not in self.acked_span_ids]
        spans.append(encoder.revision_span("".join(manifest), open_steps))
        if self.record.caller is not None:
            spans = _with_copies(spans, self.record.caller)
        return RunDelta(self, run, spans, is_final)

    def ack_spans(self, spans: Iterable[Span]) -> None:
        """Note that the receiver has these spans of a delta, and so their copies, each of which is before its span."""
        trace_id = self.record.trace_id
        self.acked_span_ids.update([span.span_id for span in spans if span.trace_id == trace_id])


def _with_copies(spans: Iterable[Span], caller: Link) -> list[Span]:
    """Return the spans, each with its copy for the caller's trace before it."""
    found: list[Span] = []
    for span in spans:
        copy = copy_for_caller(span, caller)
        found += [span] if copy is None else [copy, span]
    return found


class Outbox:
    """The runs that have not ended, or of which the receiver lacks something, and spans of other instrumentation.

    A round of sending is ``get_due``, then ``ack``, ``retry_later`` or ``drop`` for each run, then ``finish_round``.
    """

    def __init__(
        self,
        counters: Counters,
        config: ExportConfig,
        monotonic: Callable[[], float],
        on_work: Callable[[], None],
        on_dropped: Callable[[RunExportState, str], None],
        *,
        disabled: bool = False,
    ) -> None:
        """monotonic: returns seconds.

        on_work: called when there is something to send.
        on_dropped: called for each run that is given up, with the reason.
        disabled: accept nothing, and count nothing as dropped.
        """
        self.config = config
        self._counters = counters
        self._monotonic = monotonic
        self._on_work = on_work
        self._on_dropped = on_dropped
        self._condition = threading.Condition()
        self._states: dict[RunRecord, RunExportState] = {}
        """Every run that has not ended, or of which the receiver lacks something."""
        self._dirty: dict[RunRecord, RunExportState] = {}
        """Runs that changed since they were read."""
        self._heartbeats: list[tuple[float, int, RunExportState]] = []
        """A heap of the times at which heartbeats are due, each with a number of its own and the run."""
        self._order = count()
        self._in_flight: dict[RunRecord, RunExportState] = {}
        self._foreign: deque[ReadableSpan] = deque()
        self._foreign_since = 0.0
        self._foreign_in_flight = 0
        self._pending_bytes = 0
        self._giving_up = 0
        """How many runs are forgotten, and not counted and kept yet."""
        self._last_ended: RunExportState | None = None
        self._flushes = 0
        """How many calls of ``flush`` are waiting."""
        self._not_before = 0.0
        self._wakes_at = _NOT_WAITING
        """Until when the sending thread waits."""
        self._disabled = disabled
        self.closed = disabled

    # Called by the engine's threads.

    def register(self, record: RunRecord) -> None:
        """Export the run from now on. Idempotent. No error reaches the engine."""
        try:
            self._register(record)
        except Exception:
            self._counters.add("internal_errors")
            _log.exception("runspan.Recorder: internal error; run %s is not exported", record.id)

    def _register(self, record: RunRecord) -> None:
        with self._condition:
            if record in self._states or self._disabled:
                return
            # After ``close`` too: nothing of the run is sent then, but its end is counted.
            self._states[record] = RunExportState(record, self._monotonic())
            record.registered = True
            self._counters.add("runs_started")
            closed = self.closed
        if not closed:
            self._on_work()
        self.mark_dirty(record, True)

    def mark_dirty(self, record: RunRecord, is_urgent: bool) -> None:
        """Note that the run has changed. is_urgent: its own status has."""
        state = self._states.get(record)
        has_ended = is_urgent and record.has_ended
        is_final = has_ended or (is_urgent and record.released)
        if state is None or (state.changed_at is not None and not is_final and (state.is_urgent or not is_urgent)):
            return  # it is going to be read anyway
        with self._condition:
            if state.changed_at is None:
                state.changed_at = self._monotonic()
            state.is_urgent = state.is_urgent or is_urgent
            if is_final:
                state.not_before = 0.0  # the final state does not wait until an earlier one may be retried
            self._dirty[record] = state
            if self._due_at(state) < self._wakes_at:
                self._condition.notify_all()
        if has_ended:
            self._add_ended(state)

    def _add_ended(self, ended: RunExportState) -> None:
        """Count an ended run as pending, and enforce the limit; after ``close`` drop the run itself."""
        size = ended.record.estimated_size()
        with self._condition:
            if ended.size:
                return
            ended.size = size
            self._pending_bytes += size
            self._counters.add("runs_ended")
            self._last_ended = ended
            if self.closed:
                dropped, reason = [ended], "it ended after the shutdown"
            else:
                dropped, reason = self._over_limit(), _OVER_LIMIT
            self._forget_dropped(dropped)
        self._report_dropped(dropped, reason)

    def _over_limit(self) -> list[RunExportState]:
        """Return the oldest ended runs that take more memory than is allowed. Call it under the lock."""
        excess = self._pending_bytes - self.config.max_pending_bytes
        dropped: list[RunExportState] = []
        if excess > 0:
            # Runs in flight may be acknowledged, and the run that ended last has not been tried yet.
            excess -= sum([state.size for record, state in self._in_flight.items() if record in self._states])
            for record, state in self._states.items():
                if excess <= 0:
                    break
                if state.size and state is not self._last_ended and record not in self._in_flight:
                    excess -= state.size
                    dropped.append(state)
        return dropped

    def add_foreign_span(self, span: ReadableSpan) -> None:
        """Add a span of other instrumentation. It is dropped and counted when too many are waiting."""
        with self._condition:
            if len(self._foreign) >= self.config.max_foreign_spans or self.closed:
                self._counters.add("foreign_spans_dropped")
                return
            self._foreign.append(span)
            if len(self._foreign) == 1:
                self._foreign_since = self._monotonic()
            if self._foreign_due_at() < self._wakes_at:
                self._condition.notify_all()
        self._on_work()

    def flush(self, timeout: float, record: RunRecord | None = None) -> FlushResult:
        """Wait until the receiver has the current state of everything, or of one run, for ``timeout`` seconds at most.
        Return what it has."""
        with self._condition:
            self.wait(timeout, record)
            return self._result() if record is None else self._result_of(record)

    def wait(self, timeout: float, record: RunRecord | None = None) -> bool:
        """Wait as ``flush`` does, without a report. Return whether nothing is pending."""
        with self._condition:
            self._flushes += 1
            self._condition.notify_all()
            try:
                return self._condition.wait_for(lambda: self.closed or not self._is_pending(record), timeout)
            finally:
                self._flushes -= 1

    def _is_pending(self, record: RunRecord | None) -> bool:
        if record is not None:
            return record in self._dirty or record in self._in_flight
        return bool(self._dirty or self._in_flight or self._foreign or self._foreign_in_flight)

    def _result(self) -> FlushResult:
        counts = self._counters.collect()
        delivered = counts.get("runs_delivered", 0) + counts.get("runs_released", 0)
        refused = 0
        for record, state in self._states.items():
            if not (record.dropped or self._is_pending(record)):
                refused += bool(state.rejection)
                delivered += not state.rejection and state.acked_at is not None
        # Also those that are in none of the counts at this moment.
        pending = max(0, counts.get("runs_started", 0) - counts.get("runs_dropped", 0) - delivered - refused)
        refused += self._counters.since_last("runs_dropped")
        return FlushResult(
            delivered,
            refused,
            pending,
            self._counters.since_last("foreign_spans_dropped"),
            len(self._foreign) + self._foreign_in_flight,
            self._counters.last_refusal if refused else self._counters.last_error,
        )

    def _result_of(self, record: RunRecord) -> FlushResult:
        state = self._states.get(record)
        if record.dropped:
            return FlushResult(refused=1, reason=record.dropped)
        if state is not None and not self._is_pending(record):
            if state.rejection:
                return FlushResult(refused=1, reason=state.rejection)
            if state.acked_at is not None:
                return FlushResult(delivered=1)
        elif record.delivered:
            return FlushResult(delivered=1)
        elif not record.registered:
            return FlushResult() if self._disabled else FlushResult(pending=1, reason="the run has not begun")
        return FlushResult(pending=1, reason=self._counters.last_error)

    def backlog(self) -> dict[str, int]:
        """Return what the receiver lacks, by the names of ``RecorderReport``."""
        with self._condition:
            return {
                "runs_pending": len(self._dirty.keys() | self._in_flight.keys()),
                "bytes_pending": self._pending_bytes,
                "foreign_spans_pending": len(self._foreign) + self._foreign_in_flight,
            }

    def disown(self) -> None:
        """Leave all runs to the parent, in a forked child. A thread of the parent may have held their locks."""
        for record in self._states:
            record.disowned = True
            record.lock = threading.RLock()

    # Called by the sending thread.

    def get_due(self) -> tuple[list[RunExportState], list[ReadableSpan]] | None:
        """Wait for runs and spans that are due, and return them. Return None after ``close``."""
        if self._in_flight or self._foreign_in_flight:
            self.finish_round()  # it failed when the round ended
        with self._condition:
            while not self.closed:
                states, foreign = self.poll()
                if states or foreign:
                    return states, foreign
                self._wakes_at = self._next_due_at()
                delay = None if self._wakes_at == _NEVER else max(0.0, self._wakes_at - self._monotonic())
                self._condition.wait(delay)
                self._wakes_at = _NOT_WAITING
            return None

    def poll(self) -> tuple[list[RunExportState], list[ReadableSpan]]:
        """Return runs and spans that are due now. They are in flight until ``finish_round``."""
        with self._condition:
            now = self._monotonic()
            self._mark_heartbeats(now)
            states = self._due_runs(now)
            self._in_flight = {state.record: state for state in states}
            for state in states:
                # The run is read after this, so a later change is sent in another round.
                state.changed_at, state.is_urgent = None, False
                del self._dirty[state.record]
            foreign: list[ReadableSpan] = []
            if self._foreign and self._foreign_due_at() <= now:
                count = min(len(self._foreign), MAX_ROUND_FOREIGN_SPANS)
                foreign = [self._foreign.popleft() for _ in range(count)]
                self._foreign_in_flight = count
            return states, foreign

    def _due_runs(self, now: float) -> list[RunExportState]:
        """Return the runs that are due, as many as fit into a round."""
        due: list[RunExportState] = []
        size = 0
        for state in self._dirty.values():
            if self._due_at(state) <= now:
                due.append(state)
                size += state.size
                if len(due) >= MAX_ROUND_RUNS or size >= MAX_ROUND_BYTES:
                    break
        return due

    def ack(self, state: RunExportState, is_final: bool) -> None:
        """Note that the receiver has the run as it was read. is_final: the run will not change again."""
        with self._condition:
            state.failures, state.not_before = 0, 0.0
            if is_final:
                state.record.delivered = True
                self._counters.add("runs_delivered" if state.record.has_ended else "runs_released")
                self._forget(state)
                return
            state.acked_at = self._monotonic()
            if state.changed_at is None and state.record in self._states:
                heappush(self._heartbeats, (self._heartbeat_at(state), next(self._order), state))

    def retry_later(self, state: RunExportState, delay: float) -> None:
        """Try the run again after ``delay`` seconds, or at once when its final change came during the request."""
        now = self._monotonic()
        with self._condition:
            record = state.record
            is_newer = state.changed_at is not None and (record.has_ended or record.released)
            state.not_before, state.is_urgent = 0.0 if is_newer else now + delay, True
            if state.changed_at is None:
                state.changed_at = now
            if state.record in self._states:
                self._dirty[state.record] = state

    def pause(self, delay: float) -> None:
        """Send nothing for ``delay`` seconds."""
        with self._condition:
            self._not_before = self._monotonic() + delay

    def requeue_foreign_spans(self, spans: list[ReadableSpan]) -> None:
        """Put back spans that the receiver does not have. Those for which there is no room are dropped and counted."""
        with self._condition:
            room = max(0, self.config.max_foreign_spans - len(self._foreign))
            self._foreign.extendleft(reversed(spans[:room]))
            self._foreign_in_flight = 0
        self._counters.add("foreign_spans_dropped", len(spans) - min(room, len(spans)))

    def finish_round(self) -> None:
        """Note that nothing is in flight any more."""
        with self._condition:
            self._in_flight.clear()
            self._foreign_in_flight = 0
            dropped = self._over_limit()
            self._forget_dropped(dropped)
            self._condition.notify_all()
        self._report_dropped(dropped, _OVER_LIMIT)

    def drop(self, state: RunExportState, reason: str) -> None:
        """Give up a run: send nothing more of it, and report it to ``on_dropped``."""
        with self._condition:
            self._forget_dropped([state])
        self._report_dropped([state], reason)

    def _forget_dropped(self, states: list[RunExportState]) -> None:
        """Forget runs that are given up. Call it under the lock, and ``_report_dropped`` after it without."""
        for state in states:
            self._forget(state)
        self._giving_up += len(states)

    def _report_dropped(self, states: list[RunExportState], reason: str) -> None:
        if not states:
            return
        try:
            for state in states:
                self._on_dropped(state, reason)
        finally:
            with self._condition:
                self._giving_up -= len(states)
                self._condition.notify_all()

    def _forget(self, state: RunExportState) -> None:
        """Send nothing more of the run. Call it under the lock."""
        if self._states.pop(state.record, None) is not None:
            self._pending_bytes -= state.size
        self._dirty.pop(state.record, None)

    def close(self) -> None:
        """Accept nothing more, and end ``get_due`` and ``flush``."""
        with self._condition:
            self.closed = True
            self._condition.notify_all()

    def drain(self) -> list[RunExportState]:
        """Return the runs whose current state the receiver lacks, after ``close``.

        Runs still in progress stay registered so that their end is counted. What another thread gives up meanwhile is
        counted and kept before this returns, unless its disk takes longer than ``_DISK_GRACE``.
        """
        with self._condition:
            self._condition.wait_for(lambda: not self._giving_up, _DISK_GRACE)
            pending = [
                state for record, state in self._states.items() if record in self._dirty or record in self._in_flight
            ]
            for state in pending:
                self._forget(state)
                if not state.size:
                    self._states[state.record] = state
            self._in_flight.clear()
            self._counters.add("foreign_spans_dropped", len(self._foreign) + self._foreign_in_flight)
            self._foreign.clear()
            return pending

    # The schedule. Call these methods under the lock.

    def _due_at(self, state: RunExportState) -> float:
        """Return when a changed run is to be sent."""
        due_at = 0.0 if state.changed_at is None else state.changed_at
        if not (self._flushes or state.record.has_ended):
            delay = self.config.snapshot_delay
            due_at += delay
            if state.acked_at is not None:
                if not state.is_urgent:
                    by_age = (state.acked_at - state.registered_at) * _SNAPSHOT_INTERVAL_PER_AGE
                    delay = min(max(delay, by_age), self.config.heartbeat_interval)
                due_at = max(due_at, state.acked_at + delay)
        return max(due_at, state.not_before, self._not_before)

    def _foreign_due_at(self) -> float:
        """Return when spans of other instrumentation are to be sent: after a delay, unless there are many."""
        at_once = self._flushes or len(self._foreign) >= MAX_ROUND_FOREIGN_SPANS
        return max(self._foreign_since + (0.0 if at_once else self.config.snapshot_delay), self._not_before)

    def _mark_heartbeats(self, now: float) -> None:
        """Mark the runs whose heartbeat is due. Suspended ones are never stuck, but an alert watches their age."""
        while self._heartbeats and self._heartbeats[0][0] <= now:
            state = heappop(self._heartbeats)[2]
            record = state.record
            if record not in self._states or state.changed_at is not None or now < self._heartbeat_at(state):
                continue  # it has changed since, and has another heartbeat
            state.changed_at = now - self.config.snapshot_delay
            self._dirty[record] = state

    def _heartbeat_at(self, state: RunExportState) -> float:
        latest = state.registered_at if state.acked_at is None else state.acked_at
        return latest + max(self.config.heartbeat_interval, (latest - state.registered_at) / HEARTBEAT_SHARE)

    def _next_due_at(self) -> float:
        times = [self._due_at(state) for state in self._dirty.values()]
        times += [at for at, _, _ in self._heartbeats[:1]]
        if self._foreign:
            times.append(self._foreign_due_at())
        return min(times, default=_NEVER)
