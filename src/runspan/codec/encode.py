"""A run document to spans: the pure half that writes; ``decode`` is its inverse; no I/O, no clock.

One run is one trace. Every finished step is a span that is written once, named by its content; the *head* names
them in its manifest and proves them by the document's digest. The head of a finished run is the root span, and of any
other run a snapshot span below the root to come.

``otlp.bulk_writer`` writes many runs at once, straight to bytes; what is unusual there comes back here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Final, NamedTuple

from runspan.codec.attributes import Pairs, encode_text, encode_times, encode_value
from runspan.codec.fields import (
    DIGEST,
    MANIFEST,
    NON_CANONICAL,
    OPEN_STEP_MARK,
    OPEN_STEPS,
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
)
from runspan.codec.semconv import (
    CHILD_RUN_ID,
    ERROR_TYPE,
    PARENT_RUN_ID,
    PIPELINE_RUN_ID,
    Attempt,
    Usage,
    add_totals,
    add_usage,
    caller_links,
    child_link,
    current_attempt,
    read_attempts,
    read_child_run_id,
    read_error,
    read_parent_run_id,
    read_usage,
)
from runspan.codec.span_templates import SpanTemplate, run_template, step_template
from runspan.model.document import TERMINAL_RUN_STATUSES, TERMINAL_STEP_STATUSES, Envelope, Step, sort_time, step_text
from runspan.model.ids import child_span_id, revision_span_id, run_ids, step_span_id
from runspan.model.run import Run
from runspan.model.span import ERROR, INTERNAL, Attributes, Event, Link, Span
from runspan.model.span import UNSET as STATUS_UNSET
from runspan.model.timestamps import parse_ns

_OPEN: Final = b""
"""Among the span ids of a manifest: a step without one."""
_STEP_ID: Final = next(field for field in STEP_TABLE.labels if field.member == "id")


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
    return RunEncoder(run, tenant, exception_events=exception_events, after_root=after_root).spans(
        observed_at, step_ids
    )


def content_step_ids(run: Run, tenant: str = "") -> list[bytes]:
    """The ids that ``encode`` gives to the spans of the finished steps, without the rest of the work."""
    return list(RunEncoder(run, tenant).step_ids())


class SpanStatus(NamedTuple):
    """How a span says that it failed, or that it did not."""

    status: int = STATUS_UNSET
    message: str = ""
    events: tuple[Event, ...] = ()


NO_ERROR: Final = SpanStatus()


def set_error_status(own: Pairs, error: object, label: SpanTemplate, end: int, exception_events: bool) -> SpanStatus:
    """Status, description and events of a span; ``error.type`` is appended when its label is an error's."""
    if label.error_type is None:
        return NO_ERROR
    fault = read_error(error, label.error_type)
    own.append((ERROR_TYPE, fault.type))
    return SpanStatus(ERROR, fault.message, (fault.event(end),) if exception_events else ())


class StepSpanParts(NamedTuple):
    """What a step span has beside its label and the members in their usual attributes."""

    own: Pairs
    start: int
    end: int
    status: SpanStatus
    links: tuple[Link, ...]


class StepPartsBuilder:
    """Works out ``Rest`` for the steps of one run. usages: what its agent steps used so far; grows.

    fallback: the start of a span without a time, nanoseconds since 1970.
    """

    def __init__(
        self, tenant: str, fallback: int, exception_events: bool = True, usages: list[Usage] | None = None
    ) -> None:
        self.tenant = tenant
        self.fallback = fallback
        self.exception_events = exception_events
        self.usages = [] if usages is None else usages

    def build(self, step: Step, label: SpanTemplate) -> StepSpanParts:
        own: Pairs = []
        if step.extra:
            encode_text(own, STEP_EXTRA, b"{" + step.extra + b"}")
        start, end = encode_times(own, STEP_TABLE, step.started_at, step.completed_at, self.fallback)
        links: tuple[Link, ...] = ()
        if label.is_agent:
            usage = read_usage(step.output)
            if usage is not None:
                self.usages.append(usage)
                add_usage(own, usage)
        elif label.is_sub_workflow:
            child = read_child_run_id(step.output)
            if child:
                own.append((CHILD_RUN_ID, child[:500]))
                links = (child_link(child, self.tenant),)
        fault = set_error_status(own, step.error, label, end, self.exception_events)
        return StepSpanParts(own, start, end, fault, links)


class RunEncoder:
    """One run on its way to spans."""

    def __init__(
        self,
        run: Run,
        tenant: str,
        *,
        exception_events: bool = True,
        after_root: bool = False,
        is_root: bool | None = None,
    ) -> None:
        """is_root: whether the head is the run span; None: as the status says, which is how a document is written."""
        envelope = run.envelope
        self.envelope = envelope
        self.run_text = run.text
        self.tenant = tenant
        self.exception_events = exception_events
        self.after_root = after_root
        self.is_root = (not after_root and envelope.status in TERMINAL_RUN_STATUSES) if is_root is None else is_root
        self.trace_id, self.root_id, seed = run_ids(envelope.id, tenant)
        self.template = run_template(self.is_root, RUN_TABLE.get_labels(envelope))
        self.fallback = _first_time(envelope)
        self.step_seed = seed ^ self.template.salt ^ self.fallback ^ (not exception_events)
        self.seed = self.step_seed.to_bytes(8, "big")
        self.identity = Attributes([(RUN_ID, envelope.id), *self.template.identity.pairs])
        self.step_parts = StepPartsBuilder(tenant, self.fallback, exception_events)

    def spans(
        self, observed_at: int | None, step_ids: Sequence[bytes] | None, ended: Sequence[bool] | None = None
    ) -> list[Span]:
        """See ``encode``. ended: for each step whether it has a span; None: as its status says."""
        steps = self.envelope.steps
        given = None if step_ids is None else iter(step_ids)
        told = None if ended is None else iter(ended)
        spans: list[Span] = []
        below: list[Span] = []
        names: list[bytes] = []
        taken: dict[bytes, bytes] = {}
        open_steps: list[bytes] = []
        for step in steps if type(steps) is list else ():
            text = step_text(step)
            label = step_template(STEP_TABLE.get_labels(step))
            if not (label.finished if told is None else next(told)):
                below += self._open_attempts(step, label, len(names))
                open_steps.append(text)
                names.append(_OPEN)
                continue
            span_id = step_span_id(text, self.step_seed, taken) if given is None else next(given, _OPEN)
            names.append(span_id)
            spans.append(self.step_span(step, span_id, label))
            if step.extra:
                below += self.attempt_spans(step, span_id, label)
        if step_ids is not None and len(set(step_ids)) != len(step_ids):
            raise ValueError("a step id stands twice: every span has its own")
        if step_ids is not None and len(step_ids) != len(spans):
            raise ValueError(f"{len(step_ids)} step ids for {len(spans)} finished steps")
        manifest = (
            b"".join(names).hex() if not open_steps else "".join([name.hex() or OPEN_STEP_MARK for name in names])
        )
        return [*spans, *below, self.revision_span(manifest, open_steps, observed_at)]

    def step_ids(self) -> Iterator[bytes]:
        """The content ids of the finished steps, each worked out when it is asked for."""
        taken: dict[bytes, bytes] = {}
        steps = self.envelope.steps
        for step in steps if type(steps) is list else ():
            if step.status in TERMINAL_STEP_STATUSES:
                yield step_span_id(step_text(step), self.step_seed, taken)

    def step_span(self, step: Step, span_id: bytes, label: SpanTemplate) -> Span:
        """The span of a finished step."""
        own: Pairs = []
        for field, value in zip(STEP_TABLE.values, STEP_TABLE.get_values(step), strict=True):
            encode_value(own, field, value)
        rest = self.step_parts.build(step, label)
        return Span(
            trace_id=self.trace_id,
            span_id=span_id,
            parent_id=self.root_id,
            name=label.name,
            kind=label.kind,
            start=rest.start,
            end=rest.end,
            status=rest.status.status,
            message=rest.status.message,
            shared=(label.shared, self.identity),
            own=own + rest.own,
            events=rest.status.events,
            links=rest.links,
        )

    def attempt_spans(self, step: Step, step_id: bytes, label: SpanTemplate) -> Iterator[Span]:
        """The spans of the attempts that a step lists and that have ended, below the step's span."""
        for attempt in read_attempts(step.extra):
            yield self._attempt(attempt, child_span_id(step_id, "attempt", attempt.position), step_id, step, label)

    def _open_attempts(self, step: Step, label: SpanTemplate, place: int) -> Iterator[Span]:
        """The attempts of a step that goes on, below the root to come.

        Every snapshot tells them all, so the id of each follows from all that its span carries, and it is one span.
        place: of the step in the document.
        """
        attempts = read_attempts(step.extra)
        if not attempts and step.status == "retrying":
            start = parse_ns(step.started_at) if type(step.started_at) is str else None
            current = current_attempt(step.attempt, "retrying", step.error, start or self.fallback)
            attempts = [] if current is None else [current]
        for attempt in attempts:
            told = (step.id, step.name, step.type, attempt)
            key = sha256(self.seed + place.to_bytes(8, "big") + repr(told).encode()).digest()
            span_id = child_span_id(key, "open attempt", attempt.position)
            yield self._attempt(attempt, span_id, self.root_id, step, label)

    def _attempt(self, attempt: Attempt, span_id: bytes, parent_id: bytes, step: Step, label: SpanTemplate) -> Span:
        own: Pairs = [(ROLE, ROLE_ATTEMPT), ("runspan.attempt.number", attempt.number)]
        if attempt.status:
            own.append(("runspan.attempt.status", attempt.status[:500]))
        encode_value(own, _STEP_ID, step.id)
        events: tuple[Event, ...] = ()
        if attempt.error is not None:
            own.append((ERROR_TYPE, attempt.error.type))
            events = (attempt.error.event(attempt.end),) if self.exception_events else ()
        return Span(
            trace_id=self.trace_id,
            span_id=span_id,
            parent_id=parent_id,
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

    def revision_span(self, manifest: str, open_steps: list[bytes], observed_at: int | None) -> Span:
        """The root span, or a snapshot. manifest and open_steps: see ``codec.fields.MANIFEST``."""
        envelope = self.envelope
        own: Pairs = [(DIGEST, sha256(self.run_text).hexdigest())]
        revision = ROOT_REVISION
        if not self.is_root:
            observed_at = _last_time(envelope, self.fallback) if observed_at is None else observed_at
            # Times past 2116 would rank a run that goes on above its end.
            revision = min(observed_at, ROOT_REVISION - 1) + (ROOT_REVISION if self.after_root else 0)
            own.append((REVISION, revision))
        if self.tenant:
            own.append((TENANT, self.tenant))
        if type(envelope.steps) is list:
            own.append((STEP_COUNT, len(manifest) // len(OPEN_STEP_MARK)))
            if manifest:
                encode_text(own, MANIFEST, manifest.encode())
            if open_steps:
                encode_text(own, OPEN_STEPS, b"[" + b",".join(open_steps) + b"]")
        elif envelope.steps is None:
            own.append((MANIFEST + NON_CANONICAL, "null"))
        for field, value in zip(RUN_TABLE.values, RUN_TABLE.get_values(envelope), strict=True):
            encode_value(own, field, value)
        links: tuple[Link, ...] = ()
        if envelope.extra:
            encode_text(own, RUN_EXTRA, b"{" + envelope.extra + b"}")
            parent = read_parent_run_id(envelope.extra)
            if parent:
                own.append((PARENT_RUN_ID, parent[:500]))
            links = caller_links(envelope.extra, self.trace_id)
        seen = None if self.is_root else observed_at
        place = sort_time(envelope) or 1  # not the completion: lists are searched by where heads begin
        start, end = encode_times(
            own, RUN_TABLE, envelope.started_at, envelope.completed_at, place, seen, start_at_fallback=True
        )
        own.append((PIPELINE_RUN_ID, envelope.id))
        add_totals(own, self.step_parts.usages)
        label = self.template
        fault = set_error_status(own, envelope.error, label, end, self.exception_events)
        span_id, parent_id = self.root_id, b""
        if not self.is_root:
            span_id = revision_span_id(self.trace_id, self.run_text, revision, self.seed)
            parent_id = self.root_id
        shared = (label.shared, self.identity)
        return Span(
            self.trace_id,
            span_id,
            parent_id,
            label.name,
            label.kind,
            start,
            end,
            fault.status,
            fault.message,
            shared,
            own,
            fault.events,
            links,
        )


def _first_time(envelope: Envelope) -> int:
    """Where spans without a time of their own begin: the run's start, else its creation, else one nanosecond."""
    for value in (envelope.started_at, envelope.created_at, envelope.completed_at):
        if type(value) is str:
            ns = parse_ns(value)
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
