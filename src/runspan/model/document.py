"""The members of a run document and its canonical text; no I/O.

Two documents are the same when their canonical texts are the same bytes. The canonical text has the known members in
the order in which the classes below declare them, then the unknown members in their original order, without white
space between members. Payloads, numbers and unknown members keep their text verbatim.
"""

from __future__ import annotations

from typing import ClassVar, Final, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from runspan.model.timestamps import parse_ns

OptionalText = str | UnsetType | None
"""A member that the platform writes as a string. Any other JSON value is kept as ``Raw``."""

Json = Raw | UnsetType
"""A member whose JSON text is kept verbatim."""

RUN_STATUSES: Final = ("pending", "running", "suspended", "completed", "failed", "cancelled", "timed_out")
TERMINAL_RUN_STATUSES: Final = ("completed", "failed", "cancelled", "timed_out")
LIVE_RUN_STATUSES: Final = ("pending", "running")
"""Statuses that an engine updates frequently. A suspended run is excluded: it may wait for days without a change."""
STEP_STATUSES: Final = ("pending", "running", "completed", "failed", "skipped", "retrying")
TERMINAL_STEP_STATUSES: Final = ("completed", "failed", "skipped")
"""These are tuples, not sets, because a non-canonical status is ``Raw``, which is not hashable."""


class Step(Struct, frozen=True, gc=False, forbid_unknown_fields=True, rename="camel"):
    """One step of a run."""

    extra: ClassVar[bytes] = b""
    """The text of the unknown members, ``"key":value`` pairs joined by commas."""

    id: str
    name: OptionalText = UNSET
    type: OptionalText = UNSET
    status: OptionalText = UNSET
    started_at: OptionalText = UNSET
    completed_at: OptionalText = UNSET
    duration_ms: Json = UNSET
    attempt: Json = UNSET
    input: Json = UNSET
    output: Json = UNSET
    error: Json = UNSET
    retry_policy: Json = UNSET


class Envelope(Struct, frozen=True, gc=False, forbid_unknown_fields=True, rename="camel"):
    """The members of a run."""

    extra: ClassVar[bytes] = b""
    """The text of the unknown members, ``"key":value`` pairs joined by commas."""

    id: str
    workflow_id: OptionalText = UNSET
    status: OptionalText = UNSET
    trigger_type: OptionalText = UNSET
    started_at: OptionalText = UNSET
    completed_at: OptionalText = UNSET
    duration_ms: Json = UNSET
    input: Json = UNSET
    output: Json = UNSET
    error: Json = UNSET
    created_at: OptionalText = UNSET
    steps: list[Step] | UnsetType | None = UNSET


class ExtendedStep(Step, frozen=True, gc=True, dict=True, rename="camel"):
    """A step with unknown members. A class of its own, so that other steps need no ``__dict__``."""


class ExtendedEnvelope(Envelope, frozen=True, gc=True, dict=True, rename="camel"):
    """A run with unknown members."""


class Summary(Struct, frozen=True, gc=False, rename="camel"):
    """The members of a list item."""

    id: str
    workflow_id: OptionalText = UNSET
    status: OptionalText = UNSET
    trigger_type: OptionalText = UNSET
    started_at: OptionalText = UNSET
    completed_at: OptionalText = UNSET
    duration_ms: Json = UNSET
    error: Json = UNSET
    created_at: OptionalText = UNSET


SUMMARY_MEMBERS: Final = Summary.__struct_fields__
"""The members of a list item in documented order."""

_encode = msgspec.json.Encoder().encode
_Document = TypeVar("_Document", Step, Envelope)


def with_extra_step(step: Step, extra: bytes) -> Step:
    """Return the step with the text of its unknown members."""
    return _extended(ExtendedStep, step, extra) if extra else step


def with_extra_run(envelope: Envelope, extra: bytes) -> Envelope:
    """Return the envelope with the text of its unknown members."""
    return _extended(ExtendedEnvelope, envelope, extra) if extra else envelope


def _extended(kind: type[_Document], document: _Document, extra: bytes) -> _Document:
    extended = kind(**msgspec.structs.asdict(document))
    extended.__dict__["extra"] = extra
    return extended


def step_text(step: Step) -> bytes:
    """Return the canonical text of a step."""
    text = _encode(step)
    return text[:-1] + b"," + step.extra + b"}" if step.extra else text


def run_text(envelope: Envelope) -> bytes:
    """Return the canonical text of a run."""
    steps = envelope.steps
    if type(steps) is list and any(step.extra for step in steps):
        without_steps = _encode(_without_steps(envelope))
        step_texts = b",".join([step_text(step) for step in steps])
        text = without_steps[:-1] + b',"steps":[' + step_texts + b"]}"
    else:
        text = _encode(envelope)
    return text[:-1] + b"," + envelope.extra + b"}" if envelope.extra else text


def summary_text(envelope: Envelope) -> bytes:
    """Return the list item of a run: canonical JSON of ``SUMMARY_MEMBERS``, without absent members."""
    return _encode(Summary(*[getattr(envelope, name) for name in SUMMARY_MEMBERS]))


def _without_steps(envelope: Envelope) -> Envelope:
    return Envelope(**{**msgspec.structs.asdict(envelope), "steps": UNSET})


def sort_time(envelope: Envelope) -> int:
    """Return where a run lies in time, in nanoseconds since 1970: the sort key of lists and the start of its spans.

    The first that is usable of the run's start, its creation, its earliest step and its completion; 0 if none is.
    """
    for value in (envelope.started_at, envelope.created_at):
        ns = time_ns(value)
        if ns:
            return ns
    steps = envelope.steps if type(envelope.steps) is list else ()
    times = [time_ns(value) for step in steps for value in (step.started_at, step.completed_at)]
    return min([ns for ns in times if ns], default=0) or time_ns(envelope.completed_at) or 0


def latest_time(envelope: Envelope) -> int:
    """Return the latest time in a document in nanoseconds since 1970, 0 if it has none."""
    steps = envelope.steps if type(envelope.steps) is list else ()
    values = [envelope.started_at, envelope.completed_at]
    values += [value for step in steps for value in (step.started_at, step.completed_at)]
    return max([time_ns(value) or 0 for value in values])


def time_ns(value: object) -> int | None:
    """Return the nanoseconds since 1970 of a timestamp member, or None if it is absent or unusable."""
    return parse_ns(value) if type(value) is str else None


def str_or_none(value: object) -> str | None:
    """Return the value if it is a string, else None."""
    return value if type(value) is str else None
