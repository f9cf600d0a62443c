"""A run as it stands: what an engine told so far, behind one lock, and the document, span ids and checkpoint of it.

A run in the hands of an engine: its record, the clock, and who is told when it changes.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from msgspec import UNSET, Raw, UnsetType

from runspan.model.document import (
    TERMINAL_RUN_STATUSES,
    TERMINAL_STEP_STATUSES,
    Envelope,
    Step,
    run_text,
    with_extra_run,
    with_extra_step,
)
from runspan.model.ids import child_span_id, run_ids
from runspan.model.run import Run
from runspan.model.timestamps import MILLISECOND, SECOND, canonical_text
from runspan.recorder.serialize import Payload, object_text, payload
from runspan.recorder.stats import Counters

PRECISIONS: Final = {"ms": MILLISECOND, "us": 1000, "ns": 1}
"""Nanoseconds by name; ``ms`` is what the platform writes."""
_RUN_BYTES: Final = 600
_STEP_BYTES: Final = 800
_ATTEMPT_BYTES: Final = 300
"""What a run, a step and an attempt hold in memory beside their texts, about."""


class TimestampFormat:
    """Times as documents write them. now: nanoseconds since 1970. precision: a key of ``PRECISIONS``."""

    def __init__(self, now: Any, precision: str) -> None:
        self.now = now
        self.unit = PRECISIONS[precision]

    def stamp(self, not_before: int = 0) -> int:
        """The time, cut to the precision, and never before a time that was told already: wall clocks are set back."""
        now: int = self.now()
        return max(now - now % self.unit, not_before)

    def cut(self, now: int) -> int:
        """A time that was read from the clock, as ``stamp`` would tell it."""
        return now - now % self.unit


def time_text(ns: int) -> str:
    """RFC 3339: the platform's form for whole milliseconds, else with nine digits."""
    text = canonical_text(ns)
    if text is not None:
        return text
    second, rest = divmod(ns, SECOND)
    whole = canonical_text(second * SECOND) or ""
    return f"{whole[:19]}.{rest:09}Z"


@dataclass(slots=True)
class Attempt:
    """One attempt of a step. position: counts from 1."""

    position: int
    started: int
    ended: int | None = None
    status: str = "running"
    error: bytes | None = None

    def text(self) -> bytes:
        """The member of the step's ``attempts``."""
        told = {"attempt": b"%d" % self.position, "status": b'"%b"' % self.status.encode()}
        told["startedAt"] = b'"%b"' % time_text(self.started).encode()
        if self.ended is not None:
            told["completedAt"] = b'"%b"' % time_text(self.ended).encode()
        if self.error is not None:
            told["error"] = self.error
        return object_text(told)


@dataclass(slots=True, eq=False)
class StepRecord:
    """One step. Changed under the lock of its run only."""

    id: str
    name: str | UnsetType
    type: str | UnsetType
    span_id: bytes
    status: str = "pending"
    started: int | None = None
    ended: int | None = None
    attempt: int = 0
    input: bytes | None = None
    output: Payload | None = None
    usage: bytes | None = None
    child_run_id: bytes | None = None
    error: bytes | None = None
    retry_policy: bytes | None = None
    attempts: list[Attempt] = field(default_factory=list)
    extra: bytes = b""
    done: Step | None = None

    @property
    def finished(self) -> bool:
        return self.status in TERMINAL_STEP_STATUSES

    def step(self) -> Step:
        """The step as the document lists it."""
        if self.done is not None:
            return self.done
        timed = self.status not in ("pending", "skipped") and self.started is not None
        ended = timed and self.ended is not None
        made = Step(
            id=self.id,
            name=self.name,
            type=self.type,
            status=self.status,
            started_at=time_text(self.started) if timed else UNSET,  # type: ignore[arg-type]
            completed_at=time_text(self.ended) if ended else UNSET,  # type: ignore[arg-type]
            duration_ms=Raw(b"%d" % ((self.ended - self.started) // MILLISECOND)) if ended else UNSET,  # type: ignore[operator]
            attempt=Raw(b"%d" % self.attempt) if self.attempt else UNSET,
            input=_raw(self.input),
            output=_raw(self.output_text()),
            error=_raw(self.error),
            retry_policy=_raw(self.retry_policy),
        )
        extra = [self.extra] if self.extra else []
        if self.attempts:
            extra.append(b'"attempts":[' + b",".join([attempt.text() for attempt in self.attempts]) + b"]")
        made = with_extra_step(made, b",".join(extra))
        if self.finished:
            self.done = made
        return made

    def output_text(self) -> bytes | None:
        """The output with the token usage and the child's run id where the platform has them."""
        text = None if self.output is None else self.output.text
        if self.usage is None and self.child_run_id is None:
            return text
        keys = None if self.output is None else self.output.keys
        if self.usage is not None and "usage" not in (keys or ()):
            text, keys = _with_member(text, keys, b"usage", self.usage, wrap="result" not in (keys or ()))
        if self.child_run_id is not None and "runId" not in (keys or ()):
            text, keys = _with_member(text, keys, b"runId", self.child_run_id, wrap=keys is None, first=True)
        return text

    def size(self) -> int:
        """About how many bytes it holds."""
        done = self.done
        if done is not None:  # of a checkpoint, it is all that there is
            texts = (done.id, done.name, done.type, done.input, done.output, done.error, done.retry_policy, done.extra)
            return _STEP_BYTES + _length(*texts)
        output = self.output and self.output.text
        told = (self.input, output, self.usage, self.child_run_id, self.error, self.retry_policy, self.extra)
        attempts = sum([_ATTEMPT_BYTES + _length(attempt.error) for attempt in self.attempts]) if self.attempts else 0
        return _STEP_BYTES + attempts + _length(self.id, self.name, self.type, *told)


def _with_member(
    text: bytes | None, keys: frozenset[str] | None, key: bytes, value: bytes, *, wrap: bool, first: bool = False
) -> tuple[bytes, frozenset[str]]:
    """An object with one member more. wrap: what is there becomes its member ``result``."""
    member = b'"%b":%b' % (key, value)
    inner = b""
    if text is not None:
        inner = b'"result":' + text if wrap else text[1:-1].strip(b" \t\r\n")
        keys = frozenset(("result",)) if wrap else keys
    pair = (member, inner) if first else (inner, member)
    return b"{" + b",".join(filter(None, pair)) + b"}", (keys or frozenset()) | {key.decode()}


def _length(*texts: str | bytes | Raw | UnsetType | None) -> int:
    return sum([len(text) for text in texts if text])


def _raw(text: bytes | None) -> Raw | UnsetType:
    return UNSET if text is None else Raw(text)


class RunSnapshot(NamedTuple):
    """A run as it stood at one moment. span_ids: of all its steps, of those that go on too. revision: how the moment
    ranks among others of this run. last: whether it changes no more here: it has ended, or was let go."""

    run: Run
    span_ids: list[bytes]
    revision: int
    last: bool


class RunRecord:
    """One run. ``lock`` guards everything.

    since: when it began here, as documents tell it; no time of it is told that is earlier. epoch: the same moment, as
    the clock has it. turn: how often the run had been taken up from a checkpoint by then. Epoch and turn are part of
    the step ids, so that a run that is taken up again, or run again under its id, gives none out twice, however soon
    that is and whatever the clock of another machine says. released: it was let go, under its revision.
    """

    def __init__(
        self, run_id: str, workflow_id: str | UnsetType, tenant: str, since: int, epoch: int = 0, turn: int = 0
    ) -> None:
        self.lock = threading.RLock()
        self.id = run_id
        self.tenant = tenant
        self.trace_id, self.root_id, _ = run_ids(run_id, tenant)
        self.since = since
        self.turn = turn
        self.workflow_id = workflow_id
        self.status = "pending"
        self.trigger: str | UnsetType = UNSET
        self.created: int = since
        self.started: int | None = None
        self.ended: int | None = None
        self.input: bytes | None = None
        self.output: bytes | None = None
        self.error: bytes | None = None
        self.extra = b""
        self.steps: list[StepRecord] = []
        self.latest = since
        self.revision = 0
        self.released = False
        self._waiting: dict[str, list[StepRecord]] = {}
        self._occurrences: Counter[str] = Counter()
        self._place = self.trace_id + epoch.to_bytes(8, "big") + turn.to_bytes(4, "big")

    @property
    def ended_already(self) -> bool:
        return self.status in TERMINAL_RUN_STATUSES

    def add_step(self, step_id: str, name: str | UnsetType, kind: str | UnsetType, *, planned: bool) -> StepRecord:
        """A step of this id: one that was planned and not begun, else a new one at the end."""
        waiting = self._waiting.get(step_id)
        if waiting and not planned:
            found = waiting.pop(0)
            found.name = name if name is not UNSET else found.name
            found.type = kind if kind is not UNSET else found.type
            return found
        made = StepRecord(step_id, name, kind, self._next_span_id(step_id))
        self.steps.append(made)
        if planned:
            self._waiting.setdefault(step_id, []).append(made)
        return made

    def add_finished(self, step: StepRecord) -> None:
        """A step that had ended before the run was taken up here."""
        self._occurrences[step.id] += 1
        self.steps.append(step)

    def _next_span_id(self, step_id: str) -> bytes:
        """By position: the run, the step's id, and how many of that id there were."""
        self._occurrences[step_id] += 1
        return child_span_id(self._place + step_id.encode(), "live step", self._occurrences[step_id])

    def document(self) -> Run:
        """The document as it stands."""
        return self.state().run

    def state(self, now: int | None = None) -> RunSnapshot:
        """The run as it stands. now: nanoseconds since 1970; what is read is to be sent, so it gets a revision of its
        own, unless the run was let go: that is sent under the one that its checkpoint has, however late."""
        with self.lock:
            if now is not None and not self.released:
                self._revise(now)
            revision, last = self.revision, self.released or self.ended_already
            steps = [record.step() for record in self.steps]
            span_ids = [record.span_id for record in self.steps]
            made = Envelope(
                id=self.id,
                workflow_id=self.workflow_id,
                status=self.status,
                trigger_type=self.trigger,
                started_at=UNSET if self.started is None else time_text(self.started),
                completed_at=UNSET if self.ended is None else time_text(self.ended),
                duration_ms=UNSET
                if self.ended is None or self.started is None
                else Raw(b"%d" % ((self.ended - self.started) // MILLISECOND)),
                input=_raw(self.input),
                output=_raw(self.output),
                error=_raw(self.error),
                created_at=time_text(self.created),
                steps=steps,
            )
            envelope = with_extra_run(made, self.extra)
        return RunSnapshot(Run(envelope, run_text(envelope)), span_ids, revision, last)

    def size(self) -> int:
        """About how many bytes the run holds: whatever an engine can tell of it counts, so that a bound is one."""
        with self.lock:
            steps = sum([step.size() for step in self.steps])
            named = _length(self.id, self.workflow_id, self.trigger)
            return _RUN_BYTES + steps + named + _length(self.input, self.output, self.error, self.extra)

    def release(self, now: int) -> None:
        """Lets the run go, as of now: whoever takes it up ranks above the revision that it has from here on."""
        with self.lock:
            self._revise(now)
            self.released = True

    def _revise(self, now: int) -> None:
        """The time of observation, above every earlier one of this run."""
        self.revision = max(now, self.revision + 1, self.latest)


def extra_members(found: dict[str, bytes]) -> bytes:
    """The text of unknown members whose values are JSON texts."""
    return object_text(found)[1:-1]


class RunSession:
    """on_change: called after a change, outside the lock; True when the run's own status changed.

    abandoned: the run belongs to another process, the parent of this one or whoever resumed it: nothing that happens
    here is recorded. lost: the receiver lacks some of the run, and will not get it from here.
    """

    __slots__ = ("abandoned", "clock", "counts", "lost", "on_change", "record")

    def __init__(
        self, record: RunRecord, clock: TimestampFormat, counts: Counters, on_change: Callable[[RunSession, bool], None]
    ) -> None:
        self.record = record
        self.clock = clock
        self.counts = counts
        self.on_change = on_change
        self.abandoned = False
        self.lost = False

    def stamp(self, not_before: int | None = None) -> int:
        """The time, not before another one. Call it under the lock."""
        record = self.record
        record.latest = now = self.clock.stamp(max(not_before or 0, record.since))
        return now

    def change(
        self, write: Callable[[RunRecord], None], step: StepRecord | None = None, *, status: bool = False
    ) -> bool:
        """Writes under the lock, and tells of it. False, and counted, when the run or the step has ended already."""
        record = self.record
        with record.lock:
            taken = not (self.abandoned or record.ended_already or (step is not None and step.finished))
            if taken:
                write(record)
        if taken:
            self.on_change(self, status)
        else:
            self.counts.add("late")
        return taken

    def begin_step(
        self,
        step_id: str,
        name: str | UnsetType,
        kind: str | UnsetType,
        extra: bytes = b"",
        retry: Mapping[str, object] | None = None,
        planned: bool = False,
    ) -> StepRecord | None:
        """A step that begins now, or is planned; None when the run has ended."""
        made: list[StepRecord] = []

        def write(record: RunRecord) -> None:
            step = record.add_step(step_id, name, kind, planned=planned)
            step.extra = extra or step.extra
            if retry is not None:
                step.retry_policy = payload(retry).text
            if not planned:
                now = self.stamp()
                step.started = now if step.started is None else step.started
                step.status = "running"
            made.append(step)

        self.change(write)
        return made[0] if made else None


def attempt_span_id(step: StepRecord, attempt: Attempt) -> bytes:
    """As ``codec.semconv.attempts_of`` gives it to the attempt at this place in the list."""
    return child_span_id(step.span_id, "attempt", attempt.position)
