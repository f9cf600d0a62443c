"""A run as it stands: what an engine told so far, behind one lock, and the document, span ids and checkpoint of it."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec import UNSET, Raw, UnsetType

from runspan.document import (
    TERMINAL_RUN_STATUSES,
    TERMINAL_STEP_STATUSES,
    Envelope,
    Step,
    run_text,
    with_extra_run,
    with_extra_step,
)
from runspan.ids import child_span_id, run_ids
from runspan.recorder.values import Payload, object_text
from runspan.run import Run
from runspan.times import MILLISECOND, SECOND, canonical_text

PRECISIONS: Final = {"ms": MILLISECOND, "us": 1000, "ns": 1}
"""Nanoseconds by name; ``ms`` is what the platform writes."""
_RUN_BYTES: Final = 600
_STEP_BYTES: Final = 800
"""What a run and a step hold in memory beside their payloads, about."""


class Clock:
    """Times as documents write them. now: nanoseconds since 1970. precision: a key of ``PRECISIONS``."""

    def __init__(self, now: Any, precision: str) -> None:
        self.now = now
        self.unit = PRECISIONS[precision]

    def stamp(self, not_before: int = 0) -> int:
        """The time, cut to the precision, and never before a time that was told already: wall clocks are set back."""
        now: int = self.now()
        return max(now - now % self.unit, not_before)


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
        text, keys = (None, None) if self.output is None else self.output[:2]
        if self.usage is not None and "usage" not in (keys or ()):
            text, keys = _with_member(text, keys, b"usage", self.usage, wrap="result" not in (keys or ()))
        if self.child_run_id is not None and "runId" not in (keys or ()):
            text, keys = _with_member(text, keys, b"runId", self.child_run_id, wrap=keys is None, first=True)
        return text


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


def _length(*texts: bytes | None) -> int:
    return sum([len(text) for text in texts if text])


def _raw(text: bytes | None) -> Raw | UnsetType:
    return UNSET if text is None else Raw(text)


class RunRecord:
    """One run. ``lock`` guards everything; ``changed`` is what a change calls, outside the lock.

    epoch: part of the step ids, so that a run that is taken up again, or run again under its id, gives none out twice.
    """

    def __init__(self, run_id: str, workflow_id: str | UnsetType, tenant: str, epoch: int) -> None:
        self.lock = threading.RLock()
        self.id = run_id
        self.tenant = tenant
        self.trace_id, self.root_id, _ = run_ids(run_id, tenant)
        self.epoch = epoch
        self.workflow_id = workflow_id
        self.status = "pending"
        self.trigger: str | UnsetType = UNSET
        self.created: int = epoch
        self.started: int | None = None
        self.ended: int | None = None
        self.input: bytes | None = None
        self.output: bytes | None = None
        self.error: bytes | None = None
        self.extra = b""
        self.steps: list[StepRecord] = []
        self.latest = epoch
        self.revision = 0
        self._waiting: dict[str, list[StepRecord]] = {}
        self._occurrences: Counter[str] = Counter()

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

    def _next_span_id(self, step_id: str) -> bytes:
        """By position: the run, the step's id, and how many of that id there were."""
        self._occurrences[step_id] += 1
        place = self.trace_id + self.epoch.to_bytes(8, "big") + step_id.encode()
        return child_span_id(place, "live step", self._occurrences[step_id])

    def document(self) -> Run:
        """The document as it stands."""
        return self.state()[0]

    def state(self) -> tuple[Run, list[bytes]]:
        """The document, and the span ids of its steps, of those that go on too."""
        with self.lock:
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
        return Run(envelope, run_text(envelope)), span_ids

    def size(self) -> int:
        """About how many bytes the document has."""
        with self.lock:
            steps = sum([_STEP_BYTES + _length(step.input, step.output and step.output.text) for step in self.steps])
            return _RUN_BYTES + steps + _length(self.input, self.output)

    def next_revision(self, now: int) -> int:
        """The time of observation, above every earlier one of this run."""
        with self.lock:
            self.revision = max(now, self.revision + 1, self.latest)
            return self.revision


def extra_members(found: dict[str, bytes]) -> bytes:
    """The text of unknown members whose values are JSON texts."""
    return object_text(found)[1:-1]
