"""The encoder, which converts a run document to spans and is the inverse of ``decode``; no I/O, no clock.

Every finished step is a span with an id derived from its content, written once. A *revision span* carries one version
of the run: its members, the manifest of step span ids and the digest of the document. For a finished run it is the root
span of the trace, for any other run a snapshot span below the future root.

``otlp.bulk_writer`` writes the same spans of many runs directly to bytes and uses this module for unusual runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Final, NamedTuple

from runspan.codec.attributes import (
    SpanTemplate,
    encode_extra,
    encode_text,
    encode_times,
    encode_value,
    run_template,
    step_template,
)
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
from runspan.model.document import (
    TERMINAL_RUN_STATUSES,
    TERMINAL_STEP_STATUSES,
    Envelope,
    Run,
    Step,
    sort_time,
    step_text,
)
from runspan.model.span import (
    ERROR,
    INTERNAL,
    Attributes,
    Event,
    Link,
    Pairs,
    Span,
    child_span_id,
    revision_span_id,
    run_ids,
    step_span_id,
)
from runspan.model.span import UNSET as STATUS_UNSET
from runspan.model.timestamps import parse_ns

_OPEN: Final = b""
"""In a list of span ids: an open step, which has no span."""
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
    """Return the spans of a run: its finished steps in order, the revision span last.

    The same arguments always return the same spans.

    - ``tenant``: the tenant of the run, part of every id.
    - ``observed_at``: when the document was read, in nanoseconds since 1970: the end and the revision of a snapshot.
      The default is the latest time in the document.
    - ``after_root``: whether the run's root span was written already with another document. The change is written as a
      snapshot with a higher revision than the root.
    - ``step_ids``: the span ids of the finished steps, in order, if a live recorder assigned them before the content.
    - ``exception_events``: whether a failed span has an ``exception`` event.
    """
    return RunEncoder(run, tenant, exception_events=exception_events, after_root=after_root).spans(
        observed_at, step_ids
    )


def content_step_ids(run: Run, tenant: str = "") -> list[bytes]:
    """Return the ids that ``encode`` assigns to the spans of the finished steps, without encoding the run."""
    return list(RunEncoder(run, tenant).step_ids())


class SpanStatus(NamedTuple):
    """The status code, status description and events of a span."""

    code: int = STATUS_UNSET
    message: str = ""
    events: tuple[Event, ...] = ()


NO_ERROR: Final = SpanStatus()


def set_error_status(own: Pairs, error: object, template: SpanTemplate, end: int, exception_events: bool) -> SpanStatus:
    """Return the status of a span, and append ``error.type`` if the template is that of a failed span."""
    if template.error_type is None:
        return NO_ERROR
    info = read_error(error, template.error_type)
    own.append((ERROR_TYPE, info.type))
    return SpanStatus(ERROR, info.message, (info.event(end),) if exception_events else ())


class StepSpanParts(NamedTuple):
    """The parts of a step span that are neither in its template nor canonical attributes of its members."""

    own: Pairs
    start: int
    end: int
    status: SpanStatus
    links: tuple[Link, ...]


class StepPartsBuilder:
    """Builds the ``StepSpanParts`` of the steps of one run.

    - ``fallback``: the start of a span without a time, in nanoseconds since 1970.
    - ``usages``: the list to which the token usage of each agent step is appended.
    """

    def __init__(
        self, tenant: str, fallback: int, exception_events: bool = True, usages: list[Usage] | None = None
    ) -> None:
        self.tenant = tenant
        self.fallback = fallback
        self.exception_events = exception_events
        self.usages = [] if usages is None else usages

    def build(self, step: Step, template: SpanTemplate) -> StepSpanParts:
        own: Pairs = []
        encode_extra(own, STEP_EXTRA, step.extra)
        start, end = encode_times(own, STEP_TABLE, step.started_at, step.completed_at, self.fallback)
        links: tuple[Link, ...] = ()
        if template.is_agent:
            usage = read_usage(step.output)
            if usage is not None:
                self.usages.append(usage)
                add_usage(own, usage)
        elif template.is_sub_workflow:
            child = read_child_run_id(step.output)
            if child:
                own.append((CHILD_RUN_ID, child[:500]))
                links = (child_link(child, self.tenant),)
        status = set_error_status(own, step.error, template, end, self.exception_events)
        return StepSpanParts(own, start, end, status, links)


class RunEncoder:
    """Encodes one run."""

    def __init__(
        self,
        run: Run,
        tenant: str,
        *,
        exception_events: bool = True,
        after_root: bool = False,
        is_root: bool | None = None,
    ) -> None:
        """``is_root``: whether the revision span is the run span; None derives it from the status."""
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
        """See ``encode``. ``ended``: for each step whether it has a span; None derives it from the status."""
        steps = self.envelope.steps
        assigned = None if step_ids is None else iter(step_ids)
        has_ended = None if ended is None else iter(ended)
        spans: list[Span] = []
        attempts: list[Span] = []
        span_ids: list[bytes] = []
        used_ids: dict[bytes, bytes] = {}
        open_steps: list[bytes] = []
        for step in steps if type(steps) is list else ():
            text = step_text(step)
            template = step_template(STEP_TABLE.get_labels(step))
            if not (template.finished if has_ended is None else next(has_ended)):
                attempts += self._open_attempts(step, template, len(span_ids))
                open_steps.append(text)
                span_ids.append(_OPEN)
                continue
            span_id = step_span_id(text, self.step_seed, used_ids) if assigned is None else next(assigned, _OPEN)
            span_ids.append(span_id)
            spans.append(self.step_span(step, span_id, template))
            if step.extra:
                attempts += self.attempt_spans(step, span_id, template)
        if step_ids is not None and len(set(step_ids)) != len(step_ids):
            raise ValueError("step_ids must be unique")
        if step_ids is not None and len(step_ids) != len(spans):
            raise ValueError(f"{len(step_ids)} step ids for {len(spans)} finished steps")
        if open_steps:
            manifest = "".join([span_id.hex() or OPEN_STEP_MARK for span_id in span_ids])
        else:
            manifest = b"".join(span_ids).hex()
        return [*spans, *attempts, self.revision_span(manifest, open_steps, observed_at)]

    def step_ids(self) -> Iterator[bytes]:
        """Yield the content-derived ids of the finished steps, each computed on demand."""
        used_ids: dict[bytes, bytes] = {}
        steps = self.envelope.steps
        for step in steps if type(steps) is list else ():
            if step.status in TERMINAL_STEP_STATUSES:
                yield step_span_id(step_text(step), self.step_seed, used_ids)

    def step_span(self, step: Step, span_id: bytes, template: SpanTemplate) -> Span:
        """Return the span of a finished step."""
        own: Pairs = []
        for field, value in zip(STEP_TABLE.values, STEP_TABLE.get_values(step), strict=True):
            encode_value(own, field, value)
        parts = self.step_parts.build(step, template)
        return Span(
            trace_id=self.trace_id,
            span_id=span_id,
            parent_id=self.root_id,
            name=template.name,
            kind=template.kind,
            start=parts.start,
            end=parts.end,
            status=parts.status.code,
            message=parts.status.message,
            shared=(template.shared, self.identity),
            own=own + parts.own,
            events=parts.status.events,
            links=parts.links,
        )

    def attempt_spans(self, step: Step, step_id: bytes, template: SpanTemplate) -> Iterator[Span]:
        """Yield the spans of a finished step's ended attempts, children of the step's span."""
        for attempt in read_attempts(step.extra):
            yield self._attempt(attempt, child_span_id(step_id, "attempt", attempt.position), step_id, step, template)

    def _open_attempts(self, step: Step, template: SpanTemplate, position: int) -> Iterator[Span]:
        """Yield the attempts of an open step, children of the future root.

        Every snapshot repeats them, so their ids are derived from everything that the span carries: repetitions are
        the same span. ``position`` is that of the step in the document.
        """
        attempts = read_attempts(step.extra)
        if not attempts and step.status == "retrying":
            start = parse_ns(step.started_at) if type(step.started_at) is str else None
            current = current_attempt(step.attempt, "retrying", step.error, start or self.fallback)
            attempts = [] if current is None else [current]
        for attempt in attempts:
            content = repr((step.id, step.name, step.type, *attempt.values())).encode()
            key = sha256(self.seed + position.to_bytes(8, "big") + content).digest()
            span_id = child_span_id(key, "open attempt", attempt.position)
            yield self._attempt(attempt, span_id, self.root_id, step, template)

    def _attempt(self, attempt: Attempt, span_id: bytes, parent_id: bytes, step: Step, template: SpanTemplate) -> Span:
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
            name=f"attempt of {template.name}",
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
        """Return the root span or a snapshot span. For ``manifest`` and ``open_steps`` see ``fields.MANIFEST``."""
        envelope = self.envelope
        own: Pairs = [(DIGEST, sha256(self.run_text).hexdigest())]
        revision = ROOT_REVISION
        if not self.is_root:
            observed_at = _last_time(envelope, self.fallback) if observed_at is None else observed_at
            # A time after 2116 would rank an unfinished run above its end.
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
        encode_extra(own, RUN_EXTRA, envelope.extra)
        parent = read_parent_run_id(envelope.extra)
        if parent:
            own.append((PARENT_RUN_ID, parent[:500]))
        start, end = encode_times(
            own,
            RUN_TABLE,
            envelope.started_at,
            envelope.completed_at,
            sort_time(envelope) or 1,
            None if self.is_root else observed_at,
            start_at_fallback=True,
        )
        own.append((PIPELINE_RUN_ID, envelope.id))
        add_totals(own, self.step_parts.usages)
        template = self.template
        status = set_error_status(own, envelope.error, template, end, self.exception_events)
        span_id, parent_id = self.root_id, b""
        if not self.is_root:
            span_id = revision_span_id(self.trace_id, self.run_text, revision, self.seed)
            parent_id = self.root_id
        return Span(
            trace_id=self.trace_id,
            span_id=span_id,
            parent_id=parent_id,
            name=template.name,
            kind=template.kind,
            start=start,
            end=end,
            status=status.code,
            message=status.message,
            shared=(template.shared, self.identity),
            own=own,
            events=status.events,
            links=caller_links(envelope.extra, self.trace_id),
        )


def _first_time(envelope: Envelope) -> int:
    """Return the start of spans that have no time: the run's start, creation or completion, else one nanosecond."""
    for value in (envelope.started_at, envelope.created_at, envelope.completed_at):
        if type(value) is str:
            ns = parse_ns(value)
            if ns:
                return ns
    return 1


def _last_time(envelope: Envelope, first: int) -> int:
    """Return the latest time in the document."""
    steps = envelope.steps
    values: list[object] = [envelope.started_at, envelope.completed_at]
    for step in steps if type(steps) is list else ():
        values += [step.started_at, step.completed_at]
    return max([first, *[parse_ns(value) or 0 for value in values if type(value) is str]])
