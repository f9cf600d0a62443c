"""The state of one run: what the engine has recorded of it, the document made of that, and the changes that it accepts.

``RunRecord`` holds a run and its steps behind one lock. It refuses changes that come too late, and reports each of the
others to the exporting side.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from msgspec import UNSET, Raw, UnsetType

from runspan.codec.copies import copy_span_id
from runspan.codec.semconv import caller_links, is_caller_sampled
from runspan.model.document import (
    TERMINAL_RUN_STATUSES,
    TERMINAL_STEP_STATUSES,
    Envelope,
    Run,
    Step,
    run_text,
    with_extra_run,
    with_extra_step,
)
from runspan.model.span import Link, child_span_id, run_ids
from runspan.model.timestamps import MAX_NS, MILLISECOND, rfc3339
from runspan.recorder.serialize import Payload, object_keys, object_text, payload

_log = logging.getLogger("runspan.recorder")

PRECISIONS: Final = {"ms": MILLISECOND, "us": 1000, "ns": 1}
"""Nanoseconds by name; ``ms`` is what the platform writes."""

_RUN_BYTES: Final = 600
"""Approximate memory of a run without its texts."""
_STEP_BYTES: Final = 800
"""Approximate memory of a step without its texts."""
_ATTEMPT_BYTES: Final = 300
"""Approximate memory of an attempt without its texts."""


@dataclass(slots=True)
class Attempt:
    """One attempt of a step. Times are nanoseconds since 1970."""

    number: int
    """Counts from 1."""
    started_at: int
    ended_at: int | None = None
    status: str = "running"
    error: bytes | None = None

    def to_json(self) -> bytes:
        """Return the attempt as an element of the step's member ``attempts``."""
        members = {"attempt": b"%d" % self.number, "status": b'"%b"' % self.status.encode()}
        members["startedAt"] = b'"%b"' % rfc3339(self.started_at).encode()
        if self.ended_at is not None:
            members["completedAt"] = b'"%b"' % rfc3339(self.ended_at).encode()
        if self.error is not None:
            members["error"] = self.error
        return object_text(members)


@dataclass(slots=True, eq=False)
class StepRecord:
    """One execution of a step. Change it only under the lock of its run.

    Times are nanoseconds since 1970; values of type ``bytes`` are JSON texts.
    """

    id: str
    name: str | UnsetType
    type: str | UnsetType
    span_id: bytes
    status: str = "pending"
    started_at: int | None = None
    ended_at: int | None = None
    attempt: int = 0
    """The number of the latest attempt; 0 when the engine records no attempts."""
    input: bytes | None = None
    output: bytes | None = None
    usage: bytes | None = None
    child_run_id: bytes | None = None
    error: bytes | None = None
    retry_policy: bytes | None = None
    attempts: list[Attempt] = field(default_factory=list)
    extra: bytes = b""
    """Further members, ``"key":value`` joined by commas."""
    final: Step | None = None
    """The step as the document lists it, once it has ended."""

    @property
    def has_ended(self) -> bool:
        return self.status in TERMINAL_STEP_STATUSES

    def to_step(self) -> Step:
        """Return the step as the document lists it."""
        if self.final is not None:
            return self.final
        started_at = None if self.status in ("pending", "skipped") else self.started_at
        ended_at = None if started_at is None else self.ended_at
        step = Step(
            id=self.id,
            name=self.name,
            type=self.type,
            status=self.status,
            started_at=_time(started_at),
            completed_at=_time(ended_at),
            duration_ms=_duration(started_at, ended_at),
            attempt=Raw(b"%d" % self.attempt) if self.attempt else UNSET,
            input=_raw(self.input),
            output=_raw(self.output_json()),
            error=_raw(self.error),
            retry_policy=_raw(self.retry_policy),
        )
        extra = [self.extra] if self.extra else []
        if self.attempts:
            extra.append(b'"attempts":[' + b",".join([attempt.to_json() for attempt in self.attempts]) + b"]")
        step = with_extra_step(step, b",".join(extra))
        if self.has_ended:
            self.final = step
        return step

    def output_json(self) -> bytes | None:
        """Return the output with the token usage and the child's run id where the platform writes them."""
        text = self.output
        if self.usage is None and self.child_run_id is None:
            return text
        keys = frozenset[str]() if text is None else object_keys(text)
        usage = self.usage if keys is None or "usage" not in keys else None
        is_result = text is not None and (keys is None or (usage is not None and "result" not in keys))
        child_run_id = self.child_run_id if keys is None or is_result or "runId" not in keys else None
        if usage is None and child_run_id is None:
            return text
        members = [] if child_run_id is None else [b'"runId":' + child_run_id]
        if text is not None:
            members.append(b'"result":' + text if is_result else text[1:-1].strip(b" \t\r\n"))
        if usage is not None:
            members.append(b'"usage":' + usage)
        return b"{" + b",".join(filter(None, members)) + b"}"

    def estimated_size(self) -> int:
        """Return about how many bytes of memory the step takes."""
        if self.final is not None:  # a step of a checkpoint has nothing else
            step = self.final
            texts = (step.id, step.name, step.type, step.input, step.output, step.error, step.retry_policy, step.extra)
            return _STEP_BYTES + _total_length(*texts)
        values = (self.input, self.output, self.usage, self.child_run_id, self.error, self.retry_policy, self.extra)
        attempts = sum([_ATTEMPT_BYTES + _total_length(attempt.error) for attempt in self.attempts])
        return _STEP_BYTES + attempts + _total_length(self.id, self.name, self.type, *values)


def _total_length(*texts: str | bytes | Raw | UnsetType | None) -> int:
    return sum([len(text) for text in texts if text])


def _raw(text: bytes | None) -> Raw | UnsetType:
    return UNSET if text is None else Raw(text)


def _time(ns: int | None) -> str | UnsetType:
    return UNSET if ns is None else rfc3339(ns)


def _duration(started_at: int | None, ended_at: int | None) -> Raw | UnsetType:
    if started_at is None or ended_at is None:
        return UNSET
    return Raw(b"%d" % ((ended_at - started_at) // MILLISECOND))


class RunRecord:
    """One run and its steps, while this process records it. ``lock`` guards everything.

    Times are nanoseconds since 1970; values of type ``bytes`` are JSON texts.
    """

    def __init__(
        self,
        run_id: str,
        workflow_id: str | UnsetType,
        tenant: str,
        resume_count: int = 0,
        *,
        clock: Callable[[], int],
        precision: int,
        count: Callable[[str], None],
        on_change: Callable[[RunRecord, bool], None],
    ) -> None:
        """Begin a run that is pending.

        resume_count: how often the run was resumed from a checkpoint before.
        precision: of its times, a value of ``PRECISIONS``.
        count: called with the name of a count of ``RecorderReport`` to increment.
        on_change: called after each change, outside the lock, with True when the run's own status changed.

        The time of the beginning and the resume count are part of the step span ids. A run that is resumed, or executed
        again under its id, therefore uses no span id twice, however soon that is and whatever the clock of another
        machine says.
        """
        epoch = min(max(clock(), 0), MAX_NS)  # a wrong clock must not fail the engine
        self.lock = threading.RLock()
        self.id = run_id
        self.tenant = tenant
        self.trace_id, self.root_id, _ = run_ids(run_id, tenant)
        self.not_before = epoch - epoch % precision
        """When the run began in this process. No time of it is earlier."""
        self.resume_count = resume_count
        self.workflow_id = workflow_id
        self.status = "pending"
        self.trigger: str | UnsetType = UNSET
        self.created_at: int = self.not_before
        self.started_at: int | None = None
        self.ended_at: int | None = None
        self.input: bytes | None = None
        self.output: bytes | None = None
        self.error: bytes | None = None
        self.extra = b""
        self.caller: Link | None = None
        """The span that started the run, if its trace gets a copy of the run."""
        self.steps: list[StepRecord] = []
        self.latest_time = self.not_before
        self.revision = 0
        self.released = False
        self.disowned = False
        """Whether the run belongs to another process, the parent of this one or the one that resumes it: whatever is
        recorded here is ignored."""
        self.registered = False
        """Whether the run is exported."""
        self.delivered = False
        """Whether the receiver has all of the run, which changes no more in this process."""
        self.dropped = ""
        """Why the receiver lacks some of the run and will not get it from here; "" if that is not so."""
        self.count = count
        self._clock = clock
        self._precision = precision
        self._on_change = on_change
        self._planned: dict[str, list[StepRecord]] = {}
        self._executions: Counter[str] = Counter()
        self._span_id_seed = self.trace_id + epoch.to_bytes(8, "big") + resume_count.to_bytes(4, "big")

    @property
    def has_ended(self) -> bool:
        return self.status in TERMINAL_RUN_STATUSES

    def context_ids(self, span_id: bytes) -> tuple[bytes, bytes]:
        """Return trace id and span id of the parent of the spans that are made inside a span of this run: its own, or
        those of its copy in the trace of the caller."""
        if self.caller is None:
            return self.trace_id, span_id
        return self.caller.trace_id, copy_span_id(span_id)

    def join_caller(self) -> None:
        """Have the run copied into the trace of its caller, if that is known and recorded."""
        links = caller_links(self.extra, self.trace_id)
        self.caller = links[0] if links and is_caller_sampled(self.extra) else None

    def add_step(self, step_id: str, name: str | UnsetType, kind: str | UnsetType, *, planned: bool) -> StepRecord:
        """Return the next planned step of this id, or add a new one at the end. planned: always add one."""
        waiting = self._planned.get(step_id)
        if waiting and not planned:
            step = waiting.pop(0)
            step.name = name if name is not UNSET else step.name
            step.type = kind if kind is not UNSET else step.type
            return step
        self._executions[step_id] += 1
        span_id = child_span_id(self._span_id_seed + step_id.encode(), "live step", self._executions[step_id])
        step = StepRecord(step_id, name, kind, span_id)
        self.steps.append(step)
        if planned:
            self._planned.setdefault(step_id, []).append(step)
        return step

    def add_ended_step(self, step: StepRecord) -> None:
        """Add a step that had ended before the run was resumed."""
        self._executions[step.id] += 1
        self.steps.append(step)

    def document(self) -> Run:
        """Return the document of the current state."""
        return self.snapshot()[0]

    def snapshot(self, now: int | None = None) -> tuple[Run, list[bytes], int, bool]:
        """Return the document of the current state; the span ids of all steps in its order, also of open ones; the
        revision; and whether the run changes no more in this process, because it has ended or was released.

        now: nanoseconds since 1970, when the snapshot is to be sent. It gets a revision of its own then, unless the
        run was released: that is sent under the revision that its checkpoint has, however late.
        """
        with self.lock:
            if now is not None and not self.released:
                self._set_revision(now)
            revision, is_final = self.revision, self.released or self.has_ended
            span_ids = [step.span_id for step in self.steps]
            envelope = Envelope(
                id=self.id,
                workflow_id=self.workflow_id,
                status=self.status,
                trigger_type=self.trigger,
                started_at=_time(self.started_at),
                completed_at=_time(self.ended_at),
                duration_ms=_duration(self.started_at, self.ended_at),
                input=_raw(self.input),
                output=_raw(self.output),
                error=_raw(self.error),
                created_at=rfc3339(self.created_at),
                steps=[step.to_step() for step in self.steps],
            )
            envelope = with_extra_run(envelope, self.extra)
        return Run(envelope, run_text(envelope)), span_ids, revision, is_final

    def estimated_size(self) -> int:
        """Return about how many bytes of memory the run takes, everything that an engine can record included."""
        with self.lock:
            steps = sum([step.estimated_size() for step in self.steps])
            texts = (self.id, self.workflow_id, self.trigger, self.input, self.output, self.error, self.extra)
            return _RUN_BYTES + steps + _total_length(*texts)

    def release(self) -> None:
        """Hand the run over: every revision of the process that resumes it ranks above the one that it gets now."""

        def write() -> None:
            self._set_revision(self._clock())
            self.released = self.disowned = True

        self.change(write, status=True)

    def _set_revision(self, now: int) -> None:
        """Set the revision to the time of observation, but above every earlier one of this run."""
        self.revision = max(now, self.revision + 1, self.latest_time)

    def timestamp(self, not_before: int | None = None) -> int:
        """Return the current time, or ``not_before`` if that is later: wall clocks are set back. Call it under the
        lock."""
        now = self._clock()
        self.latest_time = max(now - now % self._precision, not_before or 0, self.not_before)
        return self.latest_time

    def change(self, write: Callable[[], None], step: StepRecord | None = None, *, status: bool = False) -> bool:
        """Apply a change under the lock and report it.

        Return False, and count the call as late, when the run or the step has ended already; also after an internal
        error, which is logged and counted.

        step: the step that is changed, if it is one.
        status: whether the run's own status changes.
        """
        try:
            with self.lock:
                accepted = not (self.disowned or self.has_ended or (step is not None and step.has_ended))
                if accepted:
                    write()
            if accepted:
                self._on_change(self, status)
            else:
                self.count("late_calls")
        except Exception:  # no error of telemetry reaches the engine
            self.count("internal_errors")
            _log.exception("runspan.Recorder: internal error; a change of run %s is not recorded", self.id)
            return False
        return accepted

    def set_member(self, member: str, value: Payload, step: StepRecord | None = None) -> None:
        """Set a member of the run, or of a step, that is a JSON text."""
        if not value.exact:
            self.count("inexact_payloads")
        self.change(lambda: setattr(self if step is None else step, member, value.text), step)

    def begin_step(
        self,
        step_id: str,
        name: str | UnsetType,
        kind: str | UnsetType,
        extra: bytes = b"",
        retry: Mapping[str, object] | None = None,
        planned: bool = False,
    ) -> StepRecord | None:
        """Begin a step, or plan it. Return None when the run has ended."""
        step: StepRecord | None = None

        def write() -> None:
            nonlocal step
            step = self.add_step(step_id, name, kind, planned=planned)
            step.extra = extra or step.extra
            if retry is not None:
                step.retry_policy = payload(retry).text
            if not planned:
                now = self.timestamp()
                step.started_at = now if step.started_at is None else step.started_at
                step.status = "running"

        self.change(write)
        return step


def attempt_span_id(step: StepRecord, attempt: Attempt) -> bytes:
    """Return the span id that ``codec.semconv.attempts_of`` gives to the attempt of this number."""
    return child_span_id(step.span_id, "attempt", attempt.number)
