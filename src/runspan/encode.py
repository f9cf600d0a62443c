"""A run document to spans: the pure half that writes; ``decode`` is its inverse; no I/O, no clock.

One run is one trace. Every finished step is a span that is written once, named by its content; the *head* names
them in its manifest and proves them by the document's digest. The head of a finished run is the root span, and of any
other run a snapshot span below the root to come.

``draft`` works everything out; ``encode`` hands it over as neutral spans, ``otlp.wire`` writes it without making them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import UNSET, Raw

from runspan.carry import Pairs, put_text, put_times, put_value
from runspan.document import TERMINAL_RUN_STATUSES, TERMINAL_STEP_STATUSES, Envelope, Step, step_text
from runspan.fields import (
    DIGEST,
    MANIFEST,
    ODD,
    OPEN,
    OPEN_STEPS,
    PIECE_BYTES,
    REVISION,
    ROLE,
    ROLE_ATTEMPT,
    ROOT_REVISION,
    RUN_EXTRA,
    RUN_ID,
    RUN_TABLE,
    STEP_COUNT,
    STEP_EXTRA,
    STEP_TABLE,
    TENANT,
    Kind,
)
from runspan.ids import run_ids, snapshot_span_id, step_span_id
from runspan.labels import STEP_LABELS, Label, odd_step_label, run_label
from runspan.projection import (
    CHILD_RUN_ID,
    ERROR_TYPE,
    PARENT_RUN_ID,
    PIPELINE_RUN_ID,
    Usage,
    attempts_of,
    child_link,
    child_run_of,
    fault_of,
    parent_run_of,
    put_totals,
    put_usage,
    usage_of,
)
from runspan.run import Run
from runspan.span import ERROR, INTERNAL, Attributes, Event, Link, Span
from runspan.span import UNSET as STATUS_UNSET
from runspan.times import FRACTIONS, MINUTES, SECONDS, canonical_ns, parse_ns

_TEXT = msgspec.json.Encoder().encode
_GET_LABELS: Final = STEP_TABLE.get_labels
_GET_VALUES: Final = STEP_TABLE.get_values
_NO_VALUES: Final = (UNSET,) * len(STEP_TABLE.values)
_NOTHING: Final[Pairs] = []
_OPEN: Final = b""
"""Among the span ids of a manifest: a step without one."""


class More(NamedTuple):
    """What only some spans have: an error's status and events, a sub-workflow's link."""

    status: int = STATUS_UNSET
    message: str = ""
    events: tuple[Event, ...] = ()
    links: tuple[Link, ...] = ()


PLAIN: Final = More()


StepDraft = tuple[bytes, Label, int, int, tuple[Any, ...], Pairs, More]
"""A finished step on its way to a span: span id, label, start, end, values, own, more.

values: the members of ``STEP_TABLE.values`` that fit uncut into their usual attribute, UNSET for the others.
own: all other attributes of the span's own. A plain tuple, since one is made per span.
"""


class Draft(NamedTuple):
    """A run on its way to spans: its finished steps, what else lies in the trace, and the head."""

    trace_id: bytes
    root_id: bytes
    identity: Attributes
    steps: list[StepDraft]
    below: list[Span]
    head: Span

    def spans(self) -> list[Span]:
        """The neutral spans: steps in order, attempts, the head."""
        return [self._step(step) for step in self.steps] + self.below + [self.head]

    def _step(self, step: StepDraft) -> Span:
        span_id, label, start, end, values, attributes, more = step
        own: Pairs = []
        for field, value in zip(STEP_TABLE.values, values, strict=True):
            put_value(own, field, value)
        return Span(
            trace_id=self.trace_id,
            span_id=span_id,
            parent_id=self.root_id,
            name=label.name,
            kind=label.kind,
            start=start,
            end=end,
            status=more.status,
            message=more.message,
            shared=(self.identity, label.shared),
            own=own + attributes,
            events=more.events,
            links=more.links,
        )


def encode(
    run: Run,
    *,
    tenant: str = "",
    observed_at: int | None = None,
    after_root: bool = False,
    step_ids: Sequence[bytes] | None = None,
    exception_events: bool = True,
) -> list[Span]:
    """The spans of a run: its finished steps in order, the head last. The same arguments give the same spans.

    tenant: whose run it is; part of every id.
    observed_at: when the document was read, nanoseconds since 1970: the end and the revision of a snapshot. Without it
    the latest time in the document stands in.
    after_root: the run's root span was written already and this document differs from it: write the change as a
    snapshot that ranks above the root.
    step_ids: the span ids of the finished steps, in order, where a live recorder gave them out before the content.
    exception_events: whether a failed span gets the conventions' ``exception`` event.
    """
    return draft(run, tenant, observed_at, after_root, step_ids, exception_events).spans()


def draft(
    run: Run,
    tenant: str = "",
    observed_at: int | None = None,
    after_root: bool = False,
    step_ids: Sequence[bytes] | None = None,
    exception_events: bool = True,
) -> Draft:
    """What ``encode`` says, before it becomes spans."""
    return _Drafting(run, tenant, exception_events, after_root).draft(observed_at, step_ids)


def content_step_ids(run: Run, tenant: str = "") -> list[bytes]:
    """The ids that ``encode`` gives to the spans of the finished steps, without the rest of the work."""
    return _Drafting(run, tenant, True, False).step_ids()


class _Drafting:
    """One run being drafted."""

    def __init__(self, run: Run, tenant: str, exception_events: bool, after_root: bool) -> None:
        envelope = run.envelope
        self.envelope = envelope
        self.run_text = run.text
        self.tenant = tenant
        self.exception_events = exception_events
        self.after_root = after_root
        self.is_root = not after_root and envelope.status in TERMINAL_RUN_STATUSES
        self.trace_id, self.root_id, seed = run_ids(envelope.id, tenant)
        self.label = run_label(self.is_root, RUN_TABLE.get_labels(envelope))
        self.fallback = _first_time(envelope)
        self.seed = (seed ^ self.label.salt ^ self.fallback ^ (not exception_events)).to_bytes(8, "big")
        self.identity = Attributes([(RUN_ID, envelope.id), *self.label.identity])
        self.usages: list[Usage] = []

    def draft(self, observed_at: int | None, step_ids: Sequence[bytes] | None) -> Draft:
        steps = self.envelope.steps
        given = None if step_ids is None else iter(step_ids)
        drafts: list[StepDraft] = []
        below: list[Span] = []
        names: list[bytes] = []
        taken: set[bytes] = set()
        open_steps: list[bytes] = []
        size = 0
        for step in steps if type(steps) is list else ():
            text = _TEXT(step) if type(step) is Step else step_text(step)
            size += len(text)
            labels = _GET_LABELS(step)
            try:
                label = STEP_LABELS[labels]
            except TypeError:
                label = odd_step_label(labels)
            if not label.finished:
                open_steps.append(text)
                names.append(_OPEN)
                continue
            span_id = step_span_id(text, self.seed, taken) if given is None else next(given, _OPEN)
            taken.add(span_id)
            names.append(span_id)
            drafts.append(self._step(step, len(text), span_id, label))
            if step.extra:
                below += self._attempts(step, span_id, label)
        if step_ids is not None and len(step_ids) != len(drafts):
            raise ValueError(f"{len(step_ids)} step ids for {len(drafts)} finished steps")
        manifest = b"".join(names).hex() if not open_steps else "".join([name.hex() or OPEN for name in names])
        is_small = len(self.run_text) - size <= PIECE_BYTES
        head = self._head(manifest, open_steps, observed_at, is_small)
        return Draft(self.trace_id, self.root_id, self.identity, drafts, below, head)

    def step_ids(self) -> list[bytes]:
        """The content ids of the finished steps, as ``draft`` gives them out."""
        found: list[bytes] = []
        taken: set[bytes] = set()
        steps = self.envelope.steps
        for step in steps if type(steps) is list else ():
            if step.status in TERMINAL_STEP_STATUSES:
                found.append(step_span_id(step_text(step), self.seed, taken))
                taken.add(found[-1])
        return found

    def _step(self, step: Step, size: int, span_id: bytes, label: Label) -> StepDraft:
        own = _NOTHING
        started, completed = step.started_at, step.completed_at
        try:
            start = MINUTES[started[:17]] + SECONDS[started[17:19]] + FRACTIONS[started[19:]]  # type: ignore[index]
            end = MINUTES[completed[:17]] + SECONDS[completed[17:19]] + FRACTIONS[completed[19:]]  # type: ignore[index]
        except (KeyError, TypeError):
            start = end = -1
        if end <= start:
            own = []
            start, end = put_times(own, STEP_TABLE, started, completed, self.fallback)
        values = _GET_VALUES(step)
        if size <= PIECE_BYTES and not label.special and type(step) is Step:
            return span_id, label, start, end, values, own, PLAIN
        own = list(own)
        if size > PIECE_BYTES:
            for field, value in zip(STEP_TABLE.values, values, strict=True):
                put_value(own, field, value)
            values = _NO_VALUES
        if step.extra:
            put_text(own, STEP_EXTRA, b"{" + step.extra + b"}")
        return span_id, label, start, end, values, own, self._more(own, step, label, end)

    def _more(self, own: Pairs, step: Step, label: Label, end: int) -> More:
        links: tuple[Link, ...] = ()
        if label.agent:
            usage = usage_of(step.output)
            if usage is not None:
                self.usages.append(usage)
                put_usage(own, usage)
        elif label.calls:
            child = child_run_of(step.output)
            if child:
                own.append((CHILD_RUN_ID, child[:500]))
                links = (child_link(child, self.tenant),)
        return self._fault(own, step.error, label, end, links)

    def _fault(self, own: Pairs, error: object, label: Label, end: int, links: tuple[Link, ...] = ()) -> More:
        """Status, description and events of a span; ``error.type`` is appended when it is an error."""
        if label.error_type is None:
            return More(links=links) if links else PLAIN
        fault = fault_of(error, label.error_type)
        own.append((ERROR_TYPE, fault.type))
        events = (fault.event(end),) if self.exception_events else ()
        return More(ERROR, fault.message, events, links)

    def _attempts(self, step: Step, step_id: bytes, label: Label) -> Iterator[Span]:
        for attempt in attempts_of(step.extra, step_id):
            own: Pairs = [(ROLE, ROLE_ATTEMPT), ("runspan.attempt.number", attempt.number)]
            if attempt.status:
                own.append(("runspan.attempt.status", attempt.status[:500]))
            events: tuple[Event, ...] = ()
            if attempt.fault is not None:
                own.append((ERROR_TYPE, attempt.fault.type))
                events = (attempt.fault.event(attempt.end),) if self.exception_events else ()
            yield Span(
                trace_id=self.trace_id,
                span_id=attempt.span_id,
                parent_id=step_id,
                name=f"attempt of {label.name}",
                kind=INTERNAL,
                start=attempt.start,
                end=attempt.end,
                status=STATUS_UNSET,
                message="",
                shared=(self.identity,),
                own=own,
                events=events,
            )

    def _head(self, manifest: str, open_steps: list[bytes], observed_at: int | None, is_small: bool) -> Span:
        envelope = self.envelope
        own: Pairs = [(DIGEST, sha256(self.run_text).hexdigest())]
        revision = ROOT_REVISION
        if not self.is_root:
            observed_at = _last_time(envelope, self.fallback) if observed_at is None else observed_at
            revision = observed_at + (ROOT_REVISION if self.after_root else 0)
            own.append((REVISION, revision))
        if self.tenant:
            own.append((TENANT, self.tenant))
        if type(envelope.steps) is list:
            own.append((STEP_COUNT, len(manifest) // len(OPEN)))
            if manifest:
                put_text(own, MANIFEST, manifest.encode())
            if open_steps:
                put_text(own, OPEN_STEPS, b"[" + b",".join(open_steps) + b"]")
        elif envelope.steps is None:
            own.append((MANIFEST + ODD, "null"))
        for field, value in zip(RUN_TABLE.values, RUN_TABLE.get_values(envelope), strict=True):
            if is_small and type(value) is Raw and field.kind is Kind.PAYLOAD:
                own.append((field.key, value))
            elif value is not UNSET:
                put_value(own, field, value)
        if envelope.extra:
            put_text(own, RUN_EXTRA, b"{" + envelope.extra + b"}")
            parent = parent_run_of(envelope.extra)
            if parent:
                own.append((PARENT_RUN_ID, parent[:500]))
        seen = None if self.is_root else observed_at
        start, end = put_times(own, RUN_TABLE, envelope.started_at, envelope.completed_at, self.fallback, seen)
        own.append((PIPELINE_RUN_ID, envelope.id))
        put_totals(own, self.usages)
        label = self.label
        status, message, events, _ = self._fault(own, envelope.error, label, end)
        span_id, parent_id = self.root_id, b""
        if not self.is_root:
            span_id = snapshot_span_id(self.trace_id, self.run_text, revision, self.seed)
            parent_id = self.root_id
        shared = (self.identity, label.shared)
        return Span(
            self.trace_id,
            span_id,
            parent_id,
            label.name,
            label.kind,
            start,
            end,
            status,
            message,
            shared,
            own,
            events,
        )


def _first_time(envelope: Envelope) -> int:
    """Where spans without a time of their own begin: the run's start, else its creation, else one nanosecond."""
    for value in (envelope.started_at, envelope.created_at, envelope.completed_at):
        if type(value) is str:
            ns = canonical_ns(value) or parse_ns(value)
            if ns:
                return ns
    return 1


def _last_time(envelope: Envelope, first: int) -> int:
    """The latest time that the document tells."""
    steps = envelope.steps
    values: list[object] = [envelope.started_at, envelope.completed_at]
    for step in steps if type(steps) is list else ():
        values += [step.started_at, step.completed_at]
    return max([first, *[parse_ns(value) or 0 for value in values if type(value) is str]])
